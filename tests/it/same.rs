//! The oracle of many tests: what PostgreSQL itself answers to the same bytes.

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::Message;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::within_limit;

/// Counts the ReadyForQuery that `batch` will be answered with, if no simple query or function call in it stands
/// behind a message that no Sync ended.
pub fn readies(batch: &[u8]) -> usize {
    let mut rest = batch;
    let mut count = 0;
    while let Some((head, _)) = rest.split_first_chunk::<5>() {
        count += usize::from(matches!(head[0], b'S' | b'Q' | b'F'));
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        rest = &rest[1 + length..];
    }
    count
}

/// Sends `batch` and returns everything that is answered, save ParameterStatus, whose moment is free.
pub async fn exchange(client: &mut Client, batch: &[u8]) -> Vec<Message> {
    client.send(batch).await;
    read(client, readies(batch)).await
}

/// Reads until so many ReadyForQuery, or the end of the connection.
pub async fn read(client: &mut Client, readies: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut left = readies;
    while left > 0 {
        let message = within_limit("an answer", client.read_message()).await;
        let Some(message) = message else {
            break;
        };
        left -= usize::from(message.tag == b'Z');
        if message.tag != b'S' {
            messages.push(message);
        }
    }
    messages
}

/// Errors without the place in the server's source where they were raised: pgweir has none.
pub fn placeless(messages: &[Message]) -> Vec<Message> {
    let strip = |message: &Message| {
        if message.tag != b'E' {
            return message.clone();
        }
        let body = message.body.split(|byte| *byte == 0);
        let body: Vec<_> = body
            .filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')))
            .collect();
        Message {
            tag: b'E',
            body: body.join(&0),
        }
    };
    messages.iter().map(strip).collect()
}

/// A client of PostgreSQL, one of pgweir with two backends, and a third that moves the second about.
pub struct Same {
    direct: Client,
    through: Client,
    other: Client,
    _pgweir: Pgweir,
    turn: usize,
}

impl Same {
    pub async fn new(options: impl FnOnce(Options) -> Options) -> Self {
        let pgweir = options(Options::new(shared::server()).flag("--pool-size", "2")).start();
        let login = Login::new("postgres", "postgres");
        Self {
            direct: shared::direct().await,
            through: pgweir.client_as(&login).await,
            other: pgweir.client_as(&login).await,
            _pgweir: pgweir,
            turn: 0,
        }
    }

    /// Sends `batch` to both and compares; returns the answer. Before every other time the third client takes the
    /// backend that was used last and keeps it in a transaction, so that the next batch goes to the other one.
    #[track_caller]
    pub fn check(&mut self, batch: &[u8]) -> impl Future<Output = Vec<Message>> + use<'_> {
        let batch = batch.to_vec();
        let caller = std::panic::Location::caller();
        async move {
            let end = if self.turn.is_multiple_of(2) {
                "BEGIN"
            } else {
                "COMMIT"
            };
            self.other.query(end).await.ok();
            self.turn += 1;
            let expected = exchange(&mut self.direct, &batch).await;
            let got = exchange(&mut self.through, &batch).await;
            let [got, expected] = [got, expected].map(|answer| placeless(&answer));
            assert_eq!(got, expected, "called from {caller}");
            got
        }
    }

    /// The two that are compared.
    pub fn both(&mut self) -> [&mut Client; 2] {
        [&mut self.direct, &mut self.through]
    }

    /// The tags of the answer, in order.
    #[track_caller]
    pub fn tags(&mut self, batch: &[u8]) -> impl Future<Output = String> + use<'_> {
        let check = self.check(batch);
        async move {
            check
                .await
                .iter()
                .map(|message| char::from(message.tag))
                .collect()
        }
    }
}
