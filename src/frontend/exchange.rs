//! Looking at an exchange before it is sent: what it is, and how far it reaches.

use std::sync::Arc;

use super::rerun::KEPT_MAX;
use super::routes::Routes;
use super::session::Session;
use crate::config::model::{PoolMode, Reads};
use crate::routing::proof::{Intent, Proof, Text};
use crate::routing::reason::Reason;
use crate::shared::Prepared;
use crate::sql::hints::{RouteHint, route_hint};
use crate::sql::known::Known;
use crate::wire::frame::{FrameError, HEADER, Header};
use crate::wire::frontend::{self as f, Bind, Parse, Target};
use crate::wire::limits::WHOLE_FRAME_MAX;

/// Whether `input` holds something worth getting a backend for: a whole batch, or more than is collected. A client
/// that dribbles half a pipeline holds no backend meanwhile.
pub(super) fn holds_batch(input: &[u8], max: usize) -> Result<bool, FrameError> {
    let mut at = 0;
    while let Some(header) = Header::peek(&input[at..], max)? {
        let whole = at + header.len <= input.len();
        if !matches!(
            header.tag,
            f::PARSE | f::BIND | f::DESCRIBE | f::EXECUTE | f::CLOSE
        ) {
            return Ok(true);
        }
        if !whole {
            break;
        }
        at += header.len;
    }
    Ok(input.len() >= WHOLE_FRAME_MAX)
}

/// What an exchange is.
#[derive(Debug)]
pub(super) struct Exchange {
    pub intent: Intent,
    /// A comment asks for a replica.
    pub is_asked_for: bool,
    /// It executes more than one statement.
    pub has_several: bool,
    /// What is known of it, if it is a simple query.
    pub query: Option<Arc<Known>>,
}

impl Exchange {
    fn primary(reason: Reason) -> Self {
        Self {
            intent: Intent::Primary(reason),
            is_asked_for: false,
            has_several: false,
            query: None,
        }
    }
}

/// What a look at an exchange has found so far.
struct Look<'a> {
    proof: Proof,
    /// The unnamed statement, if the exchange makes it.
    unnamed: Option<Arc<Prepared>>,
    query: Option<Arc<Known>>,
    executes: usize,
    session: &'a Session,
    routes: &'a Routes,
}

impl Session {
    /// What the exchange at the front of `input` is.
    pub(super) fn examine(&self, routes: &Routes, input: &[u8]) -> Exchange {
        if let Some(reason) = routes.forced {
            return Exchange::primary(reason);
        }
        // At each run of it, and though the routes may have been made anew since it failed.
        if self.is_replaying() || self.is_to_fail() {
            return Exchange::primary(Reason::Again);
        }
        if !self.pins.is_empty() || self.effective.pool.pool_mode == PoolMode::Session {
            return Exchange::primary(Reason::SessionState);
        }
        let mut exchange = self.look(routes, input);
        if exchange.intent == Intent::Read || exchange.intent == Intent::ReadOnlyTransaction {
            if routes.consistency() == Some(Err(())) {
                exchange.intent = Intent::Primary(Reason::Consistency);
            } else if self.effective.routing.reads == Reads::Primary && !exchange.is_asked_for {
                exchange.intent = Intent::Primary(Reason::Configured);
            }
        }
        exchange
    }

    /// The same, whoever asks and whatever is configured.
    pub(super) fn look(&self, routes: &Routes, input: &[u8]) -> Exchange {
        let mut look = Look {
            proof: Proof::new(routes.defaults(&self.pool, self.now)),
            unnamed: None,
            query: None,
            executes: 0,
            session: self,
            routes,
        };
        if look.frames(input).is_none() {
            look.proof.refuse(Reason::Exchange);
        }
        Exchange {
            intent: look.proof.intent(),
            is_asked_for: look.proof.asks_for_replica(),
            has_several: look.executes > 1
                || look
                    .query
                    .as_ref()
                    .is_some_and(|known| known.class.statements.len() > 1),
            query: look.query,
        }
    }
}

/// A text with what a comment in it says.
pub(super) type Hinted = (Arc<Known>, Option<RouteHint>);

