//! What is made of the text of a statement: tokens that tile it, its class, its fingerprint.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pgweir::sql::known::KnownStatements;
use pgweir::sql::lexer::{LexOptions, Lexer};
use pgweir::sql::{classify, normalise, stable_id};

static KNOWN: LazyLock<KnownStatements> = LazyLock::new(KnownStatements::default);

fuzz_target!(|data: &[u8]| {
    let Some((flags, text)) = data.split_first() else {
        return;
    };
    let options = LexOptions {
        standard_conforming_strings: flags & 1 == 0,
        unsafe_encoding: flags & 2 != 0,
        in_doubt: flags & 4 != 0,
    };
    let mut lexer = Lexer::new(text, options);
    while lexer.next_significant().is_some() {}
    let class = classify(text, options);
    assert_eq!(class, classify(text, options));
    let max_bytes = usize::from(flags / 4) * 4;
    assert!(normalise(text, options, max_bytes).len() <= max_bytes.max(3));
    let _ = stable_id(text, options);
    let _ = KNOWN.lookup(text, options);
});
