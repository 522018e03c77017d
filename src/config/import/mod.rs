//! `pgweir import`: a `pgbouncer.ini` in, the TOML that does the same out, with a note for all that is not the same.
//!
//! Nothing is dropped in silence: every setting of the ini is written, or named in a note with the reason. PgBouncer's
//! defaults are written where pgweir's differ. Passwords that stand in the ini stand in the TOML; no note shows one.

pub mod console;
mod convert;
mod ini;
mod output;
mod servers;
mod settings;
mod values;

use std::path::{Path, PathBuf};

/// The result of an import.
#[derive(Debug, Clone)]
pub struct Imported {
    /// A whole configuration file, the notes as comments at its top.
    pub toml: String,
    /// What was not carried over, or is not the same.
    pub notes: Vec<String>,
}

/// Why an ini can't be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("can't read {}: {error}", file.display())]
    Read {
        file: PathBuf,
        error: std::io::ErrorKind,
    },
    #[error("{}:{line}: {message}", file.display())]
    Syntax {
        file: PathBuf,
        line: usize,
        message: &'static str,
    },
}

/// Converts the `pgbouncer.ini` at `path` with everything it includes.
pub fn import(path: &Path) -> Result<Imported, ImportError> {
    let lines = ini::read(path)?;
    let output = convert::convert(path, &lines)?;
    Ok(Imported {
        toml: output.render(path),
        notes: output.notes().to_vec(),
    })
}

#[cfg(test)]
mod tests;
