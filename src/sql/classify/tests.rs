use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/classify.txt");

fn class(text: &str) -> Class {
    classify(text.as_bytes(), LexOptions::default())
}

/// Each statement is followed by its class on a line that begins with `  => `; `\n` in a statement is a newline.
/// `UPDATE_GOLDEN=1` writes the file anew.
#[test]
fn golden_statements_have_their_classes() {
    let golden = std::fs::read_to_string(GOLDEN).unwrap();
    let mut found = String::new();
    for line in golden.lines() {
        if line.starts_with("  => ") {
            continue;
        }
        writeln!(found, "{line}").unwrap();
        if !line.is_empty() && !line.starts_with("# ") {
            let class = class(&line.replace("\\n", "\n"));
            writeln!(found, "  => {class}").unwrap();
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &found).unwrap();
        return;
    }
    for (index, (expected, found)) in golden.lines().zip(found.lines()).enumerate() {
        assert_eq!(expected, found, "line {}", index + 1);
    }
    assert_eq!(golden.lines().count(), found.lines().count());
}

#[test]
fn bytes_of_unsafe_encodings_are_not_classified() {
    let options = LexOptions {
        unsafe_encoding: true,
        ..LexOptions::default()
    };
    assert!(classify(b"SELECT '\x95\x5c'", options).is_unclassifiable());
    assert!(classify(b"SELECT 1", options).is_proved_read());
    let latin1 = classify(b"SELECT '\xe9' FROM \xe9t\xe9", LexOptions::default());
    assert!(latin1.is_proved_read());
}

#[test]
fn backslashes_hide_a_statement_only_if_strings_do_not_conform() {
    let text = br"SELECT 'a\'; DELETE FROM t; --'";
    let conforming = classify(text, LexOptions::default());
    assert_eq!(conforming.to_string(), "select; delete | tables t!");
    let options = LexOptions {
        standard_conforming_strings: false,
        ..LexOptions::default()
    };
    assert_eq!(classify(text, options).to_string(), "select | reads");
}

#[test]
fn transaction_control_alone_is_told_from_company() {
    assert!(class("COMMIT").transaction.is_alone());
    assert!(class("; ROLLBACK AND CHAIN ;").transaction.chains());
    let whole = class("BEGIN; SELECT 1; COMMIT").transaction;
    assert!(whole.begins() && whole.ends() && !whole.is_alone());
    assert!(class("SAVEPOINT a").transaction.savepoints());
    assert!(!class("COMMIT PREPARED 'x'").transaction.ends());
}

#[test]
fn the_catalogue_has_the_last_word_on_functions() {
    let class = class("SELECT lower(a), mine(b) FROM t");
    assert_eq!(class.reads, Reads::IfFunctions);
    assert!(!class.is_proved_read());
    assert!(class.only_reads_if(|_| true));
    assert!(!class.only_reads_if(|function| function.name != "lower"));
    let locking = classify(b"SELECT mine(b) FROM t FOR UPDATE", LexOptions::default());
    assert!(!locking.only_reads_if(|_| true));
}

#[test]
fn what_the_server_asked_decides_stays_off_replicas() {
    assert!(class("SELECT now() FROM t").may_run_on_replica());
    assert!(!class("SELECT pg_is_in_recovery()").may_run_on_replica());
    assert!(!class("SHOW transaction_read_only").may_run_on_replica());
    assert!(!class("SELECT * FROM pg_stat_replication").may_run_on_replica());
}

#[test]
fn what_is_kept_of_a_text_is_bounded() {
    let many = |unit: &str| class(&unit.repeat(20_000));
    assert!(many("SET a = 1;").statements.len() <= 4097);
    assert!(many("SET a = 1;").is_unclassifiable());
    let calls: Vec<_> = (0..1000).map(|index| format!("f{index}()")).collect();
    let class_of_calls = class(&format!("SELECT {}", calls.join(",")));
    assert!(class_of_calls.functions.len() <= 64);
    assert!(class_of_calls.is_unclassifiable());
    let tables: Vec<_> = (0..1000).map(|index| format!("t{index}")).collect();
    let class_of_tables = class(&format!("SELECT 1 FROM {}", tables.join(",")));
    assert!(!class_of_tables.tables.is_complete());
    assert!(class_of_tables.is_proved_read());
}

