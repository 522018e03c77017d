//! What a prepared statement takes and returns: its parameters' types and its columns, as the server described them when
//! it was parsed.
//!
//! # Why
//! The same text means something else once DDL has replaced a table or a type. PostgreSQL refuses to run a statement
//! whose result would differ from what its client was told (0A000). A statement that several sessions share on several
//! backends was parsed on each of them at another time, so the server alone can't tell whose it is: each Parse is
//! followed by a Describe, and what came of it belongs to the session's name and to the backend's statement.
//!
//! Only what clients decode by counts: a column's name, type and modifier. The table it came from may be made anew, as
//! PostgreSQL allows too.
//!
//! Bound: an answer is kept up to `KEPT_MAX` bytes, once for all backends and names that have the same from one another;
//! of a longer one, the hash.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, LazyLock, OnceLock};

use crate::wire::backend as b;
use crate::wire::frame;

static HASHER: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

/// Longest description of which more is kept than a hash.
const KEPT_MAX: usize = 4 * 1024;

/// The server's answer to the Describe of a statement.
#[derive(Debug)]
pub struct Description {
    hash: u64,
    /// How many parameters it takes.
    pub parameters: u16,
    pub returns_rows: bool,
    /// The two messages, unless they are too long.
    pub messages: Option<Box<[u8]>>,
}

/// A statement's shape, empty until the server has told it. Shared by the name and the backend it was parsed for.
#[derive(Debug, Default)]
pub struct Shape(OnceLock<Arc<Description>>);

impl Shape {
    /// Whether a client that was told this one may be given rows of `other`; `None` where one of them is not known.
    pub fn agrees(&self, other: &Self) -> Option<bool> {
        Some(self.0.get()?.hash == other.0.get()?.hash)
    }

    pub fn is_known(&self) -> bool {
        self.0.get().is_some()
    }

    pub fn description(&self) -> Option<&Arc<Description>> {
        self.0.get()
    }
}

/// One that a backend was asked for.
#[derive(Debug)]
struct Asked {
    shape: Arc<Shape>,
    /// What the answer is expected to be, to be kept once only.
    like: Option<Arc<Description>>,
}

/// Shapes that a backend still has to tell, in the order it was asked.
#[derive(Debug, Default)]
pub struct Awaited {
    asked: VecDeque<Asked>,
    /// The first part of the answer under way.
    parameters: Vec<u8>,
}

impl Awaited {
    /// The backend was asked for `shape`, whose statement had the shape `like` elsewhere or before.
    pub fn push(&mut self, shape: Arc<Shape>, like: Option<&Shape>) {
        let like = like.and_then(Shape::description).cloned();
        self.asked.push_back(Asked { shape, like });
    }

    pub fn contains(&self, shape: &Arc<Shape>) -> bool {
        self.asked
            .iter()
            .any(|asked| Arc::ptr_eq(&asked.shape, shape))
    }

    /// The answer to the oldest Describe will not come.
    pub fn skip(&mut self) {
        self.asked.pop_front();
    }

    /// A part of the answer to the oldest Describe.
    pub fn receive(&mut self, tag: u8, payload: &[u8]) {
        if tag == b::PARAMETER_DESCRIPTION {
            self.parameters = payload.to_vec();
            return;
        }
        let parameters = std::mem::take(&mut self.parameters);
        let asked = self.asked.pop_front();
        if self.asked.is_empty() {
            // A backend at rest holds no buffer.
            self.asked = VecDeque::new();
        }
        let (Some(asked), Some(description)) = (asked, describe(&parameters, tag, payload)) else {
            return;
        };
        let described = asked
            .like
            .filter(|like| like.hash == description.hash && like.messages == description.messages)
            .unwrap_or_else(|| Arc::new(description));
        // Set once: each answer has a shape of its own.
        let _ = asked.shape.0.set(described);
    }
}

