//! What a session asks its shared listener for (see [`super::listening`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::listening::{Asked, Listening, Wanted, listens};
use super::session::Session;
use crate::pool::listener::{Answer, Ask, Hearing, Key};
use crate::sql::known::Known;

impl Session {
    /// Asks the shared listener what it must have done before a statement is sent: that it is there, if the statement
    /// listens; that it hears what the statement may commit; that all is told that was committed before the statement
    /// `leaves` a channel. `None` while the answer is awaited.
    pub(super) fn ask_before(
        &mut self,
        listens_now: Option<&Known>,
        commits: bool,
        leaves: bool,
    ) -> Option<Answer> {
        let listening = self.listening.as_deref_mut()?;
        let mut channels = listening.channels.heard_of();
        if let Some(known) = listens_now {
            channels.extend(listens(known).cloned());
        }
        let subscribes = commits && !channels.is_empty();
        let wanted = Wanted {
            channels: channels.clone(),
            subscribes,
        };
        match listening.asked {
            Asked::Answered(answer) => {
                listening.asked = Asked::Nothing;
                if std::mem::take(&mut listening.asked_for) == wanted {
                    return Some(answer);
                }
            }
            Asked::Nothing => {}
            _ => return None,
        }
        let tells = leaves && !listening.subscribed.is_empty();
        if !subscribes && listens_now.is_none() && !tells {
            return Some(Answer::Done);
        }
        listening.asked = Asked::ForStatement(self.now);
        listening.asked_for = wanted;
        self.join_listener();
        let hearing = self.listening.as_ref()?.hearing.as_ref()?;
        hearing.ask(if subscribes {
            Ask::Subscribe(channels)
        } else if listens_now.is_some() {
            Ask::Subscribe(BTreeSet::new())
        } else {
            Ask::Fence
        });
        None
    }

    /// A transaction begins. What was committed before is the client's, whatever the transaction leaves.
    pub(super) fn mark_beginning(&mut self) {
        let Some(Listening {
            channels,
            hearing: Some(hearing),
            subscribed,
            ..
        }) = self.listening.as_deref()
        else {
            return;
        };
        if !subscribed.is_empty() {
            let here = hearing.ear.len();
            hearing
                .ear
                .end_transaction(here, |channel| channels.listens_on(channel));
            hearing.ask(Ask::Mark);
        }
    }

    fn join_listener(&mut self) {
        let key = Key {
            database: Arc::clone(&self.pool.key.database),
            encoding: self.told.get(b"client_encoding").unwrap_or_default().into(),
        };
        let entry = Arc::clone(&self.entry);
        let pools = &self.shared.pools;
        if let Some(listening) = &mut self.listening {
            listening.hearing.get_or_insert_with(|| {
                let wake = Box::new(move || entry.wake());
                pools.listeners.join(pools, key, &self.pool, wake)
            });
        }
    }

    /// The server sends notifications in the encoding of the connection that listens.
    pub(super) fn follow_encoding(&mut self) {
        let encoding = self.told.get(b"client_encoding").unwrap_or_default();
        let Some(listening) = &mut self.listening else {
            return;
        };
        let is_same = |it: &Hearing| it.encoding() == encoding;
        let stays = |until: Instant| self.now < until;
        if listening.asked != Asked::Nothing
            || listening.subscribed.is_empty()
            || listening.hearing.as_ref().is_none_or(is_same)
            || listening.stays_until.is_some_and(stays)
        {
            return;
        }
        listening.asked = Asked::ForMove(self.now);
        listening.former = listening.hearing.take();
        let channels = listening.subscribed.clone();
        self.join_listener();
        if let Some(hearing) = self.listening.as_ref().and_then(|it| it.hearing.as_ref()) {
            hearing.ask(Ask::Subscribe(channels));
        }
    }
}
