//! What a database runs unseen that may leave something in the session: triggers, defaults, checks, rules, views, policies,
//! operators and casts that call functions which set something, lock, make temporary tables.
//!
//! Read for each database when first needed, and again now and then. If no such function is found, as a rule, a text means
//! what it says. If one is, texts by which it may be run count as code that can't be seen through: the server is asked
//! what they have left before anybody else gets the connection.
//!
//! # Why not by table
//! A trigger writes to other tables, which have triggers; a foreign key cascades; a view reads views. Who may fire what would
//! have to be followed through all of them. Few databases have such functions at all, and asking is cheap.
//!
//! Functions in C count as harmless, and so does whatever was made elsewhere since the last reading. A function is taken by
//! its name alone.
//!
//! Bound: `FUNCTIONS_MAX` functions, and 4 MiB of sources in an answer, while reading; of a database with more, everything
//! counts. What is kept is three flags and the names of functions that can be written as columns.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use thiserror::Error;
use tokio::time::Instant;

use super::catalogue;
use super::effective::Effective;
use super::open;
use super::pool::Pool;
use crate::backend::connect::Dialer;
use crate::backend::connection::Backend;
use crate::backend::query::{self, QueryError, Row};
use crate::error::SqlState;
use crate::session::literal::put_text;
use crate::sql::unseen::{Leaves, Source, Sources};
use crate::tasks;

/// How long what was read is believed: long enough, too, that reading takes no more than its share of a connection's time.
const BELIEVED: Duration = Duration::from_secs(60);
const SHARE: u32 = 1000;
/// How long reading it may take, and when it is tried again if it took longer.
const LIMIT: Duration = Duration::from_secs(30);
const PUT_OFF: Duration = Duration::from_secs(30 * 60);
/// The same where clients may wait for the connection.
const LIMIT_ON_THEIRS: Duration = Duration::from_secs(1);
/// Between one reading and the next, whatever is changed: so long, and so many times as long as it took.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSES: u32 = 10;
/// What the connection that asks calls itself.
const APPLICATION: &str = "pgweir catalogue";
/// Ahead of each question, for its transaction: a connection of the pool's is as the last session left it.
const AS_OURS: &str = "SELECT pg_catalog.set_config('client_encoding', pg_catalog.getdatabaseencoding(), true), \
    pg_catalog.set_config('lock_timeout', '0', true);";
/// Functions there may be.
const FUNCTIONS_MAX: usize = 2_000;
/// Names whose functions are asked for at a time, and how often: calls may be this deep.
const NAMES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 16;
/// How long one of the pool's connections is waited for where none can be opened, and when that is tried again. Up to then
/// clients are asked after each transaction what they left, which costs more than waiting behind one reading.
const WAIT: Duration = Duration::from_secs(5);
const PAUSE_WITHOUT: Duration = Duration::from_secs(5);

/// Name, language and source of the functions that something runs unseen, and how: `w` when data is written, `d` with DDL,
/// `r` when data is read, `a` if it is written as a column. PostgreSQL's own functions have no entries in `pg_depend`.
/// A function with the name of one of PostgreSQL's own is taken for that in texts.
const ROOTS: &str = "WITH way AS (\
      SELECT refobjid AS oid, CASE classid WHEN 'pg_catalog.pg_event_trigger'::pg_catalog.regclass THEN 'd' \
        WHEN 'pg_catalog.pg_trigger'::pg_catalog.regclass THEN 'w' WHEN 'pg_catalog.pg_attrdef'::pg_catalog.regclass THEN 'w' \
        WHEN 'pg_catalog.pg_class'::pg_catalog.regclass THEN 'w' WHEN 'pg_catalog.pg_constraint'::pg_catalog.regclass THEN \
          (SELECT CASE WHEN contypid = 0 THEN 'w' ELSE 'r' END FROM pg_catalog.pg_constraint c WHERE c.oid = objid) \
        ELSE 'r' END AS way \
      FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass \
        AND (classid <> 'pg_catalog.pg_proc'::pg_catalog.regclass \
          OR objid IN (SELECT oid FROM pg_catalog.pg_proc WHERE prokind = 'a')) \
      UNION SELECT oid, 'r' FROM pg_catalog.pg_proc WHERE pronamespace <> 'pg_catalog'::pg_catalog.regnamespace \
        AND proname IN (SELECT proname FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::pg_catalog.regnamespace) \
      UNION SELECT p.oid, 'a' FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_type t ON t.oid = p.proargtypes[0] \
        WHERE pronargs - pronargdefaults <= 1 AND typtype IN ('c', 'd', 'p')), \
    asked AS (SELECT oid, pg_catalog.string_agg(way, '') AS ways FROM way GROUP BY oid) ";

