//! The queue against a small model of a server: whatever a client pipelines, wherever it fails, each answer is paired
//! with the request it answers, the client sees what it would see without pgweir, and a backend that is called at
//! rest owes nothing.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::*;

/// What a statement does on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Statement {
    Rows(u8),
    Command,
    Empty,
    Fails,
    CopyOut(u8),
    CopyIn,
}

/// A message of the client, or of pgweir among them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    Parse {
        ok: bool,
    },
    Bind {
        ok: bool,
    },
    DescribeStatement {
        ok: bool,
    },
    DescribePortal {
        ok: bool,
    },
    Execute(Statement),
    Close,
    /// One that pgweir answers itself.
    LocalClose,
    Sync {
        ok: bool,
    },
    Flush,
    Query(Vec<Statement>),
    FunctionCall {
        ok: bool,
    },
    CopyData {
        ok: bool,
    },
    CopyDone,
    CopyFail,
    /// pgweir's own, after a Sync or Query.
    Probe,
}

impl Message {
    fn owed(&self, id: u64) -> Option<Owed> {
        let request = match self {
            Self::Parse { .. } => Request::Parse,
            Self::Bind { .. } => Request::Bind,
            Self::DescribeStatement { .. } => Request::DescribeStatement,
            Self::DescribePortal { .. } => Request::DescribePortal,
            Self::Execute(_) => Request::Execute,
            Self::Close | Self::LocalClose => Request::Close,
            Self::Sync { .. } => Request::Sync,
            Self::Query(_) | Self::Probe => Request::Query,
            Self::FunctionCall { .. } => Request::FunctionCall,
            Self::CopyDone | Self::CopyFail => Request::CopyEnd,
            Self::Flush | Self::CopyData { .. } => return None,
        };
        let to = match self {
            Self::LocalClose => For::Local,
            Self::Probe => For::Probe,
            _ => For::Client,
        };
        Some(Owed {
            statement: id,
            ..Owed::new(request, to)
        })
    }
}

/// An answer: its type, and the request it is for.
type Answer = (u8, u64);

/// A COPY FROM STDIN under way: whose, and what is left of its query.
#[derive(Clone, Debug)]
struct Copying {
    id: u64,
    extended: bool,
    rest: Vec<Statement>,
}

#[derive(Clone, Debug, Default)]
struct Server {
    skipping: bool,
    open: bool,
    copying: Option<Copying>,
    answers: VecDeque<Answer>,
}

impl Server {
    fn is_idle(&self) -> bool {
        !self.skipping && !self.open && self.copying.is_none() && self.answers.is_empty()
    }

    fn answer(&mut self, tags: &[u8], id: u64) {
        self.answers.extend(tags.iter().map(|tag| (*tag, id)));
    }

    fn fail(&mut self, id: u64, extended: bool) {
        self.answer(b"E", id);
        if extended {
            self.skipping = true;
        } else {
            self.ready(id);
        }
    }

    fn ready(&mut self, id: u64) {
        self.open = false;
        self.answer(b"Z", id);
    }

    fn run(&mut self, mut statements: VecDeque<Statement>, id: u64, extended: bool) {
        while let Some(statement) = statements.pop_front() {
            match statement {
                Statement::Rows(rows) => {
                    if !extended {
                        self.answer(b"T", id);
                    }
                    self.answer(&vec![b'D'; rows.into()], id);
                    self.answer(b"C", id);
                }
                Statement::Command => self.answer(b"NSC", id),
                Statement::Empty => self.answer(b"I", id),
                Statement::Fails => return self.fail(id, extended),
                Statement::CopyOut(rows) => {
                    self.answer(b"H", id);
                    self.answer(&vec![b'd'; rows.into()], id);
                    self.answer(b"cC", id);
                }
                Statement::CopyIn => {
                    self.answer(b"G", id);
                    self.copying = Some(Copying {
                        id,
                        extended,
                        rest: statements.into(),
                    });
                    return;
                }
            }
        }
        if !extended {
            self.ready(id);
        }
    }

    fn copy(&mut self, message: &Message) {
        let ends = matches!(
            message,
            Message::CopyData { ok: false } | Message::CopyDone | Message::CopyFail
        );
        if !ends {
            return;
        }
        let Some(Copying { id, extended, rest }) = self.copying.take() else {
            return;
        };
        if *message == Message::CopyDone {
            self.answer(b"C", id);
            self.run(rest.into(), id, extended);
        } else {
            self.fail(id, extended);
        }
    }

