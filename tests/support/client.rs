//! A client that speaks the protocol byte by byte: it can send anything, at any time, in any pieces.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;

use base64::Engine as _;
use postgres_protocol::authentication::{
    md5_hash,
    sasl::{ChannelBinding, ScramSha256},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::messages::{self, Message, PROTOCOL_3_0, ServerError};
use super::wait::within_limit;

/// What a connection may run over: TCP, TLS, a Unix socket, memory.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// How to log in.
#[derive(Clone, Debug)]
pub struct Login {
    pub protocol: u32,
    pub password: Option<String>,
    /// Startup parameters, `user` and `database` among them.
    pub parameters: Vec<(String, String)>,
}

impl Login {
    pub fn new(user: &str, database: &str) -> Self {
        Self {
            protocol: PROTOCOL_3_0,
            password: None,
            parameters: vec![],
        }
        .with("user", user)
        .with("database", database)
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    #[must_use]
    pub fn protocol(mut self, protocol: u32) -> Self {
        self.protocol = protocol;
        self
    }

    fn startup(&self) -> Vec<u8> {
        let parameters: Vec<(&str, &str)> = self
            .parameters
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        messages::startup(self.protocol, &parameters)
    }

    fn user(&self) -> &str {
        let user = self.parameters.iter().find(|(name, _)| name == "user");
        user.map_or("", |(_, user)| user)
    }
}

/// What came until ReadyForQuery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Option<String>>>,
    /// Tags of CommandComplete.
    pub tags: Vec<String>,
    pub errors: Vec<ServerError>,
    /// CopyData from the server, joined.
    pub copied: Vec<u8>,
    /// Every message's tag in order, with notices, notifications and ParameterStatus left out.
    pub order: String,
    /// The status of ReadyForQuery: `I`, `T` or `E`.
    pub status: char,
}

impl Reply {
    /// The reply itself, if it holds no error.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.errors.is_empty(), "unexpected error: {self:?}");
        self
    }

    /// The SQLSTATE of its only error.
    #[track_caller]
    pub fn sqlstate(&self) -> &str {
        &self.error().code
    }

    /// Its only error.
    #[track_caller]
    pub fn error(&self) -> &ServerError {
        match self.errors.as_slice() {
            [error] => error,
            _ => panic!("expected one error: {self:?}"),
        }
    }

    /// Its only value, which isn't NULL.
    #[track_caller]
    pub fn value(&self) -> &str {
        match self.rows.as_slice() {
            [row] => match row.as_slice() {
                [Some(value)] => value,
                _ => panic!("expected one value: {self:?}"),
            },
            _ => panic!("expected one row: {self:?}"),
        }
    }

    /// Its first column; a NULL is an empty string.
    pub fn column(&self) -> Vec<String> {
        let first = |row: &Vec<Option<String>>| row.first().cloned().flatten().unwrap_or_default();
        self.rows.iter().map(first).collect()
    }
}

/// A connection, logged in or not.
pub struct Client {
    stream: Box<dyn Transport>,
    buffer: Vec<u8>,
    /// ParameterStatus as last told.
    pub parameters: BTreeMap<String, String>,
    /// BackendKeyData: process id and secret, as a cancel request wants them.
    pub key: Vec<u8>,
    pub notices: Vec<ServerError>,
    /// Channel and payload of each notification, oldest first.
    pub notifications: VecDeque<(String, String)>,
    /// NegotiateProtocolVersion, if one came.
    pub negotiated: Option<Message>,
}

impl Client {
    /// A TCP connection on which nothing was said yet.
    pub async fn open(address: SocketAddr) -> Self {
        let stream = within_limit("a TCP connection", TcpStream::connect(address)).await;
        let stream = stream.unwrap_or_else(|error| panic!("no connection to {address}: {error}"));
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// Over a transport that is already there.
    pub fn over(stream: impl Transport + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            buffer: Vec::new(),
            parameters: BTreeMap::new(),
            key: Vec::new(),
            notices: Vec::new(),
            notifications: VecDeque::new(),
            negotiated: None,
        }
    }

    /// Connects and logs in without a password.
    #[track_caller]
    pub fn connect(
        address: SocketAddr,
        user: &str,
        database: &str,
    ) -> impl Future<Output = Self> + use<> {
        let login = Login::new(user, database);
        async move {
            match Self::connect_as(address, &login).await {
                Ok(client) => client,
                Err(error) => panic!("login refused: {error:?}"),
            }
        }
    }

    /// Connects and logs in, or returns why it was refused.
    pub async fn connect_as(address: SocketAddr, login: &Login) -> Result<Self, ServerError> {
        let mut client = Self::open(address).await;
        client.log_in(login).await?;
        Ok(client)
    }