/// Expressions that call such functions of PostgreSQL's own, in the form of [`ROOTS`]' rows.
const BUILT_IN: &str = "WITH own AS (SELECT ':funcid (' || pg_catalog.string_agg(oid::pg_catalog.text, '|') || ') ' AS pattern \
      FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND (proname IN ('set_config', \
      'setseed', 'ts_stat', 'ts_rewrite') OR proname ~ '_advisory_(un)?lock|(query|cursor|table|schema|database)_to_xml')), \
    piece AS (\
      SELECT 'r' AS way, ev_action::pg_catalog.text AS tree FROM pg_catalog.pg_rewrite JOIN pg_catalog.pg_class c \
        ON c.oid = ev_class WHERE relnamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, \
        'information_schema'::pg_catalog.regnamespace) \
      UNION ALL SELECT 'r', pg_catalog.concat(polqual, polwithcheck) FROM pg_catalog.pg_policy \
      UNION ALL SELECT 'w', adbin::pg_catalog.text FROM pg_catalog.pg_attrdef \
      UNION ALL SELECT CASE WHEN contypid = 0 THEN 'w' ELSE 'r' END, conbin::pg_catalog.text \
        FROM pg_catalog.pg_constraint WHERE contype = 'c') \
    SELECT DISTINCT '', 'sql', way, 'SELECT set_config()' FROM piece, own WHERE tree ~ pattern";

/// The same of functions called by name, whose names stand behind it.
const NAMED: &str = "WITH asked AS (SELECT oid, ''::pg_catalog.text AS ways FROM pg_catalog.pg_proc WHERE proname IN (";

/// Behind either. What is too long, or too much in all, is NULL.
const SOURCES: &str = "SELECT proname, lanname, ways, CASE WHEN pg_catalog.sum(pg_catalog.octet_length(prosrc)) OVER () <= 4194304 \
      AND pg_catalog.octet_length(prosrc) <= 65536 THEN \
        CASE WHEN prosrc = '' AND lanname = 'sql' THEN pg_catalog.pg_get_functiondef(p.oid) ELSE prosrc END END \
    FROM asked JOIN pg_catalog.pg_proc p ON p.oid = asked.oid JOIN pg_catalog.pg_language l ON l.oid = prolang \
    WHERE lanname NOT IN ('c', 'internal') AND pronamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, \
      'information_schema'::pg_catalog.regnamespace) LIMIT 2001";

#[derive(Debug)]
struct Found {
    /// How long it is believed.
    until: Instant,
    leaves: Leaves,
}

/// See the module.
#[derive(Debug)]
pub struct Unseen {
    found: ArcSwapOption<Found>,
    /// Up to when it is believed that nothing leaves anything, in nanoseconds since `epoch`; 0 if something does, or nothing
    /// is known: what most statements look at, and nothing else.
    quiet_until: AtomicU64,
    epoch: Instant,
    is_being_read: AtomicBool,
    /// How often something was changed.
    changes: AtomicU64,
    /// It is not read before.
    not_before: Mutex<Option<Instant>>,
}