/// What the two parts of an answer say; `None` if they are longer than what is looked at whole.
fn describe(parameters: &[u8], tag: u8, columns: &[u8]) -> Option<Description> {
    let mut hasher = HASHER.build_hasher();
    hasher.write(parameters);
    let returns_rows = tag == b::ROW_DESCRIPTION;
    if returns_rows && !hash_columns(columns, &mut hasher) {
        return None;
    }
    hasher.write_u8(tag);
    let count = u16::from_be_bytes(*parameters.first_chunk()?);
    if parameters.len() != 2 + usize::from(count) * 4 {
        return None;
    }
    let messages = (parameters.len() + columns.len() <= KEPT_MAX).then(|| {
        let mut messages = Vec::with_capacity(2 * frame::HEADER + parameters.len() + columns.len());
        for (tag, payload) in [(b::PARAMETER_DESCRIPTION, parameters), (tag, columns)] {
            frame::put(&mut messages, tag, |out| out.extend_from_slice(payload));
        }
        messages.into_boxed_slice()
    });
    Some(Description {
        hash: hasher.finish(),
        parameters: count,
        returns_rows,
        messages,
    })
}

/// Takes in a `RowDescription` without what tells tables and formats. False if it is longer than what is looked at
/// whole: such a shape is never known.
fn hash_columns(payload: &[u8], hasher: &mut impl Hasher) -> bool {
    /// Table, column number, type, size, modifier, format.
    const FIXED: usize = 4 + 2 + 4 + 2 + 4 + 2;
    let Some((count, mut rest)) = payload.split_first_chunk::<2>() else {
        return false;
    };
    let mut left = u16::from_be_bytes(*count);
    while left > 0
        && let Some(end) = memchr::memchr(0, rest)
        && let Some(fixed) = rest.get(end + 1..end + 1 + FIXED)
    {
        hasher.write(&rest[..=end]);
        hasher.write(&fixed[6..16]);
        rest = &rest[end + 1 + FIXED..];
        left -= 1;
    }
    hasher.write(count);
    left == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, table: u32, r#type: u32, format: u8) -> Vec<u8> {
        let mut column = [name.as_bytes(), &[0]].concat();
        column.extend(table.to_be_bytes());
        column.extend([0, 1]);
        column.extend(r#type.to_be_bytes());
        column.extend([0, 4, 255, 255, 255, 255, 0, format]);
        column
    }

    fn shape(parameters: &[u8], columns: Option<&[Vec<u8>]>) -> Shape {
        let mut awaited = Awaited::default();
        let shape = Arc::new(Shape::default());
        awaited.push(Arc::clone(&shape), None);
        awaited.receive(b::PARAMETER_DESCRIPTION, parameters);
        assert!(!shape.is_known() && awaited.contains(&shape));
        match columns {
            None => awaited.receive(b::NO_DATA, b""),
            Some(columns) => {
                let count = u16::try_from(columns.len()).unwrap().to_be_bytes();
                let payload = [&count[..], &columns.concat()].concat();
                awaited.receive(b::ROW_DESCRIPTION, &payload);
            }
        }
        assert!(!awaited.contains(&shape));
        Arc::into_inner(shape).unwrap()
    }

    #[test]
    fn tables_and_formats_may_differ_and_nothing_else() {
        let one = shape(b"\0\0", Some(&[column("a", 1, 23, 0)]));
        let agrees =
            |parameters: &[u8], columns: &[Vec<u8>]| one.agrees(&shape(parameters, Some(columns)));
        assert_eq!(agrees(b"\0\0", &[column("a", 2, 23, 1)]), Some(true));
        assert_eq!(agrees(b"\0\0", &[column("b", 1, 23, 0)]), Some(false));
        assert_eq!(agrees(b"\0\0", &[column("a", 1, 25, 0)]), Some(false));
        assert_eq!(
            agrees(b"\0\x01\0\0\0\x17", &[column("a", 1, 23, 0)]),
            Some(false)
        );
        assert_eq!(one.agrees(&shape(b"\0\0", None)), Some(false));
        assert_eq!(agrees(b"\0\0", &[]), Some(false));
        let two = [column("a", 1, 23, 0), column("b", 1, 23, 0)];
        assert_eq!(agrees(b"\0\0", &two), Some(false));
    }

    #[test]
    fn what_is_not_told_agrees_with_nothing_and_contradicts_nothing() {
        let told = shape(b"\0\0", None);
        let mut awaited = Awaited::default();
        let untold = Arc::new(Shape::default());
        awaited.push(Arc::clone(&untold), None);
        awaited.skip();
        assert!(!awaited.contains(&untold));
        assert_eq!(told.agrees(&untold), None);
        assert_eq!(untold.agrees(&told), None);
        awaited.receive(b::NO_DATA, b"");
    }
}
