//! House rules that no other tool checks: sizes of files, imports between modules, words, declared test modules.
//!
//! The table [`ALLOWED`] is the architecture: a module may use what its row lists, and nothing above it. What is test
//! code (`#[cfg(test)]` modules, files named `tests.rs` or below a folder `tests`) may use anything.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file without its tests.
const FILE_LINES_MAX: usize = 500;

/// Pure modules: of the modules open to all they take only `error` and `config`.
const PURE: [&str; 6] = ["wire", "meter", "sql", "session", "routing", "retry"];

/// What every module may use; the configuration only in its validated form.
const OPEN_TO_ALL: [&str; 5] = [
    "error",
    "config::model",
    "config::units",
    "telemetry",
    "tasks",
];
const OPEN_TO_PURE: [&str; 3] = ["error", "config::model", "config::units"];

/// Each module of `src/` and what it may use besides itself and what is open to all. An entry with `::` opens only
/// that part. `*` is everything but the modules of [`TOP`].
const ALLOWED: [(&str, &[&str]); 32] = [
    ("error", &[]),
    ("tasks", &[]),
    ("telemetry", &[]),
    ("config", &[]),
    ("wire", &[]),
    ("meter", &[]),
    ("journal", &["meter"]),
    ("traces", &["meter"]),
    ("sql", &["meter"]),
    ("net", &[]),
    ("session", &["wire", "sql"]),
    ("auth", &["wire"]),
    ("backend", &["wire", "net", "auth", "session::mirror"]),
    (
        "pool",
        &[
            "wire",
            "net::buffer",
            "meter",
            "session",
            "sql::state",
            "sql::name",
            "sql::unseen",
            "auth",
            "backend",
            "retry",
        ],
    ),
    ("cluster", &["wire", "backend", "pool"]),
    ("routing", &["sql", "session", "cluster::topology"]),
    ("retry", &["wire", "sql", "session"]),
    ("cache", &["wire", "sql", "session", "backend"]),
    (
        "registry",
        &["wire", "meter", "backend", "pool::waiter", "pool::lane"],
    ),
    // What all sessions share: below those that run them and those that look at them.
    (
        "shared",
        &[
            "auth",
            "net",
            "session",
            "meter",
            "journal",
            "traces",
            "sql",
            "pool",
            "cluster",
            "cache",
            "registry",
            "routing::reason",
        ],
    ),
    ("frontend", &["*", "registry", "shared"]),
    (
        "status",
        &[
            "meter",
            "journal",
            "sql::state",
            "pool",
            "cluster",
            "cache",
            "registry",
            "shared",
            "routing::reason",
        ],
    ),
    (
        "watch",
        &["backend", "meter", "journal", "pool", "registry", "shared"],
    ),
    (
        "reload",
        &[
            "config", "net", "backend", "pool", "cluster", "cache", "shared",
        ],
    ),
    (
        "admin",
        &[
            "config", "wire", "net", "meter", "status", "registry", "pool", "cluster", "reload",
            "shared",
        ],
    ),
    ("http", &["net", "meter", "pool", "status", "shared"]),
    ("load", &["config", "wire", "net", "auth", "backend"]),
    ("demo", &["config"]),
    (
        "server",
        &[
            "*", "config", "registry", "shared", "status", "reload", "admin", "http", "frontend",
        ],
    ),
    (
        "app",
        &[
            "*", "config", "registry", "shared", "status", "watch", "reload", "admin", "http",
            "frontend", "server", "demo", "cli",
        ],
    ),
    ("cli", &["config"]),
    ("main", &["config", "reload", "app", "demo", "cli"]),
];

/// Modules that `*` does not cover.
const TOP: [&str; 14] = [
    "frontend", "registry", "shared", "status", "watch", "reload", "admin", "http", "load", "demo",
    "server", "app", "cli", "main",
];

/// Words that say that something is unfinished, or that nobody found out what it is. Split, so that this file passes.
const BANNED_WORDS: [&str; 9] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("to", "do!"),
    concat!("unimpl", "emented!"),
    concat!("ut", "ils"),
    concat!("hel", "pers"),
    concat!("_man", "ager"),
];

