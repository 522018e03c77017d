//! One HTTP/1.1 request to a collector, by a thread that may block.
//!
//! # Why by hand
//! One method, one header that matters and a status line to read: less than the configuration of a client library, and
//! every step of it has a limit in time.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use thiserror::Error;

use crate::config::model::HttpUrl;

/// For connecting, and for each write and read.
const LIMIT: Duration = Duration::from_secs(5);

/// How much of an answer is read.
const ANSWER_MAX: u64 = 4096;

/// Why a collector did not take a request.
#[derive(Debug, Error)]
pub(super) enum PostError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the collector answered {0:?}")]
    Refused(String),
}

/// Sends `body` and waits for the answer.
pub(super) fn post(url: &HttpUrl, body: &str) -> Result<(), PostError> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let mut stream = None;
    for address in (url.host.as_str(), url.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, LIMIT) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(error) => last = error,
        }
    }
    let mut stream = stream.ok_or(last)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        url.path,
        url.authority(),
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_MAX).read_to_end(&mut answer);
    let line = answer
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    if line
        .split(' ')
        .nth(1)
        .is_some_and(|status| status.starts_with('2'))
    {
        return Ok(());
    }
    // A collector that has answered may close as it likes.
    if line.is_empty() {
        read?;
    }
    Err(PostError::Refused(line.chars().take(100).collect()))
}