    fn take(&mut self, id: u64, message: &Message) {
        if self.copying.is_some() {
            return self.copy(message);
        }
        if self.skipping && !matches!(message, Message::Sync { .. }) {
            return;
        }
        let mut step = |ok: bool, tags: &[u8]| {
            self.open = true;
            if ok {
                self.answer(tags, id);
            } else {
                self.fail(id, true);
            }
        };
        match message {
            Message::Parse { ok } => step(*ok, b"1"),
            Message::Bind { ok } => step(*ok, b"2"),
            Message::DescribeStatement { ok } => step(*ok, b"tT"),
            Message::DescribePortal { ok } => step(*ok, b"n"),
            Message::Close | Message::LocalClose => step(true, b"3"),
            Message::Execute(statement) => {
                self.open = true;
                self.run([*statement].into(), id, true);
            }
            Message::Sync { ok } => {
                // The commit at a Sync may fail.
                if !ok && !self.skipping {
                    self.answer(b"E", id);
                }
                self.skipping = false;
                self.ready(id);
            }
            Message::Query(statements) => self.run(statements.clone().into(), id, false),
            Message::Probe => self.run([Statement::Rows(1)].into(), id, false),
            Message::FunctionCall { ok } => {
                if *ok {
                    self.answer(b"V", id);
                    self.ready(id);
                } else {
                    self.fail(id, false);
                }
            }
            Message::Flush | Message::CopyData { .. } | Message::CopyDone | Message::CopyFail => {}
        }
    }
}

/// Everything a client without pgweir sees.
fn direct(messages: &[Message]) -> Vec<Answer> {
    let mut server = Server::default();
    for (id, message) in (1..).zip(messages) {
        if *message != Message::Probe {
            server.take(id, message);
        }
    }
    server.answers.into()
}

/// A client's messages through the queue, at some pace.
struct Relay<'a> {
    to_send: VecDeque<(u64, &'a Message)>,
    on_the_way: VecDeque<(u64, &'a Message)>,
    server: Server,
    expect: Expect,
    seen: Vec<Answer>,
}

impl<'a> Relay<'a> {
    fn new(messages: &'a [Message]) -> Self {
        Self {
            to_send: (1..).zip(messages).collect(),
            on_the_way: VecDeque::new(),
            server: Server::default(),
            expect: Expect::default(),
            seen: Vec::new(),
        }
    }

    fn send(&mut self) -> bool {
        let Some((id, message)) = self.to_send.pop_front() else {
            return false;
        };
        if let Some(owed) = message.owed(id) {
            self.expect.push(owed);
        }
        if *message != Message::LocalClose {
            self.on_the_way.push_back((id, message));
        }
        self.take_locals();
        true
    }

    fn serve(&mut self) -> bool {
        let Some((id, message)) = self.on_the_way.pop_front() else {
            return false;
        };
        self.server.take(id, message);
        true
    }

    /// As `backend::receive` does.
    fn receive(&mut self) -> bool {
        let Some((tag, id)) = self.server.answers.pop_front() else {
            return false;
        };
        if tag == b::READY_FOR_QUERY && self.expect.is_skipping() {
            self.expect.skip_to_sync(|_| {});
        }
        let received = self.expect.receive(tag).unwrap_or_else(|error| {
            panic!(
                "{error}: {:?} for {id} in {:?}",
                char::from(tag),
                self.expect
            )
        });
        assert_eq!(received.owed.statement, id, "{}", char::from(tag));
        if received.owed.to == For::Client {
            self.seen.push((tag, id));
        }
        if tag == b::ERROR_RESPONSE {
            self.expect.skip_to_sync(|_| {});
        }
        self.take_locals();
        true
    }

    fn take_locals(&mut self) {
        while let Some(front) = self.expect.front() {
            if self.expect.take_local().is_none() {
                return;
            }
            self.seen.push((b::CLOSE_COMPLETE, front.statement));
        }
    }

    /// At rest means that another client could have the backend now.
    fn check(&self) {
        if self.expect.is_at_rest() {
            let ignored = |message: &Message| {
                message
                    .owed(0)
                    .is_none_or(|owed| owed.request == Request::CopyEnd)
            };
            assert!(
                self.server.is_idle()
                    && self.on_the_way.iter().all(|(_, message)| ignored(message)),
                "at rest with {:?} and {:?} on the way",
                self.server,
                self.on_the_way
            );
        }
    }

    fn run(mut self, pace: &[u8]) -> Vec<Answer> {
        for step in pace {
            match step % 3 {
                0 => self.send(),
                1 => self.serve(),
                _ => self.receive(),
            };
            self.check();
        }
        while self.receive() || self.serve() || self.send() {
            self.check();
        }
        assert!(self.expect.is_at_rest(), "{:?}", self.expect);
        self.seen
    }
}

fn statement() -> impl Strategy<Value = Statement> {
    prop_oneof![
        (0..4u8).prop_map(Statement::Rows),
        Just(Statement::Command),
        Just(Statement::Empty),
        Just(Statement::Fails),
        (0..3u8).prop_map(Statement::CopyOut),
    ]
}

fn mostly_ok() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.85)
}

