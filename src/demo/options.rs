//! What a server is to be like, and how it is to stop. Plain values; `server` acts on them.

/// What every configuration adds to `initdb`'s: a scratch server need not survive a power cut.
pub(crate) const SCRATCH_SETTINGS: [(&str, &str); 7] = [
    ("listen_addresses", "127.0.0.1"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    // Inside the data folder, so that a killed server leaves nothing elsewhere.
    ("dynamic_shared_memory_type", "mmap"),
    // One replica's base backup begins with a checkpoint, which would remove WAL that another still copies.
    ("wal_keep_size", "1GB"),
    ("logging_collector", "off"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
];

/// How `stop` ends a server (the modes of `pg_ctl stop`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Rolls back, disconnects clients with 57P01, shuts down cleanly.
    Fast,
    /// Disconnects clients with 57P02 and leaves recovery to the next start.
    Immediate,
}

impl StopMode {
    pub(crate) fn signal(self) -> &'static str {
        match self {
            Self::Smart => "TERM",
            Self::Fast => "INT",
            Self::Immediate => "QUIT",
        }
    }
}

/// What a server is to be like.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Lines of `postgresql.conf`.
    pub settings: Vec<(String, String)>,
    /// Replaces `pg_hba.conf`, after two lines that let `postgres` in over the Unix socket, for this module's own
    /// statements and for replicas. `None` trusts everyone.
    pub hba: Option<String>,
    /// Files put into the data folder, such as a certificate and its key, readable by the server alone.
    pub files: Vec<(String, Vec<u8>)>,
    /// A system identifier of its own, which makes it no relative of this process's other servers; it takes longer.
    pub own_identity: bool,
}

impl ServerOptions {
    /// Adds a setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Replaces `pg_hba.conf` by these lines.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }

    /// Adds a file to the data folder.
    #[must_use]
    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }
}
