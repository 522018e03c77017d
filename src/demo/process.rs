//! Signals and the process table, for servers that are killed and paused. Knows nothing of PostgreSQL.
//!
//! # Why
//!
//! Signals are sent by the shell's own `kill`, which is on every machine: the standard library has no call for them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::DemoError;

/// Longest wait for a signal to take effect.
const SIGNAL_LIMIT: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Sends a signal by its name. A process that is already gone is not an error.
pub(crate) fn signal(name: &str, pids: &[u32]) -> Result<(), DemoError> {
    if !pids.is_empty() {
        Command::new("sh")
            .args(["-c", "signal=$1; shift; kill -s \"$signal\" \"$@\"", "sh"])
            .arg(name)
            .args(pids.iter().map(u32::to_string))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
    }
    Ok(())
}

/// State and parent of a process, from `/proc/PID/stat`.
fn process(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the last parenthesis may itself hold spaces and parentheses.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// Whether it still runs; a zombie does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    process(pid).is_some_and(|(state, _)| state != 'Z')
}

/// The processes whose parent is `parent`.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| process(*pid).is_some_and(|(_, ppid)| ppid == parent))
        .collect()
}

/// Stops a process and returns its children, of which there can then be no more.
pub(crate) fn freeze(parent: u32) -> Result<Vec<u32>, DemoError> {
    signal("STOP", &[parent])?;
    let deadline = Instant::now() + SIGNAL_LIMIT;
    while process(parent).is_some_and(|(state, _)| !matches!(state, 'T' | 'Z')) {
        if Instant::now() > deadline {
            return Err(DemoError::TooLong {
                what: "a process to stop",
                seconds: SIGNAL_LIMIT.as_secs(),
            });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(children(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_and_seen_to_die() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        assert!(is_alive(child.id()));
        signal("KILL", &[child.id()]).unwrap();
        child.wait().unwrap();
        assert!(!is_alive(child.id()));
    }

    #[test]
    fn a_frozen_process_does_not_run_until_it_continues() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(freeze(child.id()).unwrap().is_empty());
        assert_eq!(process(child.id()).map(|(state, _)| state), Some('T'));
        signal("CONT", &[child.id()]).unwrap();
        signal("TERM", &[child.id()]).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
