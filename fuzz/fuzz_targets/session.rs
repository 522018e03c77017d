//! The state of a server connection: requests are noted and bytes of the server come in, in any order and any pieces.
//! Whatever happens, nothing panics, no byte is relayed that did not come, and a connection that is called clean
//! believes nobody who speaks unasked.

#![no_main]

use std::ops::Range;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use pgweir::backend::connection::{Backend, Identity};
use pgweir::backend::receive::{self, ReceiveError, Receiver};
use pgweir::config::model::Node;
use pgweir::net::connect::Encryption;
use pgweir::net::stream::Stream;
use pgweir::session::mirror::Mirror;
use pgweir::wire::expect::{For, Owed, Received, Request};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
}

const REQUESTS: [Request; 10] = [
    Request::Query,
    Request::FunctionCall,
    Request::Parse,
    Request::Bind,
    Request::DescribeStatement,
    Request::DescribePortal,
    Request::Execute,
    Request::Close,
    Request::Sync,
    Request::CopyEnd,
];

const TO: [For; 8] = [
    For::Client,
    For::Plan,
    For::Reparse,
    For::Evict,
    For::Refusal,
    For::Shape,
    For::Probe,
    For::Local,
];

const TAGS: &[u8] = b"123CDEGHIKNRSTVWZcdnstvA";

#[derive(Default)]
struct Ranges(Vec<Range<usize>>);

impl Receiver for Ranges {
    fn relay(&mut self, range: Range<usize>) {
        self.0.push(range);
    }
    fn local(&mut self, _: Request) {}
    fn message(&mut self, _: &Backend, received: Received, _: u8, _: &[u8]) -> bool {
        matches!(received.owed.to, For::Client | For::Refusal)
    }
    fn skipped(&mut self, _: Owed) {}
}

fn feed(backend: &mut Backend, bytes: &[u8]) -> Result<(), ReceiveError> {
    receive::take_in(backend, bytes, |backend, input| {
        let mut ranges = Ranges::default();
        let used = receive::receive(backend, input, &mut ranges)?;
        let mut at = 0;
        for range in ranges.0 {
            assert!(at <= range.start && range.end <= used && used <= input.len());
            at = range.end;
        }
        Ok(used)
    })
}

fn backend() -> Option<(Backend, UnixStream)> {
    let (own, other) = UnixStream::pair().ok()?;
    let node = Node::at("", 1);
    let identity = Identity::new(node, 1, Vec::new(), Encryption::Plain);
    let mirror = Mirror::new(Arc::default(), 4);
    Some((Backend::new(Stream::Unix(own), identity, mirror, 0), other))
}

fn run(data: &[u8]) {
    let Some((mut backend, _other)) = backend() else {
        return;
    };
    let mut rest = data;
    while let [op, a, tail @ ..] = rest {
        rest = tail;
        let fed = match op % 4 {
            0 => {
                let request = REQUESTS[usize::from(*a) % REQUESTS.len()];
                let to = TO[usize::from(op / 4) % TO.len()];
                backend.expect.push(Owed {
                    statement: u64::from(a / 16),
                    ..Owed::new(request, to)
                });
                Ok(())
            }
            1 => {
                let count = usize::from(*a).min(rest.len());
                let (bytes, tail) = rest.split_at(count);
                rest = tail;
                feed(&mut backend, bytes)
            }
            // A frame as it should be, with whatever in it.
            _ => {
                let count = usize::from(op / 4).min(rest.len());
                let (body, tail) = rest.split_at(count);
                rest = tail;
                let length = u32::try_from(count + 4).unwrap_or(4).to_be_bytes();
                let tag = TAGS[usize::from(*a) % TAGS.len()];
                feed(&mut backend, &[&[tag], &length[..], body].concat())
            }
        };
        if fed.is_err() {
            return;
        }
    }
    if backend.is_clean() {
        assert!(feed(&mut backend, b"D\0\0\0\x04").is_err(), "a row that nobody asked for");
    }
}

fuzz_target!(|data: &[u8]| {
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        run(data);
    });
});
