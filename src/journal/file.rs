//! A file that lines are appended to, rotated by whoever likes: moved away, and a new one is begun; cut off, and the
//! next line is its first.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// Time between two lines in the log about a file that can't be written.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);

/// How often it is looked whether the file is still in its place.
const CHECK_PERIOD: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Target {
    open: Option<Open>,
    complained: Option<Instant>,
    /// What was last written ended in the middle of a line.
    torn: bool,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    checked: Instant,
}

impl Target {
    /// Appends a line, without its end. False if that was not possible.
    pub(super) fn write(&mut self, path: &Path, line: &str) -> bool {
        match self.try_write(path, line) {
            Ok(()) => true,
            Err(error) => {
                self.complain(path, &error);
                // What is wrong with the file may be set right in another one of its name.
                self.open = None;
                false
            }
        }
    }

    /// Nothing is to be written: a file that was moved away is let go of.
    pub(super) fn rest(&mut self) {
        if self.open.as_ref().is_some_and(|open| !open.is_in_place()) {
            self.open = None;
        }
    }

    fn try_write(&mut self, path: &Path, line: &str) -> io::Result<()> {
        let now = Instant::now();
        let stays = self.open.as_mut().is_some_and(|open| {
            open.path == path
                && (now.saturating_duration_since(open.checked) < CHECK_PERIOD || {
                    open.checked = now;
                    open.is_in_place()
                })
        });
        if !stays {
            self.open = Some(Open::new(path, now)?);
        }
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let mut bytes = Vec::with_capacity(line.len() + 2);
        if self.torn {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        // A line goes out in one write, so that lines of several processes in one file stay whole.
        let written = open.file.write(&bytes)?;
        self.torn = written < bytes.len() && written > 0;
        if self.torn {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn complain(&mut self, path: &Path, error: &io::Error) {
        let now = Instant::now();
        let lately = self
            .complained
            .is_some_and(|at| now.saturating_duration_since(at) < COMPLAINT_PERIOD);
        if !lately {
            self.complained = Some(now);
            tracing::error!(path = %path.display(), %error, "could not write; such lines are counted as dropped");
        }
    }
}

impl Open {
    fn new(path: &Path, now: Instant) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            checked: now,
        })
    }

    fn is_in_place(&self) -> bool {
        let (Ok(own), Ok(there)) = (self.file.metadata(), std::fs::metadata(&self.path)) else {
            return false;
        };
        (own.dev(), own.ino()) == (there.dev(), there.ino())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_the_file_that_has_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut target = Target::default();
        assert!(target.write(&path, "one"));
        let moved = folder.path().join("log.1");
        std::fs::rename(&path, &moved).unwrap();
        target.rest();
        assert!(target.write(&path, "two"));
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        assert!(target.write(&path, "three"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_full_disk_fails_and_does_no_harm() {
        let mut target = Target::default();
        assert!(!target.write(Path::new("/dev/full"), "line"));
        assert!(!target.write(Path::new("/no/such/folder/log"), "line"));
        assert!(target.write(Path::new("/dev/null"), "line"));
    }
}