impl Default for Unseen {
    fn default() -> Self {
        Self {
            found: ArcSwapOption::default(),
            quiet_until: AtomicU64::new(0),
            epoch: Instant::now(),
            is_being_read: AtomicBool::default(),
            changes: AtomicU64::default(),
            not_before: Mutex::default(),
        }
    }
}

impl Unseen {
    /// Whether nothing was found, and that is believed at the time `now`.
    pub fn is_quiet(&self, now: Instant) -> bool {
        self.since_epoch(now) < self.quiet_until.load(Ordering::Acquire)
    }

    /// 584 years and more count as that.
    fn since_epoch(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// What `of` says of what was found, or that anything may be left; and until when that is believed, `None` if nothing
    /// is known.
    pub fn look(&self, of: impl FnOnce(&Leaves) -> bool) -> (bool, Option<Instant>) {
        match &*self.found.load() {
            Some(found) => (of(&found.leaves), Some(found.until)),
            None => (true, None),
        }
    }

    /// Something has been made or changed: what is known is not true any more, nor is what is being read.
    pub fn forget(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.clear();
    }

    fn clear(&self) {
        self.found.store(None);
        self.quiet_until.store(0, Ordering::SeqCst);
    }

    fn take(&self, leaves: Leaves, took: Duration, changes: u64) {
        let until = Instant::now() + BELIEVED.max(took * SHARE);
        let quiet_until = if leaves.is_nothing() {
            self.since_epoch(until)
        } else {
            0
        };
        self.found.store(Some(Arc::new(Found { until, leaves })));
        self.quiet_until.store(quiet_until, Ordering::SeqCst);
        // After storing it: whoever changes something meanwhile clears what is stored, or is seen here.
        if self.changes.load(Ordering::SeqCst) != changes {
            self.clear();
        }
    }

    fn may_be_read(&self, now: Instant) -> bool {
        let not_before = self.not_before.lock();
        not_before
            .unwrap_or_else(PoisonError::into_inner)
            .is_none_or(|at| now >= at)
    }

    fn rest(&self, pause: Duration) {
        let mut not_before = self
            .not_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *not_before = Some(Instant::now() + pause);
    }
}

impl catalogue::Catalogue {
    /// Has what runs unseen read as `pool` logs in, unless it is being read or has been meanwhile.
    pub fn look_for_unseen(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        dialer: impl FnOnce() -> Arc<Dialer>,
        now: Instant,
    ) {
        let (_, until) = self.unseen.look(|_| false);
        let is_due = until.is_none_or(|until| now >= until);
        if is_due
            && self.unseen.may_be_read(now)
            && !self.unseen.is_being_read.swap(true, Ordering::SeqCst)
        {
            let reading = Arc::clone(self).read_unseen(Arc::clone(pool), dialer());
            tasks::spawn("read triggers", reading);
        }
    }

    async fn read_unseen(self: Arc<Self>, pool: Arc<Pool>, dialer: Arc<Dialer>) {
        let unseen = &self.unseen;
        match ask(&pool, &dialer, &unseen.changes).await {
            Ok(Read {
                leaves,
                took,
                changes,
            }) => {
                unseen.take(leaves, took, changes);
                unseen.rest(PAUSE.max(took * PAUSES));
                tracing::debug!(pool = %pool.key, "what runs unseen in a database was read");
            }
            // What was known may not be true any more.
            Err(why) => {
                unseen.clear();
                unseen.rest(why.pause());
                let reason = why.to_string();
                match why {
                    NotRead::Server(_) | NotRead::TooLong(_) => {
                        tracing::warn!(pool = %pool.key, reason, "could not read what runs unseen in a database");
                    }
                    _ => {
                        tracing::debug!(pool = %pool.key, reason, "could not read what runs unseen in a database");
                    }
                }
            }
        }
        unseen.is_being_read.store(false, Ordering::SeqCst);
    }
}

/// Why nothing was read.
#[derive(Debug, Error)]
enum NotRead {
    #[error("the pool is paused")]
    Held,
    #[error("no connection: {0}")]
    NoConnection(String),
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("{0}")]
    Server(String),
    #[error("it takes longer than {0:?}")]
    TooLong(Duration),
}