/// As long as it takes at best.
fn time_of(text: &str) -> std::time::Duration {
    let once = || {
        let begun = tokio::time::Instant::now();
        std::hint::black_box(class(text));
        begun.elapsed()
    };
    (0..5).map(|_| once()).min().unwrap()
}

#[test]
fn what_it_takes_grows_with_the_text_and_no_faster() {
    for (head, unit) in [
        ("INSERT INTO t VALUES (0)", ", (1, 'one', now())"),
        ("SELECT 1", ", lower(a) + f(b.c)"),
        ("SELECT 1", ", set_config('a', (((1))), false)"),
        (
            "SELECT 1 FROM t",
            " JOIN u ON t.a OPERATOR(pg_catalog.=) f(u.a)",
        ),
        ("SELECT 1 FROM t WHERE a IN (0", ", $1"),
        ("SELECT ", "("),
        ("WITH a AS (SELECT 1)", ", b AS (SELECT 1)"),
        ("EXPLAIN (", "\"analyze\" a, "),
        ("DO 'BEGIN", " PERFORM set_config(a); "),
        ("SELECT 1", "; SET a = 1"),
    ] {
        let text = |length: usize| format!("{head}{}", unit.repeat(length / unit.len()));
        let (small, large) = (text(8 << 10), text(256 << 10));
        // Other work on the machine only adds to it: the best of some rounds counts.
        let is_linear = || time_of(&large) < time_of(&small) * 32 * 4;
        assert!((0..5).any(|_| is_linear()), "{head}{unit}");
    }
}

#[test]
fn deep_nesting_is_not_understood_and_not_recursed_into() {
    let depth = 300_000;
    let text = format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth));
    assert!(class(&text).is_unclassifiable());
    let shallow = format!("SELECT {}1{}", "(".repeat(100), ")".repeat(100));
    assert!(class(&shallow).is_proved_read());
    let comment = format!("SELECT {}{} 1", "/*".repeat(depth), "*/".repeat(depth));
    assert!(class(&comment).is_proved_read());
}

/// Words and signs that classification looks for.
fn word() -> impl Strategy<Value = String> {
    let fixed = prop::sample::select(vec![
        "select",
        "from",
        "t",
        "(",
        ")",
        ",",
        ";",
        "with",
        "as",
        "delete",
        "update",
        "insert",
        "into",
        "set",
        "temp",
        "table",
        "create",
        "function",
        "begin",
        "atomic",
        "end",
        "case",
        "for",
        "share",
        "explain",
        "analyze",
        "copy",
        "to",
        "stdout",
        "declare",
        "c",
        "cursor",
        "hold",
        "prepare",
        "execute",
        "set_config",
        "'a'",
        "true",
        "nextval",
        ".",
        "::",
        "=",
        "[",
        "]",
        "pg_temp",
        "on",
        "commit",
        "drop",
        "join",
        "using",
        "distinct",
        "operator",
        "recursive",
        "materialized",
        "not",
        "values",
        "1",
        "$1",
        "local",
        "session",
    ]);
    prop_oneof![9 => fixed.prop_map(str::to_owned), 1 => "[ -~]{1,4}"]
}

proptest! {
    #[test]
    fn any_bytes_are_classified(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let class = classify(&text, LexOptions::default());
        prop_assert!(!class.to_string().is_empty());
        details(&text, LexOptions::default());
    }

    #[test]
    fn any_words_are_classified_alike_in_any_layout(words in prop::collection::vec(word(), 0..40)) {
        let plain = words.join(" ");
        let options = LexOptions::default();
        let found = classify(plain.as_bytes(), options);
        details(plain.as_bytes(), options);
        if words.iter().all(|word| !word.contains(['\'', '"', '-', '/', '*', '$', '&', '\\'])) {
            let spread = words.join(" /* ; ( ' */\n-- )\n").to_uppercase();
            prop_assert_eq!(classify(spread.as_bytes(), options), found);
        }
    }

    /// Whatever else is in a text, a statement that writes keeps it from being a read.
    #[test]
    fn a_write_is_never_lost(words in prop::collection::vec(word(), 0..20)) {
        let before = words.join(" ");
        let text = format!("{before}; DELETE FROM t");
        prop_assert!(!class(&text).is_proved_read());
        let text = format!("WITH a AS (DELETE FROM t RETURNING 1) SELECT {before}");
        prop_assert!(!class(&text).is_proved_read());
    }
}
