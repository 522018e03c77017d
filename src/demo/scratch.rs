//! A folder of our own for throw-away servers, and the guardian that removes it whatever happens to this process.
//!
//! Nothing here knows about SQL or replication; see `server` and `cluster`.
//!
//! # Why
//!
//! A destructor doesn't run when a process is killed. `PR_SET_PDEATHSIG` would fire when the *thread* that forked
//! ends, which in a test binary is the end of one test. So each folder has a guardian, a shell that waits for the end
//! of a pipe whose other end only this process holds: when this process ends in any way, the guardian stops the
//! servers in the folder and removes it. (A folder that is to be kept has one too, which only stops the servers.)

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use super::DemoError;

/// Waits for end of file, then stops every server below `$1` and, if `$2` is `remove`, removes the folder.
///
/// The working folder of a postmaster is its data folder, which tells a live one from a process that was given the
/// number of a dead one. A postmaster that was killed leaves a System V segment behind (named in the seventh line),
/// of which there can be only a few thousand on a machine. Removal is tried again because a program that was filling
/// the folder when this process was killed goes on for a moment.
const REMOVE_FOLDER: &str = r#"
trap '' HUP INT TERM
read -r line
for pidfile in "$1"/*/data/postmaster.pid; do
    [ -f "$pidfile" ] || continue
    read -r pid < "$pidfile"
    if [ "$(readlink "/proc/$pid/cwd")" != "${pidfile%/postmaster.pid}" ]; then
        ipcrm -m "$(sed -n '7s/.* //p' "$pidfile")"
        continue
    fi
    pkill -CONT -P "$pid"
    kill -CONT "$pid"
    kill -QUIT "$pid"
    tries=0
    while [ -f "$pidfile" ] && [ "$tries" -lt 200 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    [ -f "$pidfile" ] && kill -KILL "$pid"
done
[ "$2" = remove ] || exit 0
tries=0
until rm -rf "$1" || [ "$tries" -ge 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
"#;

/// Waits for end of file, then kills process `$1`.
const KILL_PROCESS: &str = r#"
trap '' HUP INT TERM
read -r line
kill -KILL "$1"
"#;

/// Longest path of a folder that leaves room for `/.s.PGSQL.65535` in a socket address (108 bytes with the NUL).
const FOLDER_PATH_MAX: usize = 92;

/// A shell that acts when this process ends or when it is dropped.
#[derive(Debug)]
pub struct Guardian(Child);

impl Guardian {
    /// Kills `pid` once this process is gone. Keep the guardian only as long as that number is known to be in use.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::start(KILL_PROCESS, &[pid.to_string().as_ref()])
    }

    /// Stops the servers below `path` once this process is gone, and removes it, unless it is to be kept.
    pub fn of_folder(path: &Path, keep: bool) -> io::Result<Self> {
        let fate = if keep { "keep" } else { "remove" };
        Self::start(REMOVE_FOLDER, &[path.as_os_str(), fate.as_ref()])
    }

    fn start(script: &str, arguments: &[&OsStr]) -> io::Result<Self> {
        Command::new("sh")
            .args(["-c", script, "sh"])
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal goes to the foreground group; the guardian must outlive it.
            .process_group(0)
            .spawn()
            .map(Self)
    }

    /// Ends the guardian without letting it act.
    pub fn dismiss(mut self) {
        // A guardian that is gone already needs no dismissal, so neither result matters.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Its work is best effort by nature: nobody is left to be told.
        let _ = self.0.wait();
    }
}

/// A folder that goes when it is dropped, or when this process ends, unless it is kept.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Its drop does the work.
    _guardian: Guardian,
}

impl Folder {
    /// Makes the folder, owned by the account that will run the servers.
    pub(crate) fn create(keep: bool) -> Result<Self, DemoError> {
        let mut base = fs::canonicalize(std::env::temp_dir())?;
        if base.as_os_str().len() + "/pgweir-01234567".len() > FOLDER_PATH_MAX {
            base = PathBuf::from("/tmp");
        }
        let path = loop {
            let path = base.join(format!("pgweir-{:08x}", rand::random::<u32>()));
            match DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => break path,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        };
        let folder = Self {
            _guardian: Guardian::of_folder(&path, keep)?,
            path,
        };
        give_to_account(&folder.path)?;
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The account that runs servers when we are root, because PostgreSQL refuses to run as root.
#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

/// `None` when we are not root and so run servers as ourselves.
fn account() -> Option<Account> {
    static ACCOUNT: OnceLock<Option<Account>> = OnceLock::new();
    *ACCOUNT.get_or_init(|| {
        if id(&["-u"])? != 0 {
            return None;
        }
        ["postgres", "nobody"].into_iter().find_map(|user| {
            Some(Account {
                uid: id(&["-u", user])?,
                gid: id(&["-g", user])?,
            })
        })
    })
}

fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Makes `path` belong to the account that runs the servers.
pub(crate) fn give_to_account(path: &Path) -> io::Result<()> {
    match account() {
        Some(account) => chown(path, Some(account.uid), Some(account.gid)),
        None => Ok(()),
    }
}

/// Has `command` run as the account of the servers, in `folder`, with none of this process's libpq settings.
pub(crate) fn as_account<'c>(command: &'c mut Command, folder: &Path) -> &'c mut Command {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    // Messages in English, so that logs can be searched.
    command.env("LC_ALL", "C.UTF-8").current_dir(folder);
    if let Some(account) = account() {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_when_it_is_dropped() {
        let folder = Folder::create(false).unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        assert!(path.is_dir());
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_kept_folder_stays() {
        let folder = Folder::create(true).unwrap();
        let path = folder.path().to_owned();
        drop(folder);
        assert!(path.is_dir());
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_guardian_removes_a_folder_without_servers() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        let guardian = Guardian::of_folder(folder.path(), false).unwrap();
        assert!(folder.path().is_dir());
        drop(guardian);
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_guardian_kills_its_process_and_a_dismissed_one_does_not() {
        let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
        Guardian::of_process(sleeper.id()).unwrap().dismiss();
        assert!(sleeper.try_wait().unwrap().is_none());
        drop(Guardian::of_process(sleeper.id()).unwrap());
        assert!(!sleeper.wait().unwrap().success());
    }
}
