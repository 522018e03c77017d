//! How many descriptors, and so connections, the process may have.
//!
//! # Why it is raised
//! Most systems start programs with a soft limit of 1,024, for the sake of select(2), which nothing here uses; a pooler
//! needs one descriptor for each client. The hard limit is the operator's.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the process's limit as far as it may; returns what it is then.
pub fn raise() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    // Where that is forbidden the limit stays as it was.
    let _ = setrlimit(Resource::Nofile, all);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