impl NotRead {
    fn pause(&self) -> Duration {
        match self {
            Self::Held => PAUSE,
            Self::NoConnection(_) => PAUSE_WITHOUT,
            Self::Lost(_) | Self::Server(_) => BELIEVED,
            // On the pool's connection it may only have been given too little time.
            Self::TooLong(limit) if *limit < LIMIT => BELIEVED,
            Self::TooLong(_) => PUT_OFF,
        }
    }
}

/// What was read.
struct Read {
    leaves: Leaves,
    took: Duration,
    /// How often something had been changed when asking began.
    changes: u64,
}

type Answer = Result<Read, NotRead>;

/// Asks on a connection of its own, which is closed behind it. It counts under the caps that pools share.
///
/// # Why not on one of the pool's
/// Clients would wait for it, lose the one set aside for them, or find their database in use when they drop it. Where
/// there is no room, or the server has none left for this user, as with a `CONNECTION LIMIT` that is the pool's size, one of
/// the pool's has to do, for which it waits as a client does: on a busy pool none is ever idle, and under a shared cap it
/// takes somebody who waits to have other pools give theirs up.
async fn ask(pool: &Arc<Pool>, dialer: &Dialer, changes: &AtomicU64) -> Answer {
    let (generation, effective) = pool.opens_with();
    let (node, settings) = (&effective.primary, &effective.pool);
    // Counted as a listener's: `PAUSE` waits for its end.
    let slot = pool
        .limits
        .reserve(&pool.key, node, &pool.listening, settings);
    // Behind that, so that either of the two sees the other.
    if pool.is_held() {
        return Err(NotRead::Held);
    }
    let no_room = match slot {
        Ok(_slot) => {
            let (effective, credentials) = (as_ours(&effective), pool.login_credentials());
            match open::open(&effective, &credentials, dialer, generation).await {
                Ok(mut opened) => return ask_within(LIMIT, &mut opened.backend, changes).await,
                Err(error) => error.to_string(),
            }
        }
        Err(cap) => format!("{cap:?} is reached"),
    };
    let Ok(Some(mut lease)) = tokio::time::timeout(WAIT, catalogue::lease(pool)).await else {
        return Err(NotRead::NoConnection(no_room));
    };
    let answer = ask_within(LIMIT_ON_THEIRS, &mut lease, changes).await;
    // One that has not answered to its end is closed.
    lease.checkin();
    answer
}

/// What the connection is opened with.
fn as_ours(effective: &Effective) -> Effective {
    let limit = LIMIT.as_millis().to_string();
    let mut effective = effective.with_startup([
        ("application_name", APPLICATION),
        ("statement_timeout", &limit),
    ]);
    // It is for clients' statements.
    effective.pool.connect_query = None;
    effective
}

async fn ask_within(limit: Duration, backend: &mut Backend, changes: &AtomicU64) -> Answer {
    let (begun, changes) = (Instant::now(), changes.load(Ordering::SeqCst));
    match tokio::time::timeout(limit, ask_on(backend)).await {
        Ok(Ok(leaves)) => Ok(Read {
            leaves,
            took: begun.elapsed(),
            changes,
        }),
        Ok(Err(QueryError::Server { message, code, .. })) => {
            // Of the limit that the connection was opened with.
            if code == SqlState::QUERY_CANCELED && begun.elapsed() >= limit {
                return Err(NotRead::TooLong(limit));
            }
            Err(NotRead::Server(message))
        }
        Ok(Err(error @ QueryError::Receive(_))) => Err(NotRead::Lost(error.to_string())),
        Err(_) => Err(NotRead::TooLong(limit)),
    }
}

