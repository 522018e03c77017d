//! PostgreSQL's programs run as the servers' account, and the empty cluster that every new server is a copy of.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::DemoError;
use super::binaries::binaries;
use super::scratch::{Folder, as_account};
use super::server::SUPERUSER;

/// Runs a program of PostgreSQL's as the servers' account to its end.
pub(crate) fn run(command: &mut Command, folder: &Path) -> Result<(), DemoError> {
    let output = as_account(command, folder).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(DemoError::Program {
        program: command.get_program().to_string_lossy().into_owned(),
        status: output.status.to_string(),
        errors: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Copies an empty cluster, made once in this process, to `data`.
pub(crate) fn copy_template(data: &Path) -> Result<(), DemoError> {
    static TEMPLATE: Mutex<Option<Folder>> = Mutex::new(None);
    let mut template = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = match template.take() {
        Some(folder) => folder,
        None => make_template()?,
    };
    let folder = template.insert(folder);
    let source = folder.path().join("template");
    run(
        Command::new("cp").arg("-R").arg(&source).arg(data),
        folder.path(),
    )
}

fn make_template() -> Result<Folder, DemoError> {
    let folder = Folder::create(false)?;
    initialise(&folder.path().join("template"), folder.path())?;
    Ok(folder)
}

/// Makes an empty cluster with a system identifier of its own at `data`.
pub(crate) fn initialise(data: &Path, folder: &Path) -> Result<(), DemoError> {
    run(
        Command::new(binaries()?.join("initdb"))
            .args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--auth=trust", "--username", SUPERUSER, "--pgdata"])
            .arg(data),
        folder,
    )
}