    /// Sends the startup packet and answers whatever authentication is asked for.
    pub async fn log_in(&mut self, login: &Login) -> Result<(), ServerError> {
        self.send(&login.startup()).await;
        let mut scram: Option<ScramSha256> = None;
        loop {
            let message = self.message().await;
            match message.tag {
                b'R' => self.authenticate(&message, login, &mut scram).await,
                b'E' => return Err(ServerError::parse(&message)),
                b'K' => self.key.clone_from(&message.body),
                b'v' => self.negotiated = Some(message),
                b'Z' => return Ok(()),
                _ => panic!("unexpected during login: {message:?}"),
            }
        }
    }

    async fn authenticate(
        &mut self,
        message: &Message,
        login: &Login,
        scram: &mut Option<ScramSha256>,
    ) {
        let password = login.password.as_deref().unwrap_or_default();
        let (kind, data) = message.body.split_at(4);
        match u32::from_be_bytes(kind.try_into().unwrap()) {
            0 => {}
            3 => self.send(&messages::password(password)).await,
            5 => {
                let salt = data.try_into().unwrap();
                let hash = md5_hash(login.user().as_bytes(), password.as_bytes(), salt);
                self.send(&messages::password(&hash)).await;
            }
            10 => {
                let exchange = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                let first = exchange.message();
                let length = i32::try_from(first.len()).unwrap().to_be_bytes();
                let body = [b"SCRAM-SHA-256\0".as_slice(), &length, first].concat();
                self.send(&messages::frame(b'p', &body)).await;
                *scram = Some(exchange);
            }
            11 => {
                let exchange = scram.as_mut().expect("SASLContinue before SASL");
                exchange.update(data).expect("a server-first-message");
                let last = messages::frame(b'p', exchange.message());
                self.send(&last).await;
            }
            12 => {
                let exchange = scram.as_mut().expect("SASLFinal before SASL");
                exchange.finish(data).expect("the server's signature");
            }
            other => panic!("authentication method {other} is not for this client"),
        }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("send");
    }

    /// Sends bytes; the peer may be gone.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        within_limit("room to send", async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Ends the sending direction only.
    pub async fn shut_down(&mut self) {
        self.stream.shutdown().await.expect("shut down");
    }

