//! Composition root: builds the parts, runs them, and takes them down in order.

pub mod demo;
mod signals;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admin::console::Console;

use crate::auth::scram::MockSecret;
use crate::cluster::Clusters;
use crate::journal::Journal;
use crate::meter::{Limits, Recent, Rules};
use crate::net::connect::SocketOptions;
use crate::net::descriptors;
use crate::pool::auth_query::AuthQuery;
use crate::pool::{Pools, steward};
use crate::registry::Order;
use crate::reload::{Parts, ReloadError, Reloader, Source};
use crate::routing::reason::Decisions;
use crate::server::{self, Listener};
use crate::session::sequences::Applications;
use crate::session::statements::Global;
use crate::shared::{PLANS_MAX, PlanRequest, Shared};
use crate::sql::known::KnownStatements;
use crate::traces::Tracer;
use crate::{frontend, http, tasks, telemetry, watch};

use self::signals::{Signals, Stop};

/// How long work that was begun on other threads may still take once everything is closed.
const LAST_WORK: Duration = Duration::from_secs(1);

/// How often a draining process looks whether its clients are gone.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Connections the kernel queues until they are accepted.
const BACKLOG: u32 = 4096;

/// How long clients cut off at the end have to take their last message, and servers to be told to stop what they run.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why pgweir does not serve.
#[derive(Debug, Error)]
pub enum AppError {
    #[error("{0}")]
    Config(#[from] ReloadError),
    #[error("could not listen on {address}: {error}")]
    Listen { address: String, error: io::Error },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Serves until told to stop.
pub fn run(source: Source) -> ExitCode {
    let parts = match source.read() {
        Ok(parts) => parts,
        Err(error) => return fail(&error),
    };
    telemetry::tracing::init(&parts.config.log);
    let runtime = match runtime(parts.config.general.workers) {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let served = runtime.block_on(serve(source, parts, |_| {}));
    // A look-up of a name that nobody answers is not waited for.
    runtime.shutdown_timeout(LAST_WORK);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[allow(
    clippy::print_stderr,
    reason = "the log may not be set up yet, and whoever starts pgweir reads this"
)]
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("pgweir: {error}");
    ExitCode::FAILURE
}

/// One worker runs everything on this thread, which saves the hand-over between threads.
pub fn runtime(workers: usize) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = if workers <= 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(workers);
        builder
    };
    builder.enable_all().build()
}

/// Where pgweir listens.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    pub listen: Vec<SocketAddr>,
    pub http: Option<SocketAddr>,
}

/// Serves until told to stop, on the runtime it is called on; `ready` is called once all listeners are open.
pub async fn serve(
    source: Source,
    parts: Parts,
    ready: impl FnOnce(&Addresses),
) -> Result<(), AppError> {
    // First: whoever is told that it is ready may send it one.
    let signals = Signals::new()?;
    let mut addresses = Addresses::default();
    let metrics = telemetry::metrics::install();
    let (plans, requests) = mpsc::channel(PLANS_MAX);
    let shared = share(parts, plans);
    tasks::spawn(
        "plans",
        watch::explain::explain(Arc::clone(&shared), requests),
    );
    let reloader = Arc::new(Reloader::new(source));
    check_descriptors(shared.config.load().general.max_client_conn);
    tasks::spawn("steward", steward::run(Arc::clone(&shared.pools)));
    tasks::spawn("auth_query", keep_secrets(Arc::clone(&shared)));
    let config = shared.config.load_full();
    shared.clusters.sync(&config);
    tasks::spawn("waits", watch::waits::watch(Arc::clone(&shared)));
    tasks::spawn("failover", frontend::failover::watch(Arc::clone(&shared)));
    if let Some(address) = config.general.http {
        let listener = TcpListener::bind(address)
            .await
            .map_err(cannot_listen(&address.to_string()))?;
        let local = listener.local_addr()?;
        tracing::info!("http listening on {local}");
        addresses.http = Some(local);
        tasks::spawn("http", http::serve(listener, Arc::clone(&shared), metrics));
    }
    let console = Arc::new(Console::new(Arc::clone(&shared), Arc::clone(&reloader)));
    tasks::spawn("stats", Arc::clone(&console).keep_stats());
    let (accepting, _socket) = listen(&shared, &console, &mut addresses.listen).await?;
    shared.ready.store(true, Ordering::SeqCst);
    ready(&addresses);
    let again = signals.until_stopped(&shared, &reloader).await;
    drain(&shared, accepting, again).await;
    Ok(())
}

/// Clients beyond the descriptors would not be refused but wait to be accepted.
fn check_descriptors(max_client_conn: usize) {
    let limit = descriptors::raise();
    if limit <= max_client_conn as u64 {
        tracing::warn!(
            limit,
            max_client_conn,
            "fewer file descriptors than clients are allowed; raise the limit (ulimit -n, LimitNOFILE) or lower general.max_client_conn"
        );
    }
}