impl Session {
    /// The texts of the exchange at the front of `input`, in order; `None` if it is not whole or not known whole.
    pub(super) fn texts_whole(&self, input: &[u8]) -> Option<Vec<Hinted>> {
        let mut texts: Vec<Hinted> = Vec::new();
        let mut unnamed = false;
        let mut at = 0;
        let options = self.lex_options();
        let hinted = |known: Arc<Known>, text: &[u8]| (known, route_hint(text, options));
        loop {
            let header = Header::peek(&input[at..], KEPT_MAX).ok()??;
            let end = at + header.len;
            let payload = input.get(at + HEADER..end)?;
            match header.tag {
                f::QUERY => {
                    let text = f::query_text(payload).ok()?;
                    texts.push(hinted(self.shared.known.lookup(text, options), text));
                    return Some(texts);
                }
                f::SYNC => return Some(texts),
                f::PARSE => {
                    let parse = Parse::read(payload).ok()?;
                    unnamed |= parse.name.is_empty();
                    let known = self.shared.known.lookup(parse.text, options);
                    texts.push(hinted(known, parse.text));
                }
                // A name that is made in the exchange itself is not known yet; its text is.
                f::BIND => {
                    let name = Bind::read(payload)?.statement;
                    if !(name.is_empty() && unnamed) {
                        let named = self.names.get(name)?;
                        let text = named.statement.text();
                        texts.push(hinted(Arc::clone(&named.statement.known), text));
                    }
                }
                f::DESCRIBE | f::EXECUTE | f::CLOSE => {}
                _ => return None,
            }
            at = end;
        }
    }
}

impl Look<'_> {
    /// Looks at the frames of an exchange; `None` if it is not one that can be kept and run elsewhere.
    fn frames(&mut self, input: &[u8]) -> Option<()> {
        let mut at = 0;
        loop {
            let header = Header::peek(&input[at..], KEPT_MAX).ok()??;
            let end = at + header.len;
            let payload = input.get(at + HEADER..end).filter(|_| end <= KEPT_MAX)?;
            match header.tag {
                f::QUERY if at == 0 => {
                    self.simple(payload)?;
                    return Some(());
                }
                f::SYNC => return Some(()),
                f::PARSE => self.parse(payload)?,
                f::BIND => {
                    let name = Bind::read(payload)?.statement;
                    self.statement(name)?;
                }
                f::EXECUTE => self.executes += 1,
                f::DESCRIBE => {
                    if let Target::Statement(name) = Target::read(header.tag, payload).ok()? {
                        self.statement(name)?;
                    }
                }
                f::CLOSE => {
                    if let Target::Statement(_) = Target::read(header.tag, payload).ok()? {
                        self.proof.refuse(Reason::Prepare);
                    }
                }
                f::FUNCTION_CALL => {
                    self.proof.refuse(Reason::Write);
                    return None;
                }
                _ => return None,
            }
            at = end;
        }
    }

    fn simple(&mut self, payload: &[u8]) -> Option<()> {
        let session = self.session;
        let text = f::query_text(payload).ok()?;
        let known = session.shared.known.lookup(text, session.lex_options());
        self.add(&known, text);
        self.query = Some(known);
        Some(())
    }

    /// A Parse of the unnamed statement is part of its exchange; a named one lives longer.
    fn parse(&mut self, payload: &[u8]) -> Option<()> {
        let parse = Parse::read(payload).ok()?;
        if !parse.name.is_empty() {
            self.proof.refuse(Reason::Prepare);
            return Some(());
        }
        let session = self.session;
        let (known, options) = (&session.shared.known, session.lex_options());
        let meaning = session.meaning(parse.text);
        let statement = session
            .shared
            .statements
            .intern(parse.body, None, meaning, || {
                known.lookup(parse.text, options)
            });
        self.add(&statement.known, parse.text);
        self.unnamed = Some(statement);
        Some(())
    }

    /// A statement that was made before, unless it is the one of this exchange.
    fn statement(&mut self, name: &[u8]) -> Option<()> {
        if name.is_empty() && self.unnamed.is_some() {
            return Some(());
        }
        let named = self.session.names.get(name)?;
        let text = named.statement.text();
        let known = Arc::clone(&named.statement.known);
        self.add(&known, text);
        Some(())
    }

    fn add(&mut self, known: &Known, text: &[u8]) {
        let (session, routes) = (self.session, self.routes);
        if known.reads_channels {
            self.proof.refuse(Reason::SessionState);
        }
        let text = Text {
            class: &known.class,
            hint: route_hint(text, session.lex_options()),
            refused: known.is_refused(),
            hides_write: routes.hides_write(&known.class, &session.pool, session.now),
        };
        self.proof.add(text, |function| {
            routes.calls(function, &session.pool, session.now)
        });
    }
}