    /// The next bytes, exactly so many, untagged: the answer to an SSLRequest is one.
    pub async fn read_exact(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.fill().await.expect("read"), "the connection closed");
        }
        self.buffer.drain(..count).collect()
    }

    /// Hands the transport over, to start TLS on it. Nothing may have been read beyond the answer.
    pub fn into_transport(self) -> Box<dyn Transport> {
        assert!(self.buffer.is_empty(), "bytes ahead of TLS");
        self.stream
    }

    /// The next message of any kind; `None` at the end of the connection, be it orderly or a reset.
    pub async fn read_message(&mut self) -> Option<Message> {
        let message = self.read_message_or_cut().await;
        assert!(
            message.is_some() || self.buffer.is_empty(),
            "closed amid a message"
        );
        message
    }

    /// The same where the end may come amid a message: a server that dies takes the rest of its answer along.
    pub async fn read_message_or_cut(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.take_buffered() {
                return Some(message);
            }
            if !self.fill().await.unwrap_or(false) {
                return None;
            }
        }
    }

    fn take_buffered(&mut self) -> Option<Message> {
        let header = self.buffer.get(..5)?;
        let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
        assert!(length >= 4, "a length of {length}");
        if self.buffer.len() <= length {
            return None;
        }
        let frame: Vec<u8> = self.buffer.drain(..=length).collect();
        Some(Message {
            tag: frame[0],
            body: frame[5..].to_vec(),
        })
    }

    async fn fill(&mut self) -> io::Result<bool> {
        let read = self.stream.read_buf(&mut self.buffer);
        Ok(within_limit("a message", read).await? > 0)
    }

    /// The next message that is part of a dialogue: notices, notifications and ParameterStatus are recorded on the
    /// way. Panics if the connection ends.
    pub async fn message(&mut self) -> Message {
        loop {
            let message = self.read_message().await.expect("the connection closed");
            if !self.record(&message) {
                return message;
            }
        }
    }

    fn record(&mut self, message: &Message) -> bool {
        match message.tag {
            b'N' => self.notices.push(ServerError::parse(message)),
            b'S' => {
                let mut strings = message.strings();
                strings.resize(2, String::new());
                let value = strings.remove(1);
                self.parameters.insert(strings.remove(0), value);
            }
            b'A' => {
                let text = Message {
                    tag: b'A',
                    body: message.body[4..].to_vec(),
                };
                let mut strings = text.strings();
                strings.resize(2, String::new());
                let payload = strings.remove(1);
                self.notifications.push_back((strings.remove(0), payload));
            }
            _ => return false,
        }
        true
    }

    /// The next message of a dialogue, which must have this tag.
    pub async fn expect(&mut self, tag: u8) -> Message {
        let message = self.message().await;
        assert_eq!(
            char::from(message.tag),
            char::from(tag),
            "instead came {message:?}"
        );
        message
    }

    /// Waits for the end of the connection and returns the errors told before it.
    pub async fn expect_end(&mut self) -> Vec<ServerError> {
        let mut errors = Vec::new();
        while let Some(message) = self.read_message().await {
            if message.tag == b'E' {
                errors.push(ServerError::parse(&message));
            }
        }
        errors
    }

    /// Reads until ReadyForQuery.
    pub async fn reply(&mut self) -> Reply {
        let mut reply = Reply::default();
        loop {
            let message = self.message().await;
            if absorb(&mut reply, &message) {
                return reply;
            }
        }
    }

    /// Sends a simple query and reads until ReadyForQuery.
    pub async fn query(&mut self, sql: &str) -> Reply {
        self.send(&messages::query(sql)).await;
        self.reply().await
    }

    /// The only value of a simple query.
    pub async fn value(&mut self, sql: &str) -> String {
        self.query(sql).await.ok().value().to_owned()
    }

    /// Parse, Bind, Describe, Execute, Sync with the unnamed statement.
    pub async fn extended(&mut self, sql: &str, parameters: &[Option<&str>]) -> Reply {
        let batch = [
            messages::parse("", sql, &[]),
            messages::bind("", "", parameters),
            messages::describe(b'P', ""),
            messages::execute("", 0),
            messages::sync(),
        ];
        self.send(&batch.concat()).await;
        self.reply().await
    }

    /// `COPY … FROM STDIN` with these pieces of data.
    pub async fn copy_in(&mut self, sql: &str, pieces: &[&[u8]]) -> Reply {
        self.send(&messages::query(sql)).await;
        self.expect(b'G').await;
        for piece in pieces {
            self.send(&messages::copy_data(piece)).await;
        }
        self.send(&messages::copy_done()).await;
        self.reply().await
    }

    /// Waits for a notification.
    pub async fn notification(&mut self) -> (String, String) {
        while self.notifications.is_empty() {
            let message = self.read_message().await.expect("the connection closed");
            assert!(self.record(&message), "instead came {message:?}");
        }
        self.notifications.pop_front().expect("one is there")
    }

    /// Waits for the next notice; notifications before it are recorded.
    pub async fn notice(&mut self) -> ServerError {
        while self.notices.is_empty() {
            let message = self.read_message().await.expect("the connection closed");
            assert!(self.record(&message), "instead came {message:?}");
        }
        self.notices.remove(0)
    }

    /// Says goodbye and waits for the end.
    pub async fn terminate(mut self) {
        self.send(&messages::terminate()).await;
        self.expect_end().await;
    }
}

/// Adds a message to the reply; true if it was ReadyForQuery.
fn absorb(reply: &mut Reply, message: &Message) -> bool {
    reply.order.push(char::from(message.tag));
    match message.tag {
        b'T' => reply.columns = columns(&message.body),
        b'D' => reply.rows.push(values(&message.body)),
        b'C' => reply.tags.extend(message.strings()),
        b'E' => reply.errors.push(ServerError::parse(message)),
        b'd' => reply.copied.extend(&message.body),
        b'Z' => reply.status = char::from(message.body[0]),
        b'G' => panic!("the server wants COPY data; use copy_in"),
        _ => {}
    }
    message.tag == b'Z'
}

fn columns(body: &[u8]) -> Vec<String> {
    let mut rest = &body[2..];
    let mut names = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        // Six fixed fields of 18 bytes in all follow each name.
        rest = &rest[end + 19..];
    }
    names
}

fn values(body: &[u8]) -> Vec<Option<String>> {
    let mut rest = &body[2..];
    let mut values = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            values.push(None);
            rest = tail;
            continue;
        };
        values.push(Some(String::from_utf8_lossy(&tail[..length]).into_owned()));
        rest = &tail[length..];
    }
    values
}

/// Sends a cancel request for `key` on a connection of its own and waits until that is closed.
pub async fn cancel(address: SocketAddr, key: &[u8]) {
    let mut client = Client::open(address).await;
    client.send(&messages::cancel_request(key)).await;
    assert_eq!(client.expect_end().await, []);
}

/// Base64 as SCRAM uses it, for tests that build its messages by hand.
pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
