//! Numbers for statements that differ only in constants, spelling and layout.
//!
//! Texts of one fingerprint have one class (`classify`), unless the class says `needs_text`.
//!
//! # Why
//!
//! Two numbers. [`Fingerprint`] keys caches that decide where a statement goes, so nobody may be able to make a text
//! that has another's number: `SipHash` under a key of this process, 16 ns for a short statement. foldhash would be
//! faster, but does not claim to withstand that. [`StableId`] is for eyes and exports: the same in every process, and nothing is
//! decided by it.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::lexer::{LexOptions, TokenKind};
use super::shape::{Shape, What};
use super::skim::skim;

/// Number of a statement's shape in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(u64);

impl Fingerprint {
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Number of a statement's shape anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StableId(u64);

impl StableId {
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for StableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The secret of this process's fingerprints. Make one and share it.
#[derive(Clone)]
pub struct FingerprintKey(RandomState);

impl FingerprintKey {
    /// A key from the system's random numbers.
    pub fn random() -> Self {
        Self(RandomState::new())
    }

    /// The fingerprint of a text. One pass, no allocation.
    pub fn fingerprint(&self, text: &[u8], options: LexOptions) -> Fingerprint {
        self.shaped(text, options).fingerprint
    }

    /// The fingerprint of a text, with what its stable number can be made of.
    pub(super) fn shaped(&self, text: &[u8], options: LexOptions) -> Shaped {
        let mut sink = Buffered::new(Sip(self.0.build_hasher()));
        walk(text, options, &mut sink);
        sink.absorb_rest();
        Shaped {
            fingerprint: Fingerprint(sink.hash.0.finish()),
            whole: (!sink.flushed).then_some((sink.buffer, sink.length)),
        }
    }

