//! Configuration files and PgBouncer's: read or refused with their problems.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pgweir::config::{self, Overrides, import};

/// Loading reads a file, so the text goes through one, in memory where there is such a folder.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("pgweir-fuzz-{}.toml", std::process::id()))
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // A file named in the text is opened; a device would never end.
    if text.contains("/dev") || text.contains("/proc") || std::fs::write(&*FILE, text).is_err() {
        return;
    }
    match config::load(Some(&FILE), &Overrides::new(), &|_| None) {
        Ok(loaded) => drop(config::diff(&loaded.config, &loaded.config)),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
    if let Ok(imported) = import::import(&FILE) {
        assert!(imported.toml.is_ascii() || !text.is_ascii());
    }
});
