//! HTTP from the test's side: requests with any headers, and streams of events.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::wait::LIMIT;

/// A reply, taken apart.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// The lines of the head, as they came.
    pub head: String,
    pub body: String,
}

impl Reply {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Self {
            status: status.expect("a status"),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    /// The value of a header, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}\n{}", self.head, self.body);
        serde_json::from_str(&self.body).unwrap()
    }
}

fn send(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        request.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// GETs `path`; `Host` is `localhost` unless given.
#[track_caller]
pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut text = String::new();
    send(address, path, headers)
        .read_to_string(&mut text)
        .unwrap();
    Reply::parse(&text)
}

/// A reader of server-sent events.
pub struct Events {
    stream: BufReader<TcpStream>,
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

impl Events {
    /// Opens `/events`; the head of the reply must be a stream's.
    #[track_caller]
    pub fn open(address: SocketAddr, headers: &[(&str, &str)]) -> Self {
        let mut stream = BufReader::new(send(address, "/events", headers));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        Self { stream }
    }

    /// The next event; `None` at the end of the stream.
    pub fn next(&mut self) -> Option<Event> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            // Lines between are the lengths and ends of chunks.
            if let Some(event) = line.strip_prefix("event: ") {
                event.trim().clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(data).unwrap();
                return Some(Event { name, data });
            }
        }
    }

    /// The next event called `name`.
    #[track_caller]
    pub fn next_of(&mut self, name: &str) -> Value {
        loop {
            let event = self.next().expect("an event");
            if event.name == name {
                return event.data;
            }
        }
    }
}
