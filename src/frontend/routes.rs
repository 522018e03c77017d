//! What a session keeps for routing: which cluster it is on, what it has written, what it wants to see, where it reads.
//!
//! A session in front of a single server has none of this.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::opened::Opened;
use super::session::Session;
use crate::cluster::Cluster;
use crate::cluster::node::{Asked, Node};
use crate::cluster::samples::Tick;
use crate::config::model::{self, Consistency};
use crate::error::SqlState;
use crate::pool::Pool;
use crate::pool::catalogue::{Catalogue, Found};
use crate::retry::policy::Doubt;
use crate::routing::proof::{Calls, Defaults};
use crate::routing::reason::Reason;
use crate::session::mirror::Reported;
use crate::session::settings::Settings;
use crate::sql::classify::{Class, Reads, Statement, StatementKind, TransactionModes};
use crate::sql::functions::{Behaviour, FunctionName};
use crate::sql::known::Known;
use crate::sql::tables::Tables;

/// The setting by which a session chooses what its reads must see. The server takes it for a placeholder.
const CONSISTENCY: &[u8] = b"pgweir.consistency";

/// A read on a replica; counted among what the replica has to do until it is dropped.
#[derive(Debug)]
pub(super) struct Reading {
    pub node: Arc<Node>,
    since: Instant,
    /// How long it takes is up to the replica, not to a client that thinks in between.
    is_measured: bool,
}

impl Reading {
    pub(super) fn new(node: &Arc<Node>, since: Instant) -> Self {
        node.load.sent();
        Self {
            node: Arc::clone(node),
            since,
            is_measured: true,
        }
    }

    pub(super) fn answered(&self, now: Instant) {
        if !self.is_measured {
            return;
        }
        self.node.load.answered(now.duration_since(self.since), now);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.node.load.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An exchange on a replica of which the client has seen nothing yet: it can be run elsewhere.
#[derive(Debug)]
pub(super) struct Trial {
    /// What the replica has answered.
    pub held: Vec<u8>,
    /// What the client had been told of settings.
    pub told: Arc<Reported>,
    /// Its first row shows that it runs; an exchange with several statements is held to its end.
    pub ends_at_row: bool,
    pub failed: Option<Failed>,
}

/// How a trial failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub code: SqlState,
    /// What the backend has is not known: it is not used again.
    pub is_spoilt: bool,
}

/// What the session's settings say about reads.
#[derive(Debug)]
struct Preferences {
    /// The settings it was read from.
    settings: Arc<Settings>,
    /// `None`: not said. An error: something that means nothing.
    consistency: Option<Result<Consistency, ()>>,
    read_only: bool,
    /// `None`: not said.
    serializable: Option<bool>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Routes {
    pub cluster: Arc<Cluster>,
    pub catalogue: Arc<Catalogue>,
    preferences: Preferences,
    /// What the session's reads must see of its own writes.
    pub own: Tick,
    /// The statements under way on the primary may have written.
    wrote: bool,
    /// They may have changed what the catalogue says of functions.
    redefines: bool,
    /// The server that an answer is awaited of.
    asked: Option<Asked>,
    /// The replica that the lease is of.
    pub reading: Option<Reading>,
    /// The exchange that was looked at is not sent as a whole yet.
    pub in_exchange: bool,
    pub trial: Option<Trial>,
    pub opened: Option<Opened>,
    /// A transaction that is taken elsewhere begins there with these.
    pub reopen: Option<TransactionModes>,
    /// Servers not to be tried for the exchange in front, a bit each.
    pub avoid: u64,
    /// The exchange in front goes to the primary for this reason.
    pub forced: Option<Reason>,
    /// The pool the session waits in, if it is a replica's.
    pub queue: Option<(Arc<Pool>, usize)>,
    /// Until when the exchange in front waits for a replica to catch up.
    pub patience: Option<Instant>,
}

fn preferences(settings: &Arc<Settings>, told: &Reported) -> Preferences {
    let read_only = settings
        .get(b"default_transaction_read_only")
        .or_else(|| told.get(b"default_transaction_read_only"));
    // RESET leaves a placeholder behind with an empty value.
    let said = settings.get(CONSISTENCY).filter(|value| !value.is_empty());
    let consistency = said.map(|value| {
        let text = std::str::from_utf8(value).map_err(|_| ())?;
        Consistency::parse(text).ok_or(())
    });
    Preferences {
        settings: Arc::clone(settings),
        consistency,
        read_only: read_only == Some(b"on"),
        serializable: settings
            .get(b"default_transaction_isolation")
            .map(|value| value.eq_ignore_ascii_case(b"serializable")),
    }
}

impl Routes {
    /// What holds for transactions that say nothing themselves: by the session's settings, or else by its role's or the
    /// server's.
    pub(super) fn defaults(&self, pool: &Arc<Pool>, now: Instant) -> Defaults {
        let said = self.preferences.serializable;
        Defaults {
            read_only: self.preferences.read_only,
            serializable: said.or_else(|| self.catalogue.is_serializable(pool, now)),
        }
    }

