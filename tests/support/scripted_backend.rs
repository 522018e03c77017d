//! A fake PostgreSQL server on loopback that logs everyone in and then does exactly what a script says.
//!
//! Each connection runs the script of its own: either steps ([`Step`]) or any async function over
//! [`BackendConnection`], which can look at the startup parameters first to tell a client's connection from a probe.
//! A script whose client goes away stops where it is; one that panics fails the test when the backend is dropped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::messages::{self, CANCEL_REQUEST, GSSENC_REQUEST, Message, SSL_REQUEST};
use super::wait::within_limit;

/// One step of a script.
#[derive(Clone, Debug)]
pub enum Step {
    /// Waits for a message with this tag.
    Expect(u8),
    /// Waits for a simple query or a Parse with this text in it.
    ExpectSql(&'static str),
    /// Sends bytes in one write.
    Send(Vec<u8>),
    /// Sends bytes in writes that end at these offsets, each one a packet of its own.
    SendSplit(Vec<u8>, Vec<usize>),
    /// Answers every query with this value until the client goes.
    AnswerAll(&'static str),
    /// Says nothing more and keeps the connection open.
    Stall,
    /// Ends the connection in order.
    Close,
    /// Ends the connection with RST.
    Reset,
}

/// A running fake server. It stops when dropped, connections included.
pub struct ScriptedBackend {
    address: SocketAddr,
    logins: Arc<AtomicUsize>,
    cancels: Arc<Cancels>,
    /// Scripts that panicked.
    failures: Arc<AtomicUsize>,
    acceptor: JoinHandle<()>,
}

/// One logged-in connection, in the hands of a script.
pub struct BackendConnection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Which login this was, from 0.
    pub number: usize,
    /// What the client sent in its startup packet.
    pub startup: BTreeMap<String, String>,
    /// Its process id as a cancel request begins with it, and the requests so far.
    pid: u32,
    cancels: Arc<Cancels>,
}

/// Cancel requests.
#[derive(Default)]
struct Cancels {
    keys: Mutex<Vec<Vec<u8>>>,
    /// How long their connections stay open, and how many are closed.
    pause: Mutex<Duration>,
    over: AtomicUsize,
}

impl ScriptedBackend {
    /// Every connection runs these steps; after the last one it is closed.
    pub async fn start(steps: Vec<Step>) -> Self {
        let steps = Arc::new(steps);
        Self::start_with(move |mut connection| {
            let steps = Arc::clone(&steps);
            async move { connection.run(&steps).await }
        })
        .await
    }

    /// Every connection runs `script` after its login.
    pub async fn start_with<Script, Run>(script: Script) -> Self
    where
        Script: Fn(BackendConnection) -> Run + Send + Sync + 'static,
        Run: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let logins = Arc::new(AtomicUsize::new(0));
        let cancels = Arc::new(Cancels::default());
        let failures = Arc::new(AtomicUsize::new(0));
        let script = Arc::new(script);
        let shared = (
            Arc::clone(&logins),
            Arc::clone(&cancels),
            Arc::clone(&failures),
        );
        let serve = move |stream| {
            let (logins, cancels, failures) = shared.clone();
            let script = Arc::clone(&script);
            async move {
                let _count = CountPanic(failures);
                if let Some(connection) = log_in(stream, &logins, &cancels).await {
                    script(connection).await;
                }
            }
        };
        let acceptor = pgweir::tasks::spawn("scripted backend", async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream));
            }
        });
        Self {
            address,
            logins,
            cancels,
            failures,
            acceptor,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `--primary`.
    pub fn node_url(&self) -> String {
        format!("postgres://{}", self.address)
    }

    /// How many logins there were so far.
    pub fn logins(&self) -> usize {
        self.logins.load(Ordering::SeqCst)
    }

    /// The keys of the cancel requests so far.
    pub fn cancels(&self) -> Vec<Vec<u8>> {
        self.cancels.keys.lock().unwrap().clone()
    }

    /// The connection of a cancel request is closed this long after it came.
    pub fn hold_cancels(&self, pause: Duration) {
        *self.cancels.pause.lock().unwrap() = pause;
    }
}

impl Drop for ScriptedBackend {
    fn drop(&mut self) {
        self.acceptor.abort();
        let failures = self.failures.load(Ordering::SeqCst);
        assert!(
            failures == 0 || std::thread::panicking(),
            "{failures} scripts of a scripted backend panicked"
        );
    }
}

struct CountPanic(Arc<AtomicUsize>);

