//! Which functions of a database may write, as `pg_proc` says, and where they hide; whose transactions are serializable as a
//! rule. Read when first needed, and again now and then.
//!
//! A function is taken by its name alone, whatever its schema and arguments: if any of that name may write, all may.
//! What is not known may write. A function that is declared `STABLE` and writes all the same is refused by a replica
//! (25006) and then known by the statement that called it.
//!
//! Bound: one catalogue for each database that has pools; of a database with more functions than an answer may have rows
//! nothing is known.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::effective::Effective;
use super::hidden::{self, Hidden};
use super::lease::Lease;
use super::pool::Pool;
use super::pools::Pools;
use super::unseen::Unseen;
use super::waiter::Waiter;
use crate::backend::query;
use crate::tasks;

/// How long what was read is believed.
const BELIEVED: Duration = Duration::from_secs(60);
/// How long reading it may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Functions there may be; an answer has at most this many rows.
const FUNCTIONS_MAX: usize = 10_000;

/// Every function that is not PostgreSQL's own, and whether it may write: an aggregate if one of the functions it is
/// made of may.
const QUESTION: &[u8] = b"SELECT proname, pg_catalog.bool_or(CASE WHEN prokind = 'a' THEN EXISTS (\
    SELECT FROM pg_catalog.pg_aggregate a JOIN pg_catalog.pg_proc f ON f.oid IN \
    (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) \
    WHERE a.aggfnoid = p.oid AND f.provolatile = 'v') ELSE provolatile = 'v' END) \
    FROM pg_catalog.pg_proc p WHERE pronamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, \
    'information_schema'::pg_catalog.regnamespace) GROUP BY proname LIMIT 10001";

/// Whose transactions are serializable where they say nothing else: names of roles, or nothing for everybody's. Nobody is
/// missed, but for what is in the configuration file and the role that asks has otherwise.
const SERIALIZABLE: &[u8] = b"WITH s AS (SELECT COALESCE(r.rolname::pg_catalog.text, '') AS name \
    FROM pg_catalog.pg_db_role_setting d LEFT JOIN pg_catalog.pg_roles r ON r.oid = d.setrole \
    WHERE d.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) \
    AND EXISTS (SELECT FROM pg_catalog.unnest(d.setconfig) AS c \
      WHERE pg_catalog.lower(c) = 'default_transaction_isolation=serializable')) \
    SELECT name FROM s UNION SELECT '' FROM pg_catalog.pg_settings \
    WHERE name = 'default_transaction_isolation' AND reset_val = 'serializable' \
    AND NOT EXISTS (SELECT FROM s WHERE name = session_user)";

/// What was read.
#[derive(Debug)]
struct Functions {
    read: Instant,
    /// Roles whose transactions are serializable as a rule; an empty name stands for all. `None` if the server would not
    /// say.
    serializable: Option<HashSet<Box<[u8]>>>,
    /// Whether a function of this name may write.
    writes: HashMap<Box<[u8]>, bool>,
    hidden: Arc<Hidden>,
}

/// By servers (by the server where there is one) and database.
pub(super) type Catalogues = HashMap<(Arc<str>, String), Arc<Catalogue>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Catalogue {
    functions: ArcSwapOption<Functions>,
    is_being_read: AtomicBool,
    /// How often something was changed.
    changes: AtomicU64,
    /// What it runs unseen that may leave something in a session.
    pub unseen: Unseen,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Every function of this name only reads.
    Reads,
    Writes,
    /// PostgreSQL's own, or there is none.
    Absent,
    /// The catalogue was not read yet, or can't be.
    Unread,
}

impl Catalogue {
    /// What is known of functions called `name`; has the catalogue read, through `pool`, when that is due.
    pub fn find(self: &Arc<Self>, name: &[u8], pool: &Arc<Pool>, now: Instant) -> Found {
        match self.current(pool, now) {
            None => Found::Unread,
            Some(functions) if functions.writes.len() >= FUNCTIONS_MAX => Found::Unread,
            Some(functions) => match functions.writes.get(name) {
                None => Found::Absent,
                Some(true) => Found::Writes,
                Some(false) => Found::Reads,
            },
        }
    }

    /// What texts that name no function may write by; `None` if that is not known. Reads the catalogue as
    /// [`Catalogue::find`] does.
    pub fn hidden(self: &Arc<Self>, pool: &Arc<Pool>, now: Instant) -> Option<Arc<Hidden>> {
        let functions = self.current(pool, now)?;
        Some(Arc::clone(&functions.hidden))
    }