/// Paths of somebody's machine.
const MACHINE_PATHS: [&str; 2] = [concat!("/ro", "ot/"), concat!("/wo", "rk/")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` that is kept in the repository, as paths relative to its root.
fn files(folder: &str) -> Vec<PathBuf> {
    const SKIPPED: [&str; 6] = [
        "target",
        "node_modules",
        ".venv",
        ".git",
        "__pycache__",
        "corpus",
    ];
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root().join(folder)) else {
        return found;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = Path::new(folder).join(&name);
        if SKIPPED.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(path.to_str().unwrap()));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = files(folder);
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files
}

fn read(path: &Path) -> String {
    let bytes = fs::read(root().join(path)).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_test_code(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default();
    stem == "tests" || path.components().any(|part| part.as_os_str() == "tests")
}

/// Replaces comments and the insides of string and character literals by spaces, line breaks kept.
fn blank_out(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + skipped(&bytes[at..], out.last().copied());
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            let blank = |byte: &u8| if *byte == b'\n' { b'\n' } else { b' ' };
            out.extend(bytes[at..end].iter().map(blank));
            at = end;
        }
    }
    String::from_utf8(out).unwrap()
}

/// How many bytes at the start of `rest` are a comment or a literal; 0 for code. `before` is the byte ahead of it.
fn skipped(rest: &[u8], before: Option<u8>) -> usize {
    if rest.starts_with(b"//") {
        return rest
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return block_comment(rest);
    }
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !in_word || matches!(before, Some(b'b' | b'c')) {
        let hashes = rest
            .iter()
            .skip(1)
            .take_while(|byte| **byte == b'#')
            .count();
        if rest.first() == Some(&b'r') && rest.get(1 + hashes) == Some(&b'"') {
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let from = hashes + 2;
            let found = rest[from..]
                .windows(close.len())
                .position(|window| window == close);
            return found.map_or(rest.len(), |place| from + place + close.len());
        }
    }
    match rest.first() {
        Some(b'"') => quoted(rest, b'"'),
        // A lifetime has no closing quote after one character.
        Some(b'\'') if rest.get(1) == Some(&b'\\') => quoted(rest, b'\''),
        Some(b'\'') => {
            let text = String::from_utf8_lossy(&rest[1..rest.len().min(8)]).into_owned();
            let mut characters = text.chars();
            let width = characters.next().map_or(0, char::len_utf8);
            if characters.next() == Some('\'') {
                width + 2
            } else {
                0
            }
        }
        _ => 0,
    }
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Code without its `#[cfg(test)]` modules. Takes and returns blanked-out code; removed lines are gone.
fn without_tests(code: &str) -> String {
    let mut rest = code;
    let mut kept = String::new();
    while let Some(start) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..start]);
        let tail = &rest[start..];
        let body = tail.find(['{', ';']).unwrap_or(tail.len());
        let end = if tail[body..].starts_with('{') {
            body + braces(&tail[body..])
        } else {
            (body + 1).min(tail.len())
        };
        rest = &tail[end..];
    }
    kept.push_str(rest);
    kept
}

/// The length of a `{…}` at the start of `code`.
fn braces(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, character) in code.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// The module path of a file below `src/`: `src/pool/lease.rs` is `pool::lease`.
fn module_path(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix("src").unwrap().with_extension("");
    let mut segments: Vec<String> = inside
        .iter()
        .map(|segment| segment.to_string_lossy().into_owned())
        .collect();
    if segments.last().is_some_and(|last| last == "mod") {
        segments.pop();
    }
    segments
}

/// Every path in `code` that starts at the crate, without `crate::`; braces are expanded and `super` is resolved.
fn crate_paths(code: &str, module: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if !follows_word(code, at) {
            expand(&code[at + "crate::".len()..], "", &mut found);
        }
    }
    for (at, _) in code.match_indices("super::") {
        if follows_word(code, at) || code[..at].ends_with("super::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut depth = 0;
        while let Some(tail) = rest.strip_prefix("super::") {
            rest = tail;
            depth += 1;
        }
        if let Some(base) = module.len().checked_sub(depth) {
            let mut prefix = module[..base].join("::");
            if base > 0 {
                prefix.push_str("::");
            }
            expand(rest, &prefix, &mut found);
        }
    }
    found
}

fn follows_word(code: &str, at: usize) -> bool {
    let before = code[..at].chars().next_back();
    before.is_some_and(|character| character.is_alphanumeric() || character == '_')
}

/// Adds the paths of a use tree to `found`; returns how much of `code` it took.
fn expand(code: &str, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut path = prefix.to_owned();
    let mut at = 0;
    loop {
        let rest = &code[at..];
        let word = rest
            .find(|character: char| !(character.is_alphanumeric() || character == '_'))
            .unwrap_or(rest.len());
        if word > 0 {
            path.push_str(&rest[..word]);
            at += word;
            if code[at..].starts_with("::") {
                path.push_str("::");
                at += 2;
                continue;
            }
        } else if rest.starts_with('{') {
            return at + expand_list(rest, &path, found);
        } else if rest.starts_with('*') {
            at += 1;
        }
        found.push(path);
        return at;
    }
}

