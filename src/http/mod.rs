//! HTTP: `/live`, `/ready`, `/metrics`, and a page that lists them.
//!
//! Every connection answers one request within `CONNECTION_LIMIT` and is closed; no more than `CONNECTIONS_MAX` are
//! open, and no request's head is larger than `HEAD_MAX`. So a client that stalls costs a little for a moment, and
//! the data path nothing.

mod metrics;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::shared::Shared;
use crate::tasks;

/// Connections served at once; more are closed unheard.
const CONNECTIONS_MAX: usize = 128;

/// From accepting to closing.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// From accepting to the end of the request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// Largest head of a request, and hyper's read buffer.
const HEAD_MAX: usize = 8 * 1024;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// Pause after an accept failed: the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Prometheus's text format.
const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const TEXT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

const INDEX: &str = "pgweir\n\n\
    /live     200 while the process answers\n\
    /ready    200 while clients are let in, 503 before and while stopping\n\
    /metrics  Prometheus metrics\n\n\
    The console is the database \"pgweir\": psql -p PORT pgweir, then SHOW HELP.\n";

type Reply = Response<Full<Bytes>>;

/// Serves until dropped.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, events: PrometheusHandle) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        let (shared, events) = (Arc::clone(&shared), events.clone());
        tasks::spawn("http connection", async move {
            let served = Box::pin(converse(stream, &shared, &events));
            // A client that breaks off, or takes too long, is of no interest.
            let _ = tokio::time::timeout(CONNECTION_LIMIT, served).await;
            drop(permit);
        });
    }
}

async fn converse(
    stream: TcpStream,
    shared: &Shared,
    events: &PrometheusHandle,
) -> Result<(), hyper::Error> {
    let service = service_fn(|request| {
        let reply = answer(&request, shared, events);
        async move { Ok::<_, Infallible>(reply) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(request: &Request<Incoming>, shared: &Shared, events: &PrometheusHandle) -> Reply {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        reply
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    match request.uri().path() {
        "/" => text(StatusCode::OK, INDEX),
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" if shared.ready.load(Ordering::SeqCst) => text(StatusCode::OK, "ready\n"),
        "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/metrics" => {
            let mut reply = text(StatusCode::OK, metrics::render(shared, events));
            reply.headers_mut().insert(CONTENT_TYPE, METRICS_TYPE);
            reply
        }
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, TEXT_TYPE);
    reply
}
