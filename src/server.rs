//! Accepting connections and seeing each to its end: session, console, replication or cancel request.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::Instant;

use crate::admin::console::Console;
use crate::backend::cancel;
use crate::error::UserFacing;
use crate::frontend::replication;
use crate::frontend::session::Session;
use crate::frontend::startup::{self, Admission, Admitted, Arrival, HandshakeError};
use crate::meter::Address;
use crate::net::connect::SocketOptions;
use crate::net::stream::Stream;
use crate::registry;
use crate::shared::Shared;
use crate::tasks;
use crate::wire::backend::put_report;

/// Connections beyond `max_client_conn` that are still heard, because they may be cancel requests.
const BEYOND_LIMIT: usize = 200;

/// How long the accept loop pauses when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// With the options that each of its connections has from it, if they inherit any.
    Tcp(TcpListener, Option<SocketOptions>),
    Unix(UnixListener),
}

/// Counts a connection until dropped, and the place it has under `max_client_conn`.
#[derive(Debug)]
struct Counted {
    shared: Arc<Shared>,
    has_place: bool,
}

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        Self {
            shared: Arc::clone(shared),
            has_place: false,
        }
    }

    /// Takes one of `limit` places. Only connections that have said they want a session take one, so that those that
    /// are about to be refused keep nobody out.
    fn take_place(&mut self, limit: usize) -> bool {
        let more = |taken: usize| (taken < limit).then_some(taken + 1);
        let places = &self.shared.places;
        self.has_place = places
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_ok();
        self.has_place
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::SeqCst);
        if self.has_place {
            self.shared.places.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Where a client comes from.
#[derive(Clone, Debug)]
struct Origin {
    peer: Address,
    /// Where it connected to; `None` on a Unix socket.
    local: Option<Arc<SocketAddr>>,
}

impl Origin {
    /// `None` on a Unix socket.
    fn address(&self) -> Option<IpAddr> {
        self.peer.tcp().map(|address| address.ip())
    }
}

/// How long a connection may have waited to be accepted, as far as its options go.
const QUEUED: Duration = Duration::from_secs(2);

/// What the accept loop remembers from one connection to the next.
#[derive(Debug, Default)]
struct Before {
    /// Where the last client connected to, which is where most do.
    local: Option<Arc<SocketAddr>>,
    /// What connections have from their listener. After a reload it is set anew.
    inherited: Option<SocketOptions>,
    /// Until when some may come that were in the listener's queue before it had that.
    queued_until: Option<Instant>,
}

impl Before {
    fn new(listener: &Listener) -> Self {
        let inherited = match listener {
            Listener::Tcp(_, inherited) => *inherited,
            Listener::Unix(_) => None,
        };
        Self {
            inherited,
            ..Self::default()
        }
    }

    /// `address`, shared with the last connection where it is the same.
    fn local(&mut self, address: Option<SocketAddr>) -> Option<Arc<SocketAddr>> {
        if self.local.as_deref() != address.as_ref() {
            self.local = address.map(Arc::new);
        }
        self.local.clone()
    }

    /// Gives `tcp` the options that it does not have from `listener`, which gets them for those that follow.
    fn set_options(&mut self, options: SocketOptions, listener: &TcpListener, tcp: &TcpStream) {
        if self.inherited.as_ref() == Some(&options) {
            if self
                .queued_until
                .is_some_and(|until| Instant::now() < until)
            {
                let _ = options.set_all(tcp);
            } else {
                self.queued_until = None;
            }
            return;
        }
        let inherit = || {
            options
                .set_all(listener)
                .and_then(|()| options.set_all(tcp))
        };
        if cfg!(target_os = "linux") && inherit().is_ok() {
            self.inherited = Some(options);
            self.queued_until = Some(Instant::now() + QUEUED);
        } else {
            // A client that is gone already fails here and is noticed when it is read.
            let _ = options.apply(tcp);
        }
    }
}

impl Listener {
    /// The one address that all clients connect to; `None` if there are several, or none.
    fn only_address(&self) -> Option<SocketAddr> {
        let Self::Tcp(listener, _) = self else {
            return None;
        };
        let address = listener.local_addr().ok()?;
        (!address.ip().is_unspecified()).then_some(address)
    }
}

/// Accepts until dropped.
pub async fn accept(listener: Listener, shared: Arc<Shared>, console: Arc<Console>) {
    let local = listener.only_address();
    let mut before = Before::new(&listener);
    loop {
        match accept_one(&listener, local, &mut before, &shared).await {
            Ok((stream, origin)) => admit(stream, origin, &shared, &console),
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept_one(
    listener: &Listener,
    local: Option<SocketAddr>,
    before: &mut Before,
    shared: &Shared,
) -> std::io::Result<(Stream, Origin)> {
    match listener {
        Listener::Tcp(listener, _) => {
            let (tcp, peer) = listener.accept().await?;
            let options = SocketOptions::from_config(&shared.config.load().general);
            before.set_options(options, listener, &tcp);
            let origin = Origin {
                peer: Address::Tcp(peer),
                local: before.local(local.or_else(|| tcp.local_addr().ok())),
            };
            Ok((Stream::Tcp(tcp), origin))
        }
        Listener::Unix(listener) => {
            let (unix, _) = listener.accept().await?;
            Ok((
                Stream::Unix(unix),
                Origin {
                    peer: Address::Unix,
                    local: None,
                },
            ))
        }
    }
}

fn admit(stream: Stream, origin: Origin, shared: &Arc<Shared>, console: &Arc<Console>) {
    let limit = shared.config.load().general.max_client_conn;
    let counted = Counted::new(shared);
    if shared.connections.load(Ordering::SeqCst) > limit.saturating_add(BEYOND_LIMIT) {
        return;
    }
    let console = Arc::clone(console);
    let arriving = Box::pin(async move {
        let mut counted = counted;
        let session = log_in(stream, origin, &mut counted, &console).await;
        session.map(|session| (session, counted))
    });
    tasks::spawn("client", Client::Arriving(arriving));
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A client's task, which holds what the client is at and no more.
///
/// # Why the session is boxed too
/// The runtime's tasks are as large as the next multiple of 128 bytes, and their allocator cuts each out of a larger piece.
/// One task for login and session also spares every connection a second one.
enum Client {
    Arriving(Boxed<Option<(Session, Counted)>>),
    Serving(Boxed<()>),
    Gone,
}

impl Future for Client {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Arriving(login) = &mut *self {
            let arrived = ready!(login.as_mut().poll(cx));
            // The login's memory goes before the session takes its own.
            *self = Self::Gone;
            if let Some((session, counted)) = arrived {
                *self = Self::Serving(Box::pin(session.run(counted)));
            }
        }
        match &mut *self {
            Self::Serving(session) => session.as_mut().poll(cx),
            Self::Arriving(_) | Self::Gone => Poll::Ready(()),
        }
    }
}

/// Takes a connection to its session; `None` if it was something else, or has ended.
async fn log_in(
    stream: Stream,
    origin: Origin,
    counted: &mut Counted,
    console: &Arc<Console>,
) -> Option<Session> {
    let shared = Arc::clone(&counted.shared);
    let deadline = Instant::now() + shared.config.load().timeouts.client_login_timeout;
    let tls = shared.client_tls.load_full();
    let tls = tls.as_ref().as_ref();
    let arrival = match tokio::time::timeout_at(deadline, startup::arrive(stream, tls)).await {
        Ok(Ok(arrival)) => arrival,
        Ok(Err((stream, error))) => {
            Box::pin(refuse(stream, &error, &origin, &shared)).await;
            return None;
        }
        // It has not said what it wants; there is nothing to answer.
        Err(_) => return None,
    };
    match arrival {
        Arrival::Cancel { stream, pid, key } => {
            Box::pin(cancel_client(&shared, pid, &key)).await;
            drop(stream);
            None
        }
        Arrival::Startup(mut stream, message) => {
            let admitted = if let Err(error) = room(counted) {
                Err(error)
            } else {
                let admit = startup::admit(&mut stream, tls, &message, origin.address(), &shared);
                tokio::time::timeout_at(deadline, admit)
                    .await
                    .unwrap_or(Err(HandshakeError::Timeout { why: None }))
            };
            match admitted {
                Err(error) => {
                    Box::pin(refuse(Some(stream), &error, &origin, &shared)).await;
                    None
                }
                Ok(None) => {
                    Box::pin(console.serve(stream, &message, origin.address())).await;
                    None
                }
                Ok(Some(Admission { place, credentials })) => {
                    let client = Admitted {
                        stream,
                        message,
                        peer: origin.peer,
                        local: origin.local.clone(),
                        place,
                        credentials,
                        shared,
                        deadline,
                    };
                    start(client, &origin).await
                }
            }
        }
    }
}

/// Serves an authenticated client; what becomes a session is returned.
async fn start(client: Admitted, origin: &Origin) -> Option<Session> {
    let shared = Arc::clone(&client.shared);
    let outcome = if client.message.replication.is_some() {
        Box::pin(replication::serve(client)).await.map(|()| None)
    } else {
        startup::begin(client).await.map(Some)
    };
    match outcome {
        Ok(session) => session,
        Err((stream, error)) => {
            Box::pin(refuse(stream, &error, origin, &shared)).await;
            None
        }
    }
}

fn room(counted: &mut Counted) -> Result<(), HandshakeError> {
    let shared = &counted.shared;
    if shared.draining.load(Ordering::SeqCst) {
        return Err(HandshakeError::ShuttingDown);
    }
    let limit = shared.config.load().general.max_client_conn;
    if !counted.take_place(limit) {
        return Err(HandshakeError::TooManyClients {
            setting: "max_client_conn",
            limit,
        });
    }
    Ok(())
}

async fn refuse(stream: Option<Stream>, error: &HandshakeError, origin: &Origin, shared: &Shared) {
    let (Some(mut stream), false) = (stream, matches!(error, HandshakeError::Io(_))) else {
        return;
    };
    if shared.config.load().log.log_pooler_errors {
        tracing::info!(client = %origin.peer, "refused a connection: {error}");
    }
    let out = error.server_frame().unwrap_or_else(|| {
        let mut out = Vec::new();
        put_report(&mut out, &error.report());
        out
    });
    let farewell = async {
        stream.write_all(&out).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
}

/// Passes a cancel request on, or ends the client's waiting.
async fn cancel_client(shared: &Arc<Shared>, pid: u32, key: &[u8]) {
    let Some(entry) = shared.registry.find(pid, key) else {
        return;
    };
    if registry::cancel_queued(&entry) {
        return;
    }
    if let Some((identity, _held)) = entry.hold_for_cancel() {
        let dialer = shared.pools.dialer.load_full();
        let limit = shared.config.load().timeouts.cancel_wait_timeout;
        if let Err(error) = cancel::cancel(identity, dialer, limit).await {
            tracing::warn!(%error, "a cancel request was not delivered");
        }
    }
}