    /// Whether transactions on connections of `pool` are serializable where neither they nor their session say anything
    /// else; `None` if that is not known. Reads the catalogue as [`Catalogue::find`] does.
    pub fn is_serializable(self: &Arc<Self>, pool: &Arc<Pool>, now: Instant) -> Option<bool> {
        let effective = pool.effective.load();
        let mut startup = effective.startup.iter();
        if let Some((_, value)) = startup.find(|it| it.0 == "default_transaction_isolation") {
            return Some(value.eq_ignore_ascii_case("serializable"));
        }
        let functions = self.current(pool, now)?;
        let names = [b"", effective.login_user.as_bytes()];
        let serializable = functions.serializable.as_ref()?;
        Some(!serializable.is_empty() && names.iter().any(|name| serializable.contains(*name)))
    }

    fn current(self: &Arc<Self>, pool: &Arc<Pool>, now: Instant) -> Option<Arc<Functions>> {
        let functions = self.functions.load_full();
        let is_due = functions
            .as_ref()
            .is_none_or(|functions| now.duration_since(functions.read) > BELIEVED);
        if is_due && !self.is_being_read.swap(true, Ordering::SeqCst) {
            tasks::spawn("read functions", Arc::clone(self).read(Arc::clone(pool)));
        }
        functions
    }

    /// Something has been made or changed: what is known is not true any more, nor is what is being read.
    pub fn forget(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.functions.store(None);
    }

    async fn read(self: Arc<Self>, pool: Arc<Pool>) {
        let changes = self.changes.load(Ordering::SeqCst);
        match tokio::time::timeout(LIMIT, ask(&pool)).await {
            Ok(Some(functions)) => {
                self.functions.store(Some(Arc::new(functions)));
                // After storing it: whoever changes something meanwhile clears what is stored, or is seen here.
                if self.changes.load(Ordering::SeqCst) != changes {
                    self.functions.store(None);
                }
            }
            Ok(None) | Err(_) => {
                tracing::debug!(pool = %pool.key, "could not read the functions of a database");
            }
        }
        self.is_being_read.store(false, Ordering::SeqCst);
    }
}

async fn ask(pool: &Arc<Pool>) -> Option<Functions> {
    let mut lease = lease(pool).await?;
    let read = Instant::now();
    let answer = query::on_backend(&mut lease, QUESTION).await;
    let hidden = query::on_backend(&mut lease, hidden::QUESTION).await;
    let serializable = query::on_backend(&mut lease, SERIALIZABLE).await;
    lease.checkin();
    let rows = answer.ok()?;
    let entry = |row: Vec<Option<Vec<u8>>>| {
        let mut columns = row.into_iter();
        let name = columns.next()??.into_boxed_slice();
        let writes = columns.next()? != Some(b"f".to_vec());
        Some((name, writes))
    };
    let writes = rows.into_iter().map(entry).collect::<Option<_>>()?;
    let name = |row: Vec<Option<Vec<u8>>>| Some(row.into_iter().next()??.into_boxed_slice());
    let serializable = serializable.ok().map(|rows| rows.into_iter().map(name));
    Some(Functions {
        read,
        serializable: serializable.and_then(Iterator::collect),
        writes,
        hidden: Arc::new(Hidden::read(hidden.ok()?)?),
    })
}

/// Waits for a connection as a client does.
pub(super) async fn lease(pool: &Arc<Pool>) -> Option<Lease> {
    struct Withdraw<'a>(&'a Arc<Pool>, Arc<Waiter>);
    impl Drop for Withdraw<'_> {
        fn drop(&mut self) {
            self.0.withdraw(&self.1);
        }
    }
    if let Some(lease) = pool.try_checkout() {
        return Some(lease);
    }
    let waiting = Withdraw(pool, Arc::default());
    pool.enqueue(&waiting.1);
    std::future::poll_fn(|cx| waiting.1.poll(cx)).await.ok()
}

/// The catalogue that a pool's sessions ask, and the configuration that it belongs to.
pub(super) type Own = Mutex<Option<(Arc<Effective>, Arc<Catalogue>)>>;

impl Pools {
    /// The functions of a database on its servers.
    pub fn catalogue(&self, pool: &Pool) -> Arc<Catalogue> {
        let effective = pool.effective.load();
        let mut own = pool
            .catalogue
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*own {
            Some((of, catalogue)) if Arc::ptr_eq(of, &effective) => Arc::clone(catalogue),
            _ => {
                let catalogue = self.find_catalogue(&effective);
                *own = Some((Arc::clone(&effective), Arc::clone(&catalogue)));
                catalogue
            }
        }
    }

    fn find_catalogue(&self, effective: &Effective) -> Arc<Catalogue> {
        let servers = if effective.servers.is_empty() {
            let server = &effective.primary;
            format!("{}:{}", server.host, server.port).into()
        } else {
            Arc::clone(&effective.servers)
        };
        let key = (servers, effective.dbname.clone());
        let mut catalogues = self
            .catalogues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Those that no pool and no session holds are of databases that nobody uses.
        catalogues.retain(|known, catalogue| *known == key || Arc::strong_count(catalogue) > 1);
        Arc::clone(catalogues.entry(key).or_default())
    }
}