/// `{a, b::{c}}` after `prefix`.
fn expand_list(code: &str, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut at = 1;
    while at < code.len() {
        match code.as_bytes()[at] {
            b'}' => return at + 1,
            b',' | b' ' | b'\n' => at += 1,
            _ => {
                at += expand(&code[at..], prefix, found).max(1);
                // `as name` up to the next entry.
                let rest = &code[at..];
                at += rest.find([',', '}']).unwrap_or(rest.len());
            }
        }
    }
    at
}

/// Whether `module` (a top-level module) may use `path` (without `crate::`).
fn may_use(module: &str, path: &str) -> bool {
    let target = path.split("::").next().unwrap_or_default();
    if target == module {
        return true;
    }
    let covers = |entry: &str| {
        path == entry
            || path
                .strip_prefix(entry)
                .is_some_and(|tail| tail.starts_with("::"))
    };
    let open: &[&str] = if PURE.contains(&module) {
        &OPEN_TO_PURE
    } else if matches!(module, "error" | "tasks" | "telemetry" | "config") {
        // These carry the others and so may only lean on what is below them.
        match module {
            "error" => &[],
            "config" => &["error"],
            _ => &["error", "config::model", "config::units"],
        }
    } else {
        &OPEN_TO_ALL
    };
    let row = ALLOWED.iter().find(|(name, _)| *name == module);
    let row = row.map_or(&[][..], |(_, entries)| entries);
    // `use crate::config::{self}` and the like name the module itself, which shows nothing of it.
    open.iter().any(|entry| covers(entry))
        || row.iter().any(|entry| match *entry {
            "*" => !TOP.contains(&target) && target != "config",
            entry => covers(entry),
        })
}

/// The top-level modules of `src/`, `main` and `lib` among them.
fn modules() -> BTreeMap<String, Vec<PathBuf>> {
    let mut modules: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in rust_files("src") {
        let top = module_path(&path).first().cloned().unwrap_or_default();
        modules.entry(top).or_default().push(path);
    }
    modules
}

#[test]
fn files_are_short() {
    let long: Vec<String> = rust_files("src")
        .into_iter()
        .filter(|path| !is_test_code(path))
        .filter_map(|path| {
            let source = read(&path);
            // Blanked code has the lines of the source, so that what the tests take can be subtracted.
            let code = blank_out(&source);
            let tests = code.lines().count() - without_tests(&code).lines().count();
            let lines = source.lines().count() - tests;
            (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines", path.display()))
        })
        .collect();
    assert!(
        long.is_empty(),
        "more than {FILE_LINES_MAX} lines without tests: {long:#?}"
    );
}

#[test]
fn modules_use_only_what_is_below_them() {
    let modules = modules();
    let mut wrong = Vec::new();
    for (module, files) in &modules {
        if matches!(module.as_str(), "lib" | "bin") {
            continue;
        }
        assert!(
            ALLOWED.iter().any(|(name, _)| name == module),
            "src/{module} has no row in the table of allowed imports"
        );
        for file in files.iter().filter(|file| !is_test_code(file)) {
            let code = without_tests(&blank_out(&read(file)));
            // `main.rs` is a crate of its own and names the library.
            let code = code.replace("pgweir::", "crate::");
            let paths = crate_paths(&code, &module_path(file));
            let targets = paths.into_iter().filter(|path| {
                let top = path.split("::").next().unwrap_or_default();
                modules.contains_key(top)
            });
            wrong.extend(
                targets
                    .filter(|path| !may_use(module, path))
                    .map(|path| format!("{}: crate::{path}", file.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "not allowed: {wrong:#?}");
}

#[test]
fn nothing_is_unfinished_or_vaguely_named() {
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        for path in rust_files(folder) {
            let source = read(&path);
            for (number, line) in source.lines().enumerate() {
                let banned = BANNED_WORDS.iter().find(|word| contains_word(line, word));
                found.extend(
                    banned.map(|word| format!("{}:{}: {word}", path.display(), number + 1)),
                );
            }
        }
    }
    assert!(found.is_empty(), "banned words: {found:#?}");
}

/// Whether `word` stands in `line` and no letter follows it or, unless it starts with `_`, precedes it.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let letter = |character: Option<char>| character.is_some_and(char::is_alphanumeric);
        (word.starts_with('_') || !letter(before)) && !letter(after)
    })
}

#[test]
fn no_file_names_a_path_of_somebodys_machine() {
    let folders = ["src", "tests", "benches", "fuzz", "config", ".ci"];
    let root_files = fs::read_dir(root()).unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        let is_file = entry.file_type().unwrap().is_file();
        (is_file && entry.file_name() != ".git").then(|| PathBuf::from(entry.file_name()))
    });
    let all = folders
        .iter()
        .flat_map(|folder| files(folder))
        .chain(root_files);
    let found: Vec<String> = all
        .filter_map(|path| {
            let text = read(&path);
            let machine = MACHINE_PATHS.iter().find(|place| text.contains(**place))?;
            Some(format!("{}: {machine}", path.display()))
        })
        .collect();
    assert!(found.is_empty(), "machine paths: {found:#?}");
}

