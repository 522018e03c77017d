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
fn scratch() {
    let Ok(path) = std::env::var("SCRATCH") else { return };
    for line in std::fs::read_to_string(path).unwrap().lines() {
        println!("CLASS {}", class(&line.replace("\\n", "\n").replace("\\\\", "\\")));
    }
}
