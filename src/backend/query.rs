//! pgweir's own statements on a connection no client uses at the moment.

use std::future::poll_fn;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use thiserror::Error;

use super::connection::Backend;
use super::receive::{self, ReceiveError, Receiver};
use crate::error::SqlState;
use crate::wire::backend as b;
use crate::wire::expect::{For, Owed, Received, Request};
use crate::wire::frontend;

/// Rows kept of one answer; pgweir's own questions have few.
const ROWS_MAX: usize = 10_000;

/// A row in text form; `None` is NULL.
pub type Row = Vec<Option<Vec<u8>>>;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum QueryError {
    #[error("{0}")]
    Receive(#[from] ReceiveError),
    #[error("{message}")]
    Server {
        code: SqlState,
        message: String,
        /// The whole `ErrorResponse` payload.
        payload: Vec<u8>,
    },
}

impl QueryError {
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Receive(_))
    }

    pub fn code(&self) -> SqlState {
        match self {
            Self::Receive(_) => SqlState::CONNECTION_FAILURE,
            Self::Server { code, .. } => *code,
        }
    }
}

/// Collects rows and the first error of what is owed to [`For::Probe`].
#[derive(Debug, Default)]
pub struct Collector {
    pub rows: Vec<Row>,
    pub error: Option<(SqlState, Vec<u8>)>,
}

impl Receiver for Collector {
    fn relay(&mut self, _: Range<usize>) {}

    fn local(&mut self, _: Request) {}

    fn message(&mut self, _: &Backend, received: Received, tag: u8, payload: &[u8]) -> bool {
        if received.owed.to != For::Probe {
            return false;
        }
        match tag {
            b::DATA_ROW if self.rows.len() < ROWS_MAX => {
                let columns = b::columns(payload).unwrap_or_default();
                self.rows.push(
                    columns
                        .into_iter()
                        .map(|column| column.map(<[u8]>::to_vec))
                        .collect(),
                );
            }
            b::ERROR_RESPONSE => {
                let code = b::sqlstate(payload).unwrap_or(SqlState::INTERNAL_ERROR);
                self.error.get_or_insert_with(|| (code, payload.to_vec()));
            }
            _ => {}
        }
        false
    }

    fn skipped(&mut self, _: Owed) {}
}

/// Runs `text` as a simple query on a connection at rest and returns its rows. Not cancel safe: a caller that gives up
/// must drop the connection.
pub async fn on_backend(backend: &mut Backend, text: &[u8]) -> Result<Vec<Row>, QueryError> {
    let mut message = Vec::with_capacity(text.len() + 6);
    frontend::put_query(&mut message, text);
    backend.outbox.push(&message);
    backend.mirror.unnamed = None;
    backend.expect.push(Owed::new(Request::Query, For::Probe));
    answer(backend).await
}

/// The same with `value` for the parameter `$1`, which is sent apart from the text and therefore never read as SQL.
pub async fn with_parameter(
    backend: &mut Backend,
    text: &[u8],
    value: &[u8],
) -> Result<Vec<Row>, QueryError> {
    // Behind the names: no formats, one parameter, and the results as text.
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let parameters = [&[0, 0, 0, 1], &length.to_be_bytes(), value, &[0, 0]].concat();
    let mut batch = Vec::with_capacity(text.len() + value.len() + 64);
    frontend::put_parse(&mut batch, b"", &[text, &[0, 0, 0]].concat());
    frontend::put_bind_head(&mut batch, b"", b"", parameters.len());
    batch.extend_from_slice(&parameters);
    frontend::put_execute(&mut batch, b"");
    batch.extend_from_slice(&frontend::SYNC_FRAME);
    backend.outbox.push(&batch);
    backend.mirror.unnamed = None;
    for request in [
        Request::Parse,
        Request::Bind,
        Request::Execute,
        Request::Sync,
    ] {
        backend.expect.push(Owed::new(request, For::Probe));
    }
    answer(backend).await
}

/// The rows of what was just sent, or the first error.
async fn answer(backend: &mut Backend) -> Result<Vec<Row>, QueryError> {
    let mut collector = Collector::default();
    poll_fn(|cx| poll_exchange(backend, cx, &mut collector)).await?;
    match collector.error {
        None => Ok(collector.rows),
        Some((code, payload)) => {
            let message = b::error_field(&payload, b'M').unwrap_or_default();
            Err(QueryError::Server {
                code,
                message: String::from_utf8_lossy(message).into_owned(),
                payload,
            })
        }
    }
}

fn poll_exchange(
    backend: &mut Backend,
    cx: &mut Context<'_>,
    collector: &mut Collector,
) -> Poll<Result<(), ReceiveError>> {
    while !backend.is_at_rest() {
        if !backend.outbox.is_empty()
            && let Poll::Ready(sent) = backend.outbox.poll_send(&mut backend.stream, cx)
        {
            sent?;
        }
        ready!(receive::poll_receive(backend, cx, collector))?;
    }
    Poll::Ready(Ok(()))
}