    /// What the session's reads must see, where it has said so; an error if it has said something that means nothing.
    pub(super) fn consistency(&self) -> Option<Result<Consistency, ()>> {
        self.preferences.consistency
    }

    /// Whether a function may write.
    pub(super) fn calls(&self, function: &FunctionName, pool: &Arc<Pool>, now: Instant) -> Calls {
        let reads_by_name = matches!(
            function.behaviour,
            Behaviour::Safe | Behaviour::Volatile | Behaviour::Node
        );
        if reads_by_name && function.schema.is_some() {
            // Only `pg_catalog.name` is known by name.
            return Calls::Reads;
        }
        match self.catalogue.find(function.name.as_bytes(), pool, now) {
            Found::Reads => Calls::Reads,
            Found::Writes => Calls::Writes,
            Found::Absent if reads_by_name => Calls::Reads,
            Found::Absent | Found::Unread => Calls::Unknown,
        }
    }

    /// Whether a statement may write, for all that its text shows.
    fn may_write(&self, known: &Known, pool: &Arc<Pool>, now: Instant) -> bool {
        let class = &known.class;
        known.is_refused()
            || (class.reads == Reads::No && !class.statements.iter().all(leaves_data_alone))
            || class
                .functions
                .iter()
                .any(|function| self.calls(function, pool, now) != Calls::Reads)
    }

    /// Whether a statement is known to name what may write when it is read.
    pub(super) fn hides_write(&self, class: &Class, pool: &Arc<Pool>, now: Instant) -> bool {
        let hidden = self.catalogue.hidden(pool, now);
        hidden.is_some_and(|hidden| names_one_of(&class.tables, &hidden.relations))
    }

    /// Whether a statement may write by what its text does not show: a view, a policy, an operator.
    fn may_hide_write(&self, known: &Known, pool: &Arc<Pool>, now: Instant) -> bool {
        let class = &known.class;
        if class
            .statements
            .iter()
            .all(|statement| statement.kind.is_transaction_control())
        {
            return false;
        }
        let Some(hidden) = self.catalogue.hidden(pool, now) else {
            return true;
        };
        let tables = &class.tables;
        hidden.anywhere
            || (!tables.is_complete() && !hidden.relations.is_empty())
            || names_one_of(tables, &hidden.relations)
            || hidden
                .attributes
                .iter()
                .any(|name| known.attributes.may_have(name))
    }

    /// The server that the session is on owes it an answer from now on.
    fn ask(&mut self, now: Instant) {
        let primary = || self.cluster.nodes.get(self.cluster.topology().primary?);
        let reading = self.reading.as_ref().map(|reading| &reading.node);
        let Some(node) = reading.or_else(primary) else {
            return;
        };
        if self
            .asked
            .as_ref()
            .is_none_or(|asked| !Arc::ptr_eq(&asked.node, node))
        {
            self.asked = Some(Asked::new(node, now));
        }
    }
}

fn names_one_of(tables: &Tables, relations: &HashSet<Box<[u8]>>) -> bool {
    let mut tables = tables.list().iter();
    !relations.is_empty() && tables.any(|table| relations.contains(table.name.as_bytes()))
}

/// Whether a statement changes no data, though it is no read: it is about the session or the transaction. What a cursor
/// may do is counted where it is declared.
fn leaves_data_alone(statement: &Statement) -> bool {
    use StatementKind as K;
    statement.kind.is_transaction_control()
        && !matches!(statement.kind, K::CommitPrepared | K::RollbackPrepared)
        || matches!(
            statement.kind,
            K::SetTransaction(_)
                | K::SetConstraints
                | K::SetSessionCharacteristics(_)
                | K::Set
                | K::SetLocal
                | K::Reset
                | K::Show(_)
                | K::Discard(_)
                | K::Prepare
                | K::Deallocate
                | K::Listen
                | K::Unlisten
                | K::Fetch
                | K::Move
                | K::Close
                | K::Explain { analyze: false, .. }
        )
}

impl Session {
    /// The settings of the pool as they are now; with them the cluster, if they name another one.
    pub(super) fn refresh(&mut self) {
        let next = self.pool.effective.load_full();
        if Arc::ptr_eq(&next, &self.effective) && (self.routes.is_some() || next.servers.is_empty())
        {
            return;
        }
        let before = std::mem::replace(&mut self.effective, next);
        self.forget_catalogue();
        let is_same = self
            .routes
            .as_ref()
            .is_some_and(|routes| routes.cluster.servers == self.effective.servers);
        let cluster = self.shared.clusters.of(&self.effective.servers);
        match (cluster, &mut self.routes) {
            // What was noted means the same there.
            (Some(cluster), Some(routes)) if is_same => routes.cluster = cluster,
            (Some(cluster), _) => {
                let mut routes = self.routes_on(cluster);
                if let Some(before) = &self.routes {
                    routes.own = routes.own.max(before.own);
                } else if before.servers.is_empty() {
                    // What it wrote while there were no replicas was not noted.
                    routes.own = routes.cluster.note_write();
                }
                self.routes = Some(Box::new(routes));
            }
            (None, routes) => *routes = None,
        }
    }