impl Drop for CountPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Answers the startup of a connection; `None` if it was a cancel request or went away.
async fn log_in(
    mut stream: TcpStream,
    logins: &AtomicUsize,
    cancels: &Arc<Cancels>,
) -> Option<BackendConnection> {
    stream.set_nodelay(true).unwrap();
    let startup = loop {
        let length = stream.read_u32().await.ok()? as usize;
        let mut body = vec![0; length.checked_sub(4).expect("a startup packet's length")];
        stream.read_exact(&mut body).await.ok()?;
        let (code, rest) = body.split_first_chunk::<4>().expect("a startup code");
        match u32::from_be_bytes(*code) {
            SSL_REQUEST | GSSENC_REQUEST => stream.write_all(b"N").await.ok()?,
            CANCEL_REQUEST => {
                cancels.keys.lock().unwrap().push(rest.to_vec());
                let pause = *cancels.pause.lock().unwrap();
                tokio::time::sleep(pause).await;
                cancels.over.fetch_add(1, Ordering::SeqCst);
                return None;
            }
            _ => break parameters(rest),
        }
    };
    let number = logins.fetch_add(1, Ordering::SeqCst);
    let pid = 1000 + u32::try_from(number).unwrap();
    let mut greeting = messages::authentication_ok();
    for (name, value) in [
        ("server_version", "15.0"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ] {
        greeting.extend(messages::parameter_status(name, value));
    }
    greeting.extend(messages::backend_key_data(pid, &[1, 2, 3, 4]));
    greeting.extend(messages::ready_for_query(b'I'));
    stream.write_all(&greeting).await.ok()?;
    Some(BackendConnection {
        stream,
        buffer: Vec::new(),
        number,
        startup,
        pid,
        cancels: Arc::clone(cancels),
    })
}

fn parameters(body: &[u8]) -> BTreeMap<String, String> {
    let mut strings = body
        .split(|byte| *byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned());
    let mut parameters = BTreeMap::new();
    while let (Some(name), Some(value)) = (strings.next(), strings.next()) {
        if !name.is_empty() {
            parameters.insert(name, value);
        }
    }
    parameters
}

impl BackendConnection {
    /// Runs steps in order.
    pub async fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Expect(tag) => drop(self.expect(*tag).await),
                Step::ExpectSql(sql) => self.expect_sql(sql).await,
                Step::Send(bytes) => self.send(bytes).await,
                Step::SendSplit(bytes, offsets) => self.send_split(bytes, offsets).await,
                Step::AnswerAll(value) => self.answer_all(value).await,
                Step::Stall => std::future::pending().await,
                Step::Close => return,
                Step::Reset => {
                    self.arm_reset();
                    return;
                }
            }
        }
    }

    /// The next message; `None` when the client is gone.
    pub async fn read_message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.take_buffered() {
                return Some(message);
            }
            // No limit here: a script may wait through a whole test, whose own reads have limits.
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    fn take_buffered(&mut self) -> Option<Message> {
        let header = self.buffer.get(..5)?;
        let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
        if self.buffer.len() <= length {
            return None;
        }
        let frame: Vec<u8> = self.buffer.drain(..=length).collect();
        Some(Message {
            tag: frame[0],
            body: frame[5..].to_vec(),
        })
    }

    /// The next message, which must have this tag. If the client is gone instead, the script stops here.
    pub async fn expect(&mut self, tag: u8) -> Message {
        let Some(message) = self.read_message().await else {
            return std::future::pending().await;
        };
        assert_eq!(
            char::from(message.tag),
            char::from(tag),
            "instead came {message:?}"
        );
        message
    }

    /// The next message must be a Query or Parse with `sql` in it.
    pub async fn expect_sql(&mut self, sql: &str) {
        let Some(message) = self.read_message().await else {
            return std::future::pending().await;
        };
        let found = matches!(message.tag, b'Q' | b'P')
            && message.strings().iter().any(|text| text.contains(sql));
        assert!(found, "expected {sql}, instead came {message:?}");
    }

    /// Waits until the client ends the connection.
    pub async fn expect_end(&mut self) {
        while let Some(message) = self.read_message().await {
            assert_eq!(message.tag, b'X', "instead came {message:?}");
        }
    }

    /// Sends bytes in one write; a client that is gone is no error.
    pub async fn send(&mut self, bytes: &[u8]) {
        let write = self.stream.write_all(bytes);
        let _ = within_limit("room to send", write).await;
    }

    /// Sends bytes in writes that end at these offsets.
    pub async fn send_split(&mut self, bytes: &[u8], offsets: &[usize]) {
        let ends = offsets.iter().copied().chain([bytes.len()]);
        let mut start = 0;
        for end in ends {
            self.send(&bytes[start..end]).await;
            start = end;
            // With TCP_NODELAY each write is a packet at once; the pause lets the peer read it alone, which is what
            // is wanted, though nothing depends on it.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Answers every Query, and every batch up to Sync, with `value`, until the client goes.
    pub async fn answer_all(&mut self, value: &str) {
        while let Some(message) = self.read_message().await {
            let reply = match message.tag {
                b'Q' => messages::one_value_reply(value),
                b'P' => messages::frame(b'1', b""),
                b'B' => messages::frame(b'2', b""),
                b'C' => messages::frame(b'3', b""),
                b'D' => describe_reply(&message),
                b'E' => [
                    messages::data_row(&[Some(value)]),
                    messages::command_complete("SELECT 1"),
                ]
                .concat(),
                b'S' => messages::ready_for_query(b'I'),
                b'X' => return,
                _ => Vec::new(),
            };
            self.send(&reply).await;
        }
    }

    /// Cancel requests for this connection so far.
    pub fn canceled(&self) -> usize {
        let pid = self.pid.to_be_bytes();
        let cancels = self.cancels.keys.lock().unwrap();
        cancels.iter().filter(|key| key.starts_with(&pid)).count()
    }

    /// Cancel requests whose connections are closed again, of all connections.
    pub fn cancels_over(&self) -> usize {
        self.cancels.over.load(Ordering::SeqCst)
    }

    /// Makes the end of this connection an RST instead of a FIN: drop it next.
    pub fn arm_reset(&self) {
        let socket = SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}

fn describe_reply(message: &Message) -> Vec<u8> {
    let row = messages::row_description(&["value"]);
    if message.body.first() == Some(&b'S') {
        // A statement's parameters come first: none.
        return [messages::frame(b't', &[0, 0]), row].concat();
    }
    row
}