#[test]
fn every_test_file_is_declared() {
    for folder in ["tests/it", "tests/support", "tests/sim"] {
        let files = rust_files(folder);
        let Some(parent) = files
            .iter()
            .find(|path| path.ends_with("main.rs") || path.ends_with("mod.rs"))
        else {
            assert!(files.is_empty(), "{folder} has no main.rs or mod.rs");
            continue;
        };
        let declarations = blank_out(&read(parent));
        for file in files.iter().filter(|file| *file != parent) {
            let inside = file.strip_prefix(folder).unwrap().with_extension("");
            let module = inside.iter().next().unwrap().to_string_lossy();
            assert!(
                declarations.contains(&format!("mod {module};")),
                "{} is not declared in {}",
                file.display(),
                parent.display()
            );
        }
    }
}

#[test]
fn functions_for_tests_are_named_as_sentences() {
    let mut found = Vec::new();
    for path in rust_files("src").into_iter().chain(rust_files("tests")) {
        let code = blank_out(&read(&path));
        if code.contains(concat!("fn te", "st_")) {
            found.push(path);
        }
    }
    assert!(found.is_empty(), "names with a prefix: {found:?}");
}

/// Clocks that are set jump; what decides about servers, reads and connections goes by time that only passes.
#[test]
fn decisions_ask_no_clock_that_can_be_set() {
    const FOLDERS: [&str; 5] = [
        "src/cluster",
        "src/routing",
        "src/pool",
        "src/retry",
        "src/session",
    ];
    let clocks = [concat!("System", "Time"), concat!("UNIX_", "EPOCH")];
    let found: Vec<PathBuf> = FOLDERS
        .into_iter()
        .flat_map(rust_files)
        .filter(|path| {
            let code = blank_out(&read(path));
            clocks.iter().any(|clock| code.contains(clock))
        })
        .collect();
    assert!(
        found.is_empty(),
        "they ask a clock that can be set: {found:?}"
    );
}

mod of_its_own {
    use super::*;

    fn paths(code: &str, module: &str) -> Vec<String> {
        let module: Vec<String> = module.split("::").map(str::to_owned).collect();
        crate_paths(&without_tests(&blank_out(code)), &module)
    }

    #[test]
    fn use_trees_are_expanded() {
        let code = "use crate::pool::{self, lease::Lease, limits::{A, B as C}};\npub(crate) use crate::wire::*;";
        assert_eq!(
            paths(code, "app"),
            [
                "pool::self",
                "pool::lease::Lease",
                "pool::limits::A",
                "pool::limits::B",
                "wire::",
            ]
        );
    }

    #[test]
    fn paths_through_super_are_resolved() {
        let code = "use super::limits::X; fn f() { super::super::wire::frame(); }";
        assert_eq!(
            paths(code, "pool::lease"),
            ["pool::limits::X", "wire::frame"]
        );
    }

    #[test]
    fn comments_literals_and_tests_hold_no_imports() {
        let code = r##"
            // crate::a::b
            /* crate::c /* nested */ crate::d */
            const S: &str = "crate::e \" crate::f";
            const R: &str = r#"crate::g " crate::h"#;
            const Q: char = '"';
            fn f<'a>(x: &'a str) -> &'a str { crate::kept::g(x) }
            #[cfg(test)]
            mod tests { use crate::i; fn t() { { crate::j(); } } }
            #[cfg(test)]
            mod more;
            use crate::last;
        "##;
        assert_eq!(paths(code, "app"), ["kept::g", "last"]);
    }

    #[test]
    fn the_table_holds_its_exceptions() {
        assert!(may_use("backend", "session::mirror::Mirror"));
        assert!(!may_use("backend", "session::plan::plan"));
        assert!(may_use("pool", "session::plan::plan"));
        assert!(!may_use("sql", "telemetry::metrics"));
        assert!(may_use("net", "telemetry::metrics"));
        assert!(!may_use("net", "config::load"));
        assert!(may_use("frontend", "pool::lease::Lease"));
        assert!(!may_use("frontend", "admin::console"));
        assert!(may_use("app", "demo::prepare"));
        assert!(!may_use("frontend", "demo::prepare"));
    }

    #[test]
    fn every_row_names_rows() {
        for (module, entries) in ALLOWED {
            for entry in entries.iter().filter(|entry| **entry != "*") {
                let target = entry.split("::").next().unwrap();
                let known = ALLOWED.iter().any(|(name, _)| *name == target);
                assert!(known, "{module} may use {entry}, which has no row");
            }
        }
    }
}
