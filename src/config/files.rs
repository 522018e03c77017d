//! The files that a configuration names: passwords are read, the others only opened to see that they can be.

use std::path::{Path, PathBuf};

use super::decode::{Reader, Setting};
use super::model::Secret;

/// A password, given or in a file.
pub(super) fn secret(
    password: &Setting<Option<Secret>>,
    password_key: &str,
    file: &Setting<Option<PathBuf>>,
    file_key: &str,
    reader: &mut Reader<'_>,
) -> Option<Secret> {
    let Some(path) = &file.value else {
        return password.value.clone();
    };
    if password.value.is_some() {
        reader.problem(
            file.at.as_ref(),
            file_key,
            format!("can't be given together with {password_key}"),
        );
    }
    match read_secret(path) {
        Ok(secret) => Some(secret),
        Err(message) => {
            reader.problem(file.at.as_ref(), file_key, message);
            None
        }
    }
}

/// The file's first line. An editor's line end is no part of a password; a second line is a mistake.
fn read_secret(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    if line.contains(['\n', '\0']) {
        return Err(format!("{} holds more than one line", path.display()));
    }
    Ok(Secret::new(line.to_owned()))
}

/// Reports a file that can't be read.
pub(super) fn readable(setting: &Setting<Option<PathBuf>>, key: &str, reader: &mut Reader<'_>) {
    let Some(path) = &setting.value else {
        return;
    };
    let opened = std::fs::File::open(path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_dir() => {
            let message = format!("{} is a folder", path.display());
            reader.problem(setting.at.as_ref(), key, message);
        }
        Ok(_) => {}
        Err(error) => reader.problem(setting.at.as_ref(), key, unreadable(path, &error)),
    }
}

/// Why a file can't be read, in the words of the standard library's error kinds, which are the same everywhere.
pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("can't read {}: {}", path.display(), error.kind())
}