fn share(parts: Parts, plans: mpsc::Sender<PlanRequest>) -> Arc<Shared> {
    let known = KnownStatements::default();
    known.queries.set_max(parts.config.metrics.max_queries);
    let rules = Rules::default();
    let (slow, named) = (&parts.config.slow_log, parts.config.log_rules.values());
    rules.set(slow, named.cloned());
    let limits = Limits::default();
    limits.set(parts.config.statement_rules.iter());
    let journal = Journal::new(slow, &parts.config.query_log);
    let tracer = Tracer::new(&parts.config.traces);
    let pools = Pools::new(Arc::new(parts.dialer));
    let config = Arc::new(ArcSwap::from_pointee(parts.config));
    Arc::new(Shared {
        secrets: AuthQuery::new(Arc::clone(&config), Arc::clone(&pools)),
        clusters: Clusters::new(&pools),
        routes: Decisions::default(),
        config,
        pools,
        registry: Arc::default(),
        statements: Global::default(),
        known,
        applications: Applications::default(),
        recent: Recent::default(),
        rules,
        limits,
        journal,
        tracer,
        plans,
        access: ArcSwap::from_pointee(parts.access),
        client_tls: ArcSwap::from_pointee(parts.client_tls),
        https: ArcSwap::from_pointee(parts.https),
        mock: MockSecret::random(),
        connections: AtomicUsize::new(0),
        places: AtomicUsize::new(0),
        ready: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        stop: Notify::new(),
        started: Instant::now(),
    })
}

fn cannot_listen(address: &str) -> impl FnOnce(io::Error) -> AppError {
    let address = address.to_owned();
    move |error| AppError::Listen { address, error }
}

/// Opens all listeners; their tasks accept until aborted.
async fn listen(
    shared: &Arc<Shared>,
    console: &Arc<Console>,
    addresses: &mut Vec<SocketAddr>,
) -> Result<(Vec<JoinHandle<()>>, Option<SocketFile>), AppError> {
    let general = &shared.config.load().general;
    let mut tasks = Vec::new();
    let mut start = |listener| {
        tasks.push(tasks::spawn(
            "accept",
            server::accept(listener, Arc::clone(shared), Arc::clone(console)),
        ));
    };
    let mut port = None;
    for address in &general.listen {
        let (listener, options) = bind(address, SocketOptions::from_config(general))
            .await
            .map_err(cannot_listen(address))?;
        let local = listener.local_addr()?;
        port.get_or_insert(local.port());
        addresses.push(local);
        tracing::info!("listening on {local}");
        start(Listener::Tcp(listener, options));
    }
    let Some(folder) = &general.unix_socket_dir else {
        return Ok((tasks, None));
    };
    let path = folder.join(format!(".s.PGSQL.{}", port.unwrap_or(6432)));
    let listener = bind_unix(&path, general.unix_socket_mode)
        .map_err(cannot_listen(&path.display().to_string()))?;
    tracing::info!("listening on {}", path.display());
    start(Listener::Unix(listener));
    Ok((tasks, Some(SocketFile(path))))
}

/// Resolves and binds, with a queue long enough for a stampede of clients. The options are returned if all connections
/// have them from their listener.
async fn bind(
    address: &str,
    options: SocketOptions,
) -> io::Result<(TcpListener, Option<SocketOptions>)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        let inherits = cfg!(target_os = "linux") && options.set_all(&socket).is_ok();
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok((listener, inherits.then_some(options))),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A socket left behind by a process that was killed is replaced; one that somebody answers on is not.
fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// A Unix socket's file, removed at the end.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn keep_secrets(shared: Arc<Shared>) {
    shared.secrets.keep_house().await;
}

/// Stops accepting, lets transactions finish, tells idle clients 57P01; after `shutdown_timeout`, or at a second
/// signal, the rest is told at once.
async fn drain(shared: &Arc<Shared>, accepting: Vec<JoinHandle<()>>, mut again: Stop) {
    shared.ready.store(false, Ordering::SeqCst);
    shared.draining.store(true, Ordering::SeqCst);
    accepting.iter().for_each(JoinHandle::abort);
    let limit = shared.config.load().general.shutdown_timeout;
    tracing::info!(clients = shared.registry.len(), "shutting down");
    tokio::select! {
        () = order(shared, Order::Drain) => {}
        () = tokio::time::sleep(limit) => tracing::warn!("shutdown_timeout is over; closing the remaining clients"),
        () = again.received() => tracing::warn!("told to stop again; closing the remaining clients"),
    }
    let _ = tokio::time::timeout(FAREWELL, cut_off(shared)).await;
    tracing::info!("stopped");
}

/// Ends the clients that are left, and what runs for them: a cancel request under way would end with the process.
async fn cut_off(shared: &Shared) {
    order(shared, Order::Terminate).await;
    while shared.pools.limits().is_cleaning() {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Gives `order` to all clients until none is left.
async fn order(shared: &Shared, order: Order) {
    while !shared.registry.is_empty() {
        for client in shared.registry.all() {
            client.give_order(order);
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_first_connection_has_its_options_from_the_listener() {
        let options = SocketOptions {
            keepalive: true,
            keepidle: Some(Duration::from_secs(77)),
            ..SocketOptions::default()
        };
        let (listener, inherited) = bind("127.0.0.1:0", options).await.unwrap();
        assert_eq!(inherited, Some(options));
        let address = listener.local_addr().unwrap();
        let _near = tokio::net::TcpStream::connect(address).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let socket = socket2::SockRef::from(&far);
        assert!(far.nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 77);
    }
}
