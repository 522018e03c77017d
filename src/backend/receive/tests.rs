use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use tokio::net::UnixStream;

use super::*;
use crate::backend::connection::Identity;
use crate::config::model::Node;
use crate::net::connect::Encryption;
use crate::net::stream::Stream;
use crate::session::mirror::Mirror;
use crate::wire::frame::put;

/// Puts together what a client would get.
#[derive(Debug, Default)]
struct Recorder {
    pieces: Vec<Result<Range<usize>, Request>>,
    sent: Vec<u8>,
    skipped: usize,
    rows: usize,
}

impl Receiver for Recorder {
    fn relay(&mut self, range: Range<usize>) {
        self.pieces.push(Ok(range));
    }

    fn local(&mut self, request: Request) {
        self.pieces.push(Err(request));
    }

    fn message(&mut self, _: &Backend, received: Received, tag: u8, payload: &[u8]) -> bool {
        if received.owed.to == For::Probe && tag == b::DATA_ROW {
            assert_eq!(b::columns(payload).unwrap().len(), 2);
            self.rows += 1;
        }
        true
    }

    fn skipped(&mut self, _: Owed) {
        self.skipped += 1;
    }
}

/// Some requests with the server's answer to them, and what of it is for the client.
#[derive(Clone, Debug, Default)]
struct Exchange {
    owed: Vec<Owed>,
    answer: Vec<u8>,
    for_client: Vec<u8>,
}

impl Exchange {
    fn owes(mut self, request: Request, to: For) -> Self {
        self.owed.push(Owed::new(request, to));
        self
    }

    fn answers(mut self, tag: u8, body: &[u8], to_client: bool) -> Self {
        let mut frame = Vec::new();
        put(&mut frame, tag, |out| out.extend_from_slice(body));
        self.answer.extend_from_slice(&frame);
        if to_client {
            self.for_client.extend_from_slice(&frame);
        }
        self
    }

    fn answered_here(mut self) -> Self {
        self.for_client.extend_from_slice(&b::CLOSE_COMPLETE_FRAME);
        self
    }

    fn join(mut self, other: &Self) -> Self {
        self.owed.extend(&other.owed);
        self.answer.extend_from_slice(&other.answer);
        self.for_client.extend_from_slice(&other.for_client);
        self
    }
}

fn row() -> impl Strategy<Value = Vec<u8>> {
    let small = prop::collection::vec(any::<u8>(), 0..40);
    // Larger than a frame that is looked at whole.
    let large = (60_000..140_000_usize).prop_map(|len| vec![b'x'; len]);
    prop_oneof![20 => small, 1 => large]
}

fn query() -> impl Strategy<Value = Exchange> {
    prop::collection::vec(row(), 0..4).prop_map(|rows| {
        let begun = Exchange::default()
            .owes(Request::Query, For::Client)
            .answers(b'T', b"\0\0", true);
        let rows = rows
            .iter()
            .fold(begun, |exchange, row| exchange.answers(b'D', row, true));
        rows.answers(b'N', b"SNOTICE\0\0", true)
            .answers(b'C', b"SELECT 1\0", true)
            .answers(b'Z', b"I", true)
    })
}

/// pgweir's own plan and question, of which nothing is the client's but a notification.
fn own() -> impl Strategy<Value = Exchange> {
    any::<bool>().prop_map(|notified| {
        let plan = Exchange::default()
            .owes(Request::Query, For::Plan)
            .answers(b'T', b"\0\0", false)
            .answers(b'S', b"TimeZone\0UTC\0", false)
            .answers(b'D', b"\0\0", false)
            .answers(b'C', b"SELECT 1\0", false)
            .answers(b'Z', b"I", false);
        let asked = plan
            .owes(Request::Query, For::Probe)
            .answers(b'T', b"\0\0", false)
            .answers(b'D', b"\0\x02\0\0\0\x01a\xff\xff\xff\xff", false);
        let asked = if notified {
            asked.answers(b'A', b"\0\0\0\x07channel\0payload\0", true)
        } else {
            asked
        };
        asked
            .answers(b'C', b"SELECT 1\0", false)
            .answers(b'Z', b"I", false)
    })
}

fn extended() -> impl Strategy<Value = Exchange> {
    row().prop_map(|row| {
        Exchange::default()
            .owes(Request::Close, For::Evict)
            .owes(Request::Parse, For::Reparse)
            .owes(Request::Bind, For::Client)
            .owes(Request::Close, For::Local)
            .owes(Request::Execute, For::Client)
            .owes(Request::Sync, For::Client)
            .answers(b'3', b"", false)
            .answers(b'1', b"", false)
            .answers(b'2', b"", true)
            .answered_here()
            .answers(b'D', &row, true)
            .answers(b'C', b"INSERT 0 1\0", true)
            .answers(b'Z', b"I", true)
    })
}

/// A statement of pgweir's fails in place of the client's own.
fn failing() -> impl Strategy<Value = Exchange> {
    prop_oneof![Just(10), Just(1000), Just(100_000)].prop_map(|len| {
        let message = [
            b"SERROR\0VERROR\0C42P01\0M",
            vec![b'm'; len].as_slice(),
            b"\0\0",
        ]
        .concat();
        Exchange::default()
            .owes(Request::Parse, For::Reparse)
            .owes(Request::Bind, For::Client)
            .owes(Request::Close, For::Local)
            .owes(Request::Execute, For::Client)
            .owes(Request::Sync, For::Client)
            .answers(b'E', &message, true)
            .answers(b'Z', b"I", true)
    })
}

