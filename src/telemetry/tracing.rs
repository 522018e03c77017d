//! The log: to stderr, as text or JSON, a line for each event whatever clients call themselves.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::config::model::{Log, LogFormat};

/// Replaces the filter of the log in use.
type Reload = Box<dyn Fn(EnvFilter) + Send + Sync>;

static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Writes each event as one line: a name or a message of a server that has line ends in it forges no second one. JSON
/// has none but the last.
#[derive(Debug)]
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    /// `line` is a whole event, as the subscriber writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (text, end) = match line.strip_suffix(b"\n") {
            Some(text) => (text, &b"\n"[..]),
            None => (line, &b""[..]),
        };
        if text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            self.0.write_all(&[&escape(text), end].concat())?;
        } else {
            self.0.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn escape(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len() + 8);
    for byte in text {
        match byte {
            b'\n' => escaped.extend_from_slice(b"\\n"),
            b'\r' => escaped.extend_from_slice(b"\\r"),
            byte => escaped.push(*byte),
        }
    }
    escaped
}

fn filter(log: &Log) -> EnvFilter {
    EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Sets up the log. A second call in the same process does nothing.
pub fn init(log: &Log) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(log))
        .with_writer(|| OneLine(io::stderr()));
    match log.format {
        LogFormat::Text => {
            let builder = builder
                .with_ansi(io::stderr().is_terminal())
                .with_target(false)
                .with_filter_reloading();
            let handle = builder.reload_handle();
            if builder.try_init().is_ok() {
                // It fails only for a log that is gone, which has nothing to filter.
                keep(Box::new(move |filter| drop(handle.reload(filter))));
            }
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            if builder.try_init().is_ok() {
                // As above.
                keep(Box::new(move |filter| drop(handle.reload(filter))));
            }
        }
    }
}

fn keep(reload: Reload) {
    // `init` succeeds once in a process.
    let _ = RELOAD.set(reload);
}

/// Takes over a changed level.
pub fn reload(log: &Log) {
    if let Some(reload) = RELOAD.get() {
        reload(filter(log));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_client_calls_itself_is_no_line_of_its_own() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || OneLine(writer.clone()))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let name = "web\r\n2026-01-01 INFO forged";
            let user = "bob database=other";
            tracing::info!(error = %name, user, "closing a client: {name}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches(['\n', '\r']).count(), 1, "{text}");
        assert!(text.ends_with('\n'), "{text}");
        assert!(
            text.contains("closing a client: web\\r\\n2026-01-01 INFO forged"),
            "{text}"
        );
        assert!(text.contains("user=\"bob database=other\""), "{text}");
    }
}