fn step() -> impl Strategy<Value = Vec<Message>> {
    let one = prop_oneof![
        mostly_ok().prop_map(|ok| Message::Parse { ok }),
        mostly_ok().prop_map(|ok| Message::Bind { ok }),
        mostly_ok().prop_map(|ok| Message::DescribeStatement { ok }),
        mostly_ok().prop_map(|ok| Message::DescribePortal { ok }),
        statement().prop_map(Message::Execute),
        Just(Message::Close),
        Just(Message::LocalClose),
        Just(Message::Flush),
        mostly_ok().prop_map(|ok| Message::Sync { ok }),
        mostly_ok().prop_map(|ok| Message::FunctionCall { ok }),
        // Out of place outside COPY, which servers accept.
        Just(Message::CopyData { ok: true }),
        Just(Message::CopyDone),
        Just(Message::CopyFail),
        prop::collection::vec(statement(), 0..3).prop_map(Message::Query),
    ];
    let asked = mostly_ok().prop_map(|ok| vec![Message::Sync { ok }, Message::Probe]);
    let queried = prop::collection::vec(statement(), 0..3)
        .prop_map(|statements| vec![Message::Query(statements)]);
    prop_oneof![8 => one.prop_map(|message| vec![message]), 2 => asked, 1 => queried, 3 => copy_in()]
}

/// A COPY FROM STDIN with its data sent at once, as pipelining clients do: the Sync before it, if any, is read in
/// COPY mode.
fn copy_in() -> impl Strategy<Value = Vec<Message>> {
    let data = prop::collection::vec(mostly_ok().prop_map(|ok| Message::CopyData { ok }), 0..3);
    let end = prop_oneof![3 => Just(Message::CopyDone), 1 => Just(Message::CopyFail)];
    let before = prop::collection::vec(statement(), 0..2);
    let after = prop::collection::vec(statement(), 0..2);
    let simple = (before, after).prop_map(|(before, after)| {
        vec![Message::Query(
            [before, vec![Statement::CopyIn], after].concat(),
        )]
    });
    let extended = (any::<bool>(), mostly_ok()).prop_map(|(synced, ok)| {
        let bind = Message::Bind { ok };
        let mut messages = vec![bind, Message::Execute(Statement::CopyIn)];
        messages.extend(synced.then_some(Message::Sync { ok: true }));
        messages
    });
    let start = prop_oneof![simple, extended.prop_map(Vec::from)];
    (start, data, end).prop_map(|(start, data, end)| [start, data, vec![end]].concat())
}

/// Messages that end with a Sync, so that the exchange has an end.
fn messages() -> impl Strategy<Value = Vec<Message>> {
    prop::collection::vec(step(), 1..12).prop_map(|steps| {
        let mut messages = steps.concat();
        messages.push(Message::Sync { ok: true });
        messages
    })
}

/// A skipped question is asked again by the session; the model does not.
fn probes_are_answered(messages: &[Message]) -> bool {
    let mut server = Server::default();
    messages.iter().all(|message| {
        let is_asked = *message != Message::Probe || server.is_idle();
        server.take(0, message);
        server.answers.clear();
        is_asked
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn every_answer_meets_its_request(
        messages in messages(),
        pace in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        prop_assume!(probes_are_answered(&messages));
        let relay = Relay::new(&messages);
        prop_assert_eq!(relay.run(&pace), direct(&messages));
    }

    #[test]
    fn no_sequence_of_answers_panics(
        messages in messages(),
        answers in prop::collection::vec(prop::sample::select(&b"123CDEGHINSTVWZcdnstA"[..]), 0..40),
    ) {
        let mut expect = Expect::default();
        let mut answers = answers.into_iter();
        for (id, message) in (1..).zip(&messages) {
            if let Some(owed) = message.owed(id) {
                expect.push(owed);
            }
            if let Some(tag) = answers.next() {
                let refused = expect.receive(tag).is_err();
                expect.skip_to_sync(|_| {});
                while expect.take_local().is_some() {}
                if refused {
                    break;
                }
            }
        }
    }
}