    fn routes_on(&self, cluster: Arc<Cluster>) -> Routes {
        Routes {
            catalogue: self.shared.pools.catalogue(&self.pool),
            preferences: preferences(self.settings.current(), &self.told),
            // A session begins with what was written before it came: its client may have written that on another
            // connection.
            own: cluster.written(),
            cluster,
            wrote: false,
            redefines: false,
            asked: None,
            reading: None,
            in_exchange: false,
            trial: None,
            opened: None,
            reopen: None,
            avoid: 0,
            forced: None,
            queue: None,
            patience: None,
        }
    }

    /// Takes a changed setting into account.
    pub(super) fn renew_preferences(&mut self) {
        if let Some(routes) = &mut self.routes
            && !Arc::ptr_eq(&routes.preferences.settings, self.settings.current())
        {
            routes.preferences = preferences(self.settings.current(), &self.told);
        }
    }

    /// A statement is being sent; `None` is one that nothing is known of.
    pub(super) fn note_sent(&mut self, known: Option<&Known>) {
        self.note_doubt(known);
        let Some(routes) = self.routes.as_deref_mut() else {
            return;
        };
        routes.ask(self.now);
        let Some(known) = known else {
            routes.wrote = true;
            routes.follow_unknown();
            return;
        };
        let is_on_primary = routes.reading.is_none();
        let hides = is_on_primary && routes.may_hide_write(known, &self.pool, self.now);
        if is_on_primary && !routes.wrote {
            routes.wrote = hides || routes.may_write(known, &self.pool, self.now);
        }
        routes.follow(known);
        if known.changes_functions {
            routes.redefines = true;
            routes.catalogue.forget();
        }
        if hides && known.doubt == Doubt::Read {
            // What a text hides is not run again where it may have been done.
            self.rerun_mut().journal.worsen(Doubt::Write);
        }
    }

    /// The session waits for a connection to the primary, which may be as silent while it is opened.
    pub(super) fn note_asked(&mut self) {
        if let Some(routes) = self.routes.as_deref_mut() {
            routes.ask(self.now);
        }
    }

    /// No server owes the session anything.
    pub(super) fn note_nothing_asked(&mut self) {
        if let Some(routes) = self.routes.as_deref_mut() {
            routes.asked = None;
        }
    }

    /// The server has answered everything that it was sent so far: the client is the one who is awaited.
    pub(super) fn note_heard(&mut self) {
        let asked = self
            .routes
            .as_deref_mut()
            .and_then(|routes| routes.asked.take());
        if let Some(asked) = asked {
            asked.answered(self.now);
        }
    }

    /// The server has acknowledged something, and the client is not told yet.
    pub(super) fn note_acknowledged(&mut self) {
        if let Some(routes) = self.routes.as_deref_mut()
            && routes.wrote
        {
            routes.own = routes.cluster.note_write();
        }
    }

    /// Nothing is under way, and no transaction is open.
    pub(super) fn note_rest(&mut self) {
        if let Some(routes) = self.routes.as_deref_mut() {
            routes.wrote = false;
            if std::mem::take(&mut routes.redefines) {
                // It may have been read again before the change was committed.
                routes.catalogue.forget();
            }
            if let (Some(_), Some(reading)) = (routes.opened.take(), &mut routes.reading) {
                reading.is_measured = false;
            }
        }
    }

    /// Whether reads are for replicas as a rule; lanes are the primary's.
    pub(super) fn reads_from_replicas(&self) -> bool {
        let effective = &self.effective;
        !effective.servers.is_empty() && effective.routing.reads == model::Reads::Replicas
    }

    /// The session's backend is a replica's.
    pub(super) fn is_on_replica(&self) -> bool {
        self.routes
            .as_ref()
            .is_some_and(|routes| routes.reading.is_some())
    }

    /// The pool the session waits in.
    pub(super) fn queue(&self) -> &Arc<Pool> {
        let of_replica = self
            .routes
            .as_ref()
            .and_then(|routes| routes.queue.as_ref());
        of_replica.map_or(&self.pool, |(pool, _)| pool)
    }
}
