//! Replies, with the headers that keep a browser from doing anything with them but showing them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use super::access::Refusal;
use super::events::Events;

pub(super) type Reply = Response<Content>;

/// What follows a reply's head.
#[derive(Debug)]
pub(super) enum Content {
    Whole(Full<Bytes>),
    Events(Events),
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(cx),
            Self::Events(events) => Pin::new(events).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
/// Prometheus's text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Of everything but the page: nothing may be loaded, by nobody.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

fn reply(status: StatusCode, kind: &'static str, content: Content) -> Reply {
    let mut reply = Response::new(content);
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, NOTHING),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (RESOURCE_POLICY, "same-origin"),
        (OPENER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    reply
}

fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    reply(status, kind, Content::Whole(Full::new(body.into())))
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    whole(status, TEXT, body)
}

pub(super) fn metrics(body: String, open: bool) -> Reply {
    let kind = if open { OPEN_METRICS } else { METRICS };
    whole(StatusCode::OK, kind, body)
}

/// Whether the scraper asks for the OpenMetrics format, as Prometheus does.
pub(super) fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).iter();
    accepts
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"))
}

/// The page, under its own policy of what it may load and run.
pub(super) fn page(document: &'static str, policy: &HeaderValue) -> Reply {
    let mut reply = whole(StatusCode::OK, "text/html; charset=utf-8", document);
    reply
        .headers_mut()
        .insert(CONTENT_SECURITY_POLICY, policy.clone());
    reply
}

pub(super) fn json(value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => whole(StatusCode::OK, "application/json", body),
        // Only maps whose keys are no strings can't be written, and there are none.
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "could not be written\n"),
    }
}

pub(super) fn events(events: Events) -> Reply {
    reply(
        StatusCode::OK,
        "text/event-stream; charset=utf-8",
        Content::Events(events),
    )
}

/// It could not be made, which the log has more on.
pub(super) fn failed() -> Reply {
    text(StatusCode::INTERNAL_SERVER_ERROR, "could not be made\n")
}

pub(super) fn not_found() -> Reply {
    text(StatusCode::NOT_FOUND, "not found\n")
}

pub(super) fn only_get() -> Reply {
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    reply
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    reply
}

/// As many read events as may.
pub(super) fn too_many_readers() -> Reply {
    let mut reply = text(StatusCode::SERVICE_UNAVAILABLE, "too many readers\n");
    reply
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("10"));
    reply
}

/// Says what to do about a refusal, to a person.
pub(super) fn refused(refusal: &Refusal) -> Reply {
    match refusal {
        Refusal::NoToken | Refusal::WrongToken => {
            let body = "a token is needed: http.admin_token or http.stats_token, as a bearer token or as the \
                        password beside any user name\n";
            let mut reply = text(StatusCode::UNAUTHORIZED, body);
            // Two headers rather than a list, which some clients can't take apart.
            for scheme in [
                "Basic realm=\"pgweir\", charset=\"UTF-8\"",
                "Bearer realm=\"pgweir\"",
            ] {
                reply
                    .headers_mut()
                    .append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
            }
            reply
        }
        Refusal::Closed => text(
            StatusCode::FORBIDDEN,
            "not open to everyone: set http.admin_token, or http.without_token to \"all\"\n",
        ),
        Refusal::Host(name) => text(
            StatusCode::MISDIRECTED_REQUEST,
            format!(
                "not served under the name {name:?}: ask by IP address or as localhost, or add the name to http.hosts\n"
            ),
        ),
        Refusal::CrossOrigin => text(
            StatusCode::FORBIDDEN,
            "not readable from pages of other sites\n",
        ),
    }
}
