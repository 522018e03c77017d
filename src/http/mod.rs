//! HTTP: the live page at `/` with what it shows, `/metrics`, `/live` and `/ready`.
//!
//! Every connection answers one request and is closed. It has `CONNECTION_LIMIT` for that, unless it reads
//! `/events`, which has no end but is given up when its reader takes nothing for `STALL_LIMIT`. No more than
//! `CONNECTIONS_MAX` are open, and no request's head is larger than `HEAD_MAX`. So a client that stalls costs a
//! little for a moment, and the data path nothing. Who may read what is `access`'s to say.
//!
//! # Why replies are made on threads of their own
//! With one worker, sessions share a thread with everything else here. A page of a thousand statements' histograms takes
//! milliseconds to make, which every statement under way would wait for.

mod access;
mod api;
mod events;
mod metrics;
mod monitor;
mod page;
mod patience;
mod reply;
mod view;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use self::access::{Area, Refusal, Role};
use self::api::Question;
use self::metrics::Wanted;
use self::monitor::Monitor;
use self::patience::Patience;
use self::reply::Reply;
use crate::meter::Exports;
use crate::net::stream::Stream;
use crate::shared::Shared;
use crate::tasks;

/// Connections served at once; more are closed unheard.
const CONNECTIONS_MAX: usize = 128;

/// From accepting to closing.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// From accepting to the end of the request's head, a TLS handshake included.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// Longest time in which a peer takes nothing of what it is sent.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// Largest head of a request, and hyper's buffers.
const HEAD_MAX: usize = 8 * 1024;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// Pause after an accept failed: the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Pause before a wrong token is refused: guessing takes a connection for as long.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(500);

/// What every connection is served from.
#[derive(Clone)]
struct Server {
    shared: Arc<Shared>,
    events: PrometheusHandle,
    monitor: Arc<Monitor>,
    exports: Arc<Exports>,
    /// Only this machine reaches the listener.
    is_loopback: bool,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, events: PrometheusHandle) {
    let monitor = Arc::new(Monitor::new(Arc::clone(&shared)));
    tasks::spawn("monitor", Arc::clone(&monitor).run());
    let server = Arc::new(Server {
        is_loopback: listener
            .local_addr()
            .is_ok_and(|address| address.ip().is_loopback()),
        shared,
        events,
        monitor,
        exports: Arc::default(),
    });
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        let server = Arc::clone(&server);
        tasks::spawn("http connection", async move {
            Box::pin(server.converse(tcp)).await;
            drop(permit);
        });
    }
}

/// Does `work` where no session waits for it; none if it panicked, or the process ends.
async fn aside<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Option<R> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Live,
    Ready,
    Metrics,
    Page,
    Events,
    Api(Question),
}

impl Route {
    fn of(path: &str, query: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Page,
            "/live" => Self::Live,
            "/ready" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/events" => Self::Events,
            _ => Self::Api(Question::of(path.strip_prefix("/api/")?, query)?),
        })
    }

    fn area(&self) -> Area {
        match self {
            Self::Live | Self::Ready => Area::Health,
            Self::Metrics => Area::Metrics,
            Self::Page => Area::Page,
            Self::Events | Self::Api(_) => Area::Data,
        }
    }
}

impl Server {
    /// One connection from TLS to its end. A client that breaks off, or takes too long, is of no interest.
    async fn converse(&self, tcp: TcpStream) {
        let tls = self.shared.https.load_full();
        let stream = match &*tls {
            None => Stream::Tcp(tcp),
            Some(tls) => match timeout(HEAD_LIMIT, tls.accept(tcp)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(_)) | Err(_) => return,
            },
        };
        let is_endless = AtomicBool::new(false);
        let is_endless = &is_endless;
        let service = service_fn(move |request| async move {
            let reply = self.answer(&request).await;
            let endless = matches!(reply.body(), reply::Content::Events(_));
            is_endless.store(endless, Ordering::Relaxed);
            Ok::<_, Infallible>(reply)
        });
        let mut served = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .max_buf_size(HEAD_MAX)
                .max_headers(HEADERS_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(Patience::new(stream, STALL_LIMIT)), service)
        );
        let in_time = timeout(CONNECTION_LIMIT, served.as_mut()).await;
        if in_time.is_err() && is_endless.load(Ordering::Relaxed) {
            let _ = served.await;
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Reply {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return reply::only_get();
        }
        let uri = request.uri();
        let Some(route) = Route::of(uri.path(), uri.query().unwrap_or_default()) else {
            return reply::not_found();
        };
        let admitted = {
            let config = self.shared.config.load();
            access::admit(
                request.headers(),
                route.area(),
                &config.http,
                self.is_loopback,
            )
        };
        match admitted {
            Ok(role) if route.area() == Area::Health => self.reply(&route, role, false),
            Ok(role) => {
                let open = reply::wants_openmetrics(request.headers());
                let server = self.clone();
                aside(move || server.reply(&route, role, open))
                    .await
                    .unwrap_or_else(reply::failed)
            }
            Err(refusal) => {
                if refusal == Refusal::WrongToken {
                    sleep(WRONG_TOKEN_PAUSE).await;
                }
                reply::refused(&refusal)
            }
        }
    }

    fn reply(&self, route: &Route, role: Role, open: bool) -> Reply {
        match route {
            Route::Page => page::reply(),
            Route::Live => reply::text(StatusCode::OK, "live\n"),
            Route::Ready if self.shared.ready.load(Ordering::SeqCst) => {
                reply::text(StatusCode::OK, "ready\n")
            }
            Route::Ready => reply::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            Route::Metrics => {
                let wanted = Wanted {
                    texts: role == Role::Admin,
                    open,
                };
                let page = metrics::render(&self.shared, &self.events, &self.exports, wanted);
                reply::metrics(page, wanted.open)
            }
            Route::Events => match self.monitor.follow(role) {
                Some(events) => reply::events(events),
                None => reply::too_many_readers(),
            },
            Route::Api(question) => self.monitor.answer(question, role),
        }
    }
}