fn exchanges() -> impl Strategy<Value = Exchange> {
    let one = prop_oneof![query(), own(), extended(), failing()];
    prop::collection::vec(one, 1..5)
        .prop_map(|all| all.iter().fold(Exchange::default(), Exchange::join))
}

/// A connection to nobody; the other end is kept open beside it.
fn backend(owed: &[Owed]) -> (Backend, UnixStream) {
    let (own, other) = UnixStream::pair().unwrap();
    let node = Node::at("test", 1);
    let identity = Identity::new(node, 1, Vec::new(), Encryption::Plain);
    let mirror = Mirror::new(Arc::default(), 10);
    let mut backend = Backend::new(Stream::Unix(own), identity, mirror, 0);
    for owed in owed {
        backend.expect.push(*owed);
    }
    (backend, other)
}

/// What the client gets if the answer comes in these pieces.
fn relayed(exchange: &Exchange, ends: &[usize]) -> Recorder {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let (mut backend, _other) = backend(&exchange.owed);
    let mut recorder = Recorder::default();
    let mut start = 0;
    for end in ends.iter().copied().chain([exchange.answer.len()]) {
        assert!(start == 0 || !backend.is_at_rest() || start == exchange.answer.len());
        take_in(
            &mut backend,
            &exchange.answer[start..end],
            |backend, input| {
                let used = receive(backend, input, &mut recorder)?;
                for piece in std::mem::take(&mut recorder.pieces) {
                    match piece {
                        Ok(range) => recorder.sent.extend_from_slice(&input[range]),
                        Err(_) => recorder.sent.extend_from_slice(&b::CLOSE_COMPLETE_FRAME),
                    }
                }
                Ok::<_, ReceiveError>(used)
            },
        )
        .unwrap();
        start = end;
    }
    assert!(backend.is_clean(), "{backend:?}");
    recorder
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_client_gets_the_same_bytes_however_they_came(
        exchange in exchanges(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(exchange.answer.len())).collect();
        ends.sort_unstable();
        let whole = relayed(&exchange, &[]);
        let pieces = relayed(&exchange, &ends);
        prop_assert!(whole.sent == exchange.for_client, "whole");
        prop_assert!(pieces.sent == exchange.for_client, "in pieces at {:?}", ends);
        prop_assert_eq!((whole.skipped, whole.rows), (pieces.skipped, pieces.rows));
    }

    #[test]
    fn no_bytes_of_a_server_panic(
        exchange in exchanges(),
        garbage in prop::collection::vec(any::<u8>(), 0..60),
        at in any::<prop::sample::Index>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _entered = runtime.enter();
        let (mut backend, _other) = backend(&exchange.owed);
        let at = at.index(exchange.answer.len());
        let bytes = [&exchange.answer[..at], &garbage, &exchange.answer[at..]].concat();
        for piece in bytes.chunks(97) {
            let taken = take_in(&mut backend, piece, |backend, input| receive(backend, input, &mut Discard));
            if taken.is_err() {
                break;
            }
        }
    }
}

#[test]
fn every_single_cut_of_an_exchange_is_the_same() {
    let exchange = Exchange::default()
        .owes(Request::Parse, For::Client)
        .owes(Request::DescribeStatement, For::Client)
        .owes(Request::Sync, For::Client)
        .owes(Request::Query, For::Probe)
        .owes(Request::Query, For::Client)
        .answers(b'1', b"", true)
        .answers(b't', b"\0\0", true)
        .answers(b'n', b"", true)
        .answers(b'Z', b"T", true)
        .answers(b'D', b"\0\x02\0\0\0\x01a\0\0\0\x01b", false)
        .answers(b'C', b"SELECT 1\0", false)
        .answers(b'Z', b"T", false)
        .answers(b'S', b"TimeZone\0CET\0", true)
        .answers(b'E', b"SERROR\0C22012\0\0", true)
        .answers(b'Z', b"I", true);
    for cut in 0..=exchange.answer.len() {
        let recorder = relayed(&exchange, &[cut]);
        assert_eq!(recorder.sent, exchange.for_client, "cut at {cut}");
        assert_eq!(recorder.rows, 1);
    }
}

#[test]
fn a_server_that_says_more_than_was_asked_is_not_believed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    for bytes in [
        &b"D\0\0\0\x06\0\0"[..],
        b"Z\0\0\0\x05I",
        b"E\0\0\0\x15SERROR\0C22012\0\0\0\0",
    ] {
        let (mut backend, _other) = backend(&[]);
        let received = receive(&mut backend, bytes, &mut Discard);
        assert!(
            matches!(received, Err(ReceiveError::Unexpected(_))),
            "{bytes:?}"
        );
    }
    // But for its last words.
    let (mut backend, _other) = backend(&[]);
    let mut recorder = Recorder::default();
    let fatal = b"E\0\0\0\x14SFATAL\0C57P01\0\0\0";
    receive(&mut backend, fatal, &mut recorder).unwrap();
    assert_eq!(recorder.pieces, [Ok(0..fatal.len())]);
}

#[test]
fn a_backend_whose_server_said_goodbye_behind_the_answer_is_not_clean() {
    let answer = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let goodbye = b"E\0\0\0\x14SFATAL\0C57P01\0\0\0";
    for (behind, is_clean) in [(&b""[..], true), (&goodbye[..], false)] {
        let (mut backend, _other) = backend(&[Owed::new(Request::Query, For::Client)]);
        let input = [answer, behind].concat();
        assert_eq!(
            receive(&mut backend, &input, &mut Discard).unwrap(),
            input.len()
        );
        assert!(backend.is_at_rest());
        assert_eq!(backend.is_clean(), is_clean);
    }
}