async fn ask_on(backend: &mut Backend) -> Result<Leaves, QueryError> {
    let text = [AS_OURS, ROOTS, SOURCES].concat();
    let rows = query::on_backend(backend, text.as_bytes()).await?;
    let mut sources = Sources::default();
    let mut asked: HashSet<Box<[u8]>> = HashSet::new();
    let mut is_known = take(&mut sources, rows).await;
    let text = [AS_OURS, BUILT_IN].concat();
    let rows = query::on_backend(backend, text.as_bytes()).await?;
    is_known &= take(&mut sources, rows).await;
    for _ in 0..DEPTH_MAX {
        let names = sources.names_but(&asked);
        if names.is_empty() || !is_known {
            break;
        }
        is_known = asked.len() + names.len() <= NAMES_MAX;
        if is_known {
            let text = named(&names);
            asked.extend(names);
            let rows = query::on_backend(backend, &text).await?;
            is_known = take(&mut sources, rows).await;
        }
    }
    if !is_known || !sources.names_but(&asked).is_empty() {
        return Ok(Leaves::anything());
    }
    Ok(sources.judge())
}

/// Takes the rows of an answer in, the first of which is that of [`AS_OURS`]; false if there are too many.
async fn take(sources: &mut Sources, rows: Vec<Row>) -> bool {
    if rows.len().saturating_sub(1) + sources.len() > FUNCTIONS_MAX {
        return false;
    }
    for row in rows.into_iter().skip(1) {
        let Ok([Some(name), Some(language), Some(ways), text]) = <[_; 4]>::try_from(row) else {
            return false;
        };
        let source = text.map_or_else(Source::unreadable, |text| Source::read(&language, &text));
        sources.add(&name, &ways, source);
        // Others have their turn between two sources.
        tokio::task::yield_now().await;
    }
    true
}

fn named(names: &[Box<[u8]>]) -> Vec<u8> {
    let mut text = [AS_OURS, NAMED].concat().into_bytes();
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        put_text(&mut text, name);
    }
    text.extend_from_slice(b")) ");
    text.extend_from_slice(SOURCES.as_bytes());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::unseen::SOURCE_MAX;

    #[test]
    fn what_was_read_before_a_change_is_not_believed() {
        let unseen = Unseen::default();
        let (second, is_known) = (Duration::from_secs(1), |it: &Unseen| it.look(|_| false));
        assert_eq!(
            (unseen.is_quiet(Instant::now()), is_known(&unseen)),
            (false, (true, None))
        );
        let changes = unseen.changes.load(Ordering::SeqCst);
        unseen.take(Leaves::default(), second, changes);
        assert!(unseen.is_quiet(Instant::now()) && is_known(&unseen).1.is_some());
        unseen.take(Leaves::anything(), second, changes);
        assert!(!unseen.is_quiet(Instant::now()) && is_known(&unseen).1.is_some());
        unseen.forget();
        unseen.take(Leaves::default(), second, changes);
        assert_eq!(
            (unseen.is_quiet(Instant::now()), is_known(&unseen)),
            (false, (true, None))
        );
    }

    #[tokio::test]
    async fn it_is_read_no_more_often_than_it_takes_whatever_is_changed() {
        let unseen = Unseen::default();
        assert!(unseen.may_be_read(Instant::now()));
        unseen.rest(PUT_OFF);
        unseen.forget();
        assert!(!unseen.may_be_read(Instant::now()));
        assert!(unseen.may_be_read(Instant::now() + PUT_OFF));
    }

    #[test]
    fn bounds_in_the_question_are_those_that_are_named() {
        assert!(SOURCES.contains(&format!("<= {}", 4 << 20)));
        assert!(SOURCES.contains(&format!("<= {SOURCE_MAX}")));
        assert!(SOURCES.ends_with(&format!("LIMIT {}", FUNCTIONS_MAX + 1)));
    }
}