    /// The number of a text as a quick look finds it (see [`super::skim`]): texts of one number have one fingerprint. `None`
    /// if that takes a closer look.
    pub(super) fn skim(&self, text: &[u8], options: LexOptions) -> Option<u64> {
        let mut hash = self.0.build_hasher();
        skim(text, options, |bytes| hash.write(bytes)).then(|| hash.finish())
    }
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKey")
    }
}

/// A text's fingerprint, and the shape it was made of where that is short.
pub(super) struct Shaped {
    pub(super) fingerprint: Fingerprint,
    whole: Option<([u8; BUFFER], usize)>,
}

impl Shaped {
    /// [`stable_id`] of the text, which is walked again only if its shape is long.
    pub(super) fn stable_id(&self, text: &[u8], options: LexOptions) -> StableId {
        match &self.whole {
            Some((shape, length)) => finish(Sha256::new().chain_update(&shape[..*length])),
            None => stable_id(text, options),
        }
    }
}

/// The stable number of a text: the first 8 bytes of a SHA-256.
pub fn stable_id(text: &[u8], options: LexOptions) -> StableId {
    let mut sink = Buffered::new(Sha(Sha256::new()));
    walk(text, options, &mut sink);
    sink.absorb_rest();
    finish(sink.hash.0)
}

fn finish(sha: Sha256) -> StableId {
    let digest = sha.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    StableId(u64::from_be_bytes(first))
}

trait Absorb {
    fn absorb(&mut self, bytes: &[u8]);
}

struct Sip<H>(H);

impl<H: Hasher> Absorb for Sip<H> {
    fn absorb(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }
}

struct Sha(Sha256);

impl Absorb for Sha {
    fn absorb(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// Bytes gathered before the hash sees them.
const BUFFER: usize = 512;
/// Bytes copied at a time.
const STEP: usize = size_of::<u64>();

/// Gathers tokens so that the hash sees few long writes.
struct Buffered<H> {
    buffer: [u8; BUFFER],
    length: usize,
    /// The hash has seen some, which is not in the buffer any more.
    flushed: bool,
    hash: H,
}

impl<H: Absorb> Buffered<H> {
    fn new(hash: H) -> Self {
        Self {
            buffer: [0; BUFFER],
            length: 0,
            flushed: false,
            hash,
        }
    }

    /// Appends the bytes of `range`, folded to lower case if asked, and the blank that ends them.
    ///
    /// Copies whole steps, beyond the end of the range too, and lets what follows overwrite that: tokens are short, and
    /// a copy of exactly their length costs more.
    fn put(&mut self, text: &[u8], range: Range<usize>, fold: bool) {
        let mut at = range.start;
        while at < range.end {
            let bytes = match text.get(at..at + STEP).map(TryInto::try_into) {
                Some(Ok(bytes)) => bytes,
                _ => last_step(text, at),
            };
            self.step(if fold { lower(bytes) } else { bytes });
            self.length += STEP.min(range.end - at);
            at += STEP;
        }
        self.step([b' '; STEP]);
        self.length += 1;
    }

    fn step(&mut self, bytes: [u8; STEP]) {
        if self.length + STEP > BUFFER {
            self.flush();
        }
        if let Some(room) = self.buffer.get_mut(self.length..self.length + STEP) {
            room.copy_from_slice(&bytes);
        }
    }

    fn flush(&mut self) {
        self.absorb_rest();
        self.length = 0;
        self.flushed = true;
    }

    /// Shows the hash what is in the buffer, and leaves it there.
    fn absorb_rest(&mut self) {
        self.hash
            .absorb(self.buffer.get(..self.length).unwrap_or_default());
    }
}

/// The bytes from `at` to the end of the text, which are fewer than a step, with zeroes behind.
fn last_step(text: &[u8], at: usize) -> [u8; STEP] {
    let mut bytes = [0; STEP];
    for (to, &from) in bytes.iter_mut().zip(text.get(at..).unwrap_or_default()) {
        *to = from;
    }
    bytes
}

/// Folds ASCII capitals, all bytes at once: a byte's high bit comes on where adding carries it past `A` but not past `Z`.
fn lower(bytes: [u8; STEP]) -> [u8; STEP] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(bytes);
    let low = word & (EACH * 0x7f);
    let from_a = low + EACH * (0x80 - u64::from(b'A'));
    let past_z = low + EACH * (0x7f - u64::from(b'Z'));
    let capital = !word & (from_a ^ past_z) & (EACH * 0x80);
    (word | (capital >> 2)).to_le_bytes()
}

/// Tokens end in a blank, which none of them can be taken apart by: names hold none, quoted things end in their quote.
fn walk<H: Absorb>(text: &[u8], options: LexOptions, sink: &mut Buffered<H>) {
    if options.cannot_be_sure(text) {
        sink.put(b"\x01", 0..1, false);
    }
    for what in Shape::new(text, options) {
        match what {
            What::Constant | What::Param(_) => sink.put(b"?", 0..1, false),
            What::List => sink.put(b"(?)", 0..3, false),
            What::Semicolon => sink.put(b";", 0..1, false),
            What::Token(token) => sink.put(text, token.range(), token.kind == TokenKind::Ident),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sql::classify::classify;

    fn id(text: &str) -> StableId {
        stable_id(text.as_bytes(), LexOptions::default())
    }

    #[test]
    fn constants_spelling_and_layout_do_not_count() {
        let same = [
            (
                "SELECT * FROM t WHERE a = 1",
                "select *\n from T where A='x' -- c",
            ),
            ("SELECT $1", "SELECT 42;"),
            ("SELECT a FROM t LIMIT $1", "SELECT a FROM t LIMIT 10"),
            ("SELECT -1", "SELECT 1"),
            ("SELECT a WHERE b > -1.5", "SELECT a WHERE b > $1"),
            ("SELECT E'a' 'b'", "SELECT $$x$$ N'y'"),
            ("SELECT 1 IN (1, 2, 3)", "SELECT 1 IN ($1)"),
            ("SELECT 1 IN (-1, NULL)", "SELECT 1 IN ('x')"),
            (
                "INSERT INTO t VALUES (1, 'a', DEFAULT), (2, 'b', true)",
                "INSERT INTO t VALUES ($1, $2, $3)",
            ),
            (
                "INSERT INTO t VALUES (1), (2) RETURNING a",
                "INSERT INTO t VALUES (1) RETURNING a",
            ),
            (";; SELECT 1;;", "SELECT 1"),
            ("SELECT 1; ; SELECT 2", "SELECT 1;SELECT 2"),
        ];
        for (a, b) in same {
            assert_eq!(id(a), id(b), "{a} | {b}");
        }
    }

    #[test]
    fn everything_else_counts() {
        let different = [
            ("SELECT a FROM t", "SELECT b FROM t"),
            ("SELECT a", "SELECT \"a\""),
            ("SELECT \"a\"", "SELECT \"A\""),
            ("SELECT ab", "SELECT a b"),
            ("SELECT 1 - 2", "SELECT 1, 2"),
            ("SELECT a - 2 FROM t", "SELECT a FROM t"),
            (
                "SELECT set_config('a', 'b', true)",
                "SELECT set_config('a', 'b', false)",
            ),
            ("SELECT f(1, 2)", "SELECT f(1)"),
            ("SELECT 1 IN (1, a)", "SELECT 1 IN (1, 2)"),
            (
                "INSERT INTO t VALUES (1), (now())",
                "INSERT INTO t VALUES (1), (2)",
            ),
            ("SELECT 1; SELECT 2", "SELECT 1"),
            (
                "SELECT U&\"!0061\" UESCAPE '!'",
                "SELECT U&\"!0061\" UESCAPE '?'",
            ),
            ("SELECT a<-1", "SELECT a< -1 -1"),
        ];
        for (a, b) in different {
            assert_ne!(id(a), id(b), "{a} | {b}");
        }
    }

    #[test]
    fn keys_differ_and_stable_ids_do_not() {
        let text = b"SELECT 1";
        let options = LexOptions::default();
        let (a, b) = (FingerprintKey::random(), FingerprintKey::random());
        assert_eq!(
            a.fingerprint(text, options),
            a.fingerprint(b"select 2", options)
        );
        assert_ne!(a.fingerprint(text, options), b.fingerprint(text, options));
        assert_eq!(stable_id(text, options).to_string(), "1bbe0f578fe3aa01");
    }

    #[test]
    fn the_stable_id_is_the_same_with_and_without_a_second_walk() {
        let (key, options) = (FingerprintKey::random(), LexOptions::default());
        for length in [0, 1, 200, BUFFER - 20, BUFFER, BUFFER + 1, 5 * BUFFER] {
            let text = format!("SELECT {} FROM t WHERE a = 1", "a, ".repeat(length / 4));
            let shaped = key.shaped(text.as_bytes(), options);
            let again = stable_id(text.as_bytes(), options);
            assert_eq!(
                shaped.stable_id(text.as_bytes(), options),
                again,
                "{length}"
            );
            assert_eq!(shaped.whole.is_none(), length >= BUFFER - 20, "{length}");
        }
    }

    #[test]
    fn folding_is_that_of_ascii() {
        for byte in 0..=255u8 {
            assert_eq!(lower([byte; STEP]), [byte.to_ascii_lowercase(); STEP]);
        }
        assert_eq!(&lower(*b"aZ[@`z{A"), b"az[@`z{a");
    }

    #[test]
    fn long_tokens_count_to_their_end() {
        let long = "a".repeat(1000);
        assert_ne!(
            id(&format!("SELECT {long}a")),
            id(&format!("SELECT {long}b"))
        );
        assert_eq!(
            id(&format!("SELECT {long}A")),
            id(&format!("SELECT {long}a"))
        );
    }

    /// Pieces of statements, constants among them.
    fn piece() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "select",
            "from",
            "t",
            "(",
            ")",
            ",",
            "1",
            "-",
            "'a'",
            "$1",
            "in",
            "values",
            "with",
            "x",
            "as",
            "delete",
            "update",
            "set",
            "into",
            "temp",
            ";",
            "for",
            "f",
            "nextval",
            "null",
            "=",
            "true",
            "create",
            "table",
            "explain",
            "analyze",
            "operator",
            "prepare",
            "transaction",
            "commit",
            "prepared",
            "search_path",
            "insert",
            "copy",
            "to",
            "stdout",
            "public",
            ".",
            "::",
        ])
    }

    proptest! {
        #[test]
        fn one_fingerprint_has_one_class(
            pieces in prop::collection::vec(piece(), 1..25),
            constants in prop::collection::vec(prop::sample::select(vec!["2", "'b'", "$2", "-3", "E'\\n'"]), 25)
        ) {
            let a = pieces.join(" ");
            let is_constant = |piece: &str| matches!(piece, "1" | "'a'" | "$1");
            let b: Vec<_> = pieces.iter().zip(&constants)
                .map(|(&piece, &constant)| if is_constant(piece) { constant } else { piece })
                .collect();
            let b = b.join("\t");
            let options = LexOptions::default();
            if id(&a) == id(&b) {
                let (a, b) = (classify(a.as_bytes(), options), classify(b.as_bytes(), options));
                if !a.needs_text {
                    prop_assert_eq!(a, b);
                }
            }
        }

        #[test]
        fn any_bytes_have_a_number(text in prop::collection::vec(any::<u8>(), 0..600)) {
            let key = FingerprintKey::random();
            let options = LexOptions::default();
            prop_assert_eq!(key.fingerprint(&text, options), key.fingerprint(&text, options));
            stable_id(&text, options);
        }
    }
}
