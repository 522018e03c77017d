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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::catalogue;
use super::effective::Effective;
use super::lease::Lease;
use super::pool::Pool;
use crate::backend::connect::Dialer;
use crate::backend::connection::Backend;
use crate::backend::query::{self, QueryError, Row};
use crate::session::literal::put_text;
use crate::sql::unseen::{Leaves, Source, Sources};
use crate::tasks;

/// How long what was read is believed: long enough, too, that reading takes no more than its share of a connection's time.
const BELIEVED: Duration = Duration::from_secs(60);
const SHARE: u32 = 1000;
/// How long reading it may take, and when it is tried again if it failed.
const LIMIT: Duration = Duration::from_secs(30);
const PUT_OFF: Duration = Duration::from_secs(30 * 60);
/// What the connection that asks calls itself.
const APPLICATION: &str = "pgweir catalogue";
/// Ahead of each question, for its transaction: the connection is as the last session left it.
const AS_OURS: &str = "SELECT pg_catalog.set_config('client_encoding', pg_catalog.getdatabaseencoding(), true), \
    pg_catalog.set_config('lock_timeout', '0', true);";
/// Functions there may be.
const FUNCTIONS_MAX: usize = 2_000;
/// Names whose functions are asked for at a time, and how often: calls may be this deep.
const NAMES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 16;
/// How often an idle connection is looked for where none can be opened, and with what pauses.
const TRIES: (usize, Duration) = (20, Duration::from_millis(50));

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
#[derive(Debug, Default)]
pub struct Unseen {
    found: ArcSwapOption<Found>,
    /// Nothing was found that leaves anything: what most statements look at, and nothing else.
    is_quiet: AtomicBool,
    is_being_read: AtomicBool,
    /// How often something was changed.
    changes: AtomicU64,
}

impl Unseen {
    /// Whether nothing was found, as far as that is still believed.
    pub fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::Acquire)
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
        self.is_quiet.store(false, Ordering::SeqCst);
    }

    fn take(&self, leaves: Leaves, took: Duration, changes: u64) {
        self.put(leaves, BELIEVED.max(took * SHARE), changes);
    }

    fn put(&self, leaves: Leaves, believed: Duration, changes: u64) {
        let until = Instant::now() + believed;
        let is_quiet = leaves.is_nothing();
        self.found.store(Some(Arc::new(Found { until, leaves })));
        self.is_quiet.store(is_quiet, Ordering::SeqCst);
        // After storing it: whoever changes something meanwhile clears what is stored, or is seen here.
        if self.changes.load(Ordering::SeqCst) != changes {
            self.clear();
        }
    }

    /// It can't be read: what was known is believed for longer, and anything may be left where nothing was.
    fn put_off(&self, pause: Duration, changes: u64) {
        let known = self.found.load_full();
        let leaves = known.map_or_else(Leaves::anything, |found| found.leaves.clone());
        self.put(leaves, pause, changes);
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
        if is_due && !self.unseen.is_being_read.swap(true, Ordering::SeqCst) {
            let reading = Arc::clone(self).read_unseen(Arc::clone(pool), dialer());
            tasks::spawn("read triggers", reading);
        }
    }

    async fn read_unseen(self: Arc<Self>, pool: Arc<Pool>, dialer: Arc<Dialer>) {
        let unseen = &self.unseen;
        let changes = unseen.changes.load(Ordering::SeqCst);
        match ask(&pool, &dialer).await {
            Answer::Leaves(leaves, took) => {
                unseen.take(leaves, took, changes);
                tracing::debug!(pool = %pool.key, "what runs unseen in a database was read");
            }
            Answer::Failed(reason) => {
                tracing::warn!(pool = %pool.key, reason, "could not read what runs unseen in a database");
                unseen.put_off(PUT_OFF, changes);
            }
            Answer::None(reason) => {
                tracing::debug!(pool = %pool.key, reason, "no connection to read what runs unseen in a database");
                unseen.put_off(BELIEVED, changes);
            }
        }
        unseen.is_being_read.store(false, Ordering::SeqCst);
    }
}

enum Answer {
    /// And how long it took.
    Leaves(Leaves, Duration),
    Failed(String),
    /// There was no connection, or it was lost.
    None(String),
}

/// Asks on a connection of its own, which is closed behind it.
///
/// # Why not on one of the pool's
/// Clients would wait for it, lose the one set aside for them, or find their database in use when they drop it. Where
/// the server has none left for this user, as with a `CONNECTION LIMIT` that is the pool's size, an idle one of the pool's
/// has to do, and nobody waits for one.
async fn ask(pool: &Arc<Pool>, dialer: &Dialer) -> Answer {
    let (generation, effective) = pool.opens_with();
    let mut effective = Effective::clone(&effective);
    let startup = &mut effective.startup;
    startup.retain(|(name, _)| !name.eq_ignore_ascii_case("application_name"));
    startup.push(("application_name".to_owned(), APPLICATION.to_owned()));
    let credentials = pool.credentials();
    let opened = pool.open_in_turn(&effective, &credentials, dialer, generation);
    match opened.await {
        Ok(mut opened) => ask_within_limit(&mut opened.backend).await,
        Err(error) => {
            let Some(mut lease) = idle(pool).await else {
                return Answer::None(error.to_string());
            };
            let answer = ask_within_limit(&mut lease).await;
            // One that has not answered to its end is closed.
            lease.checkin();
            answer
        }
    }
}

async fn idle(pool: &Arc<Pool>) -> Option<Lease> {
    let (tries, pause) = TRIES;
    for _ in 0..tries {
        if let Some(lease) = pool.try_checkout() {
            return Some(lease);
        }
        tokio::time::sleep(pause).await;
    }
    None
}

async fn ask_within_limit(backend: &mut Backend) -> Answer {
    let begun = Instant::now();
    match tokio::time::timeout(LIMIT, ask_on(backend)).await {
        Ok(Ok(leaves)) => Answer::Leaves(leaves, begun.elapsed()),
        Ok(Err(QueryError::Server { message, .. })) => Answer::Failed(message),
        Ok(Err(error @ QueryError::Receive(_))) => Answer::None(error.to_string()),
        Err(_) => Answer::Failed(format!("it takes longer than {LIMIT:?}")),
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
            (unseen.is_quiet(), is_known(&unseen)),
            (false, (true, None))
        );
        let changes = unseen.changes.load(Ordering::SeqCst);
        unseen.take(Leaves::default(), second, changes);
        assert!(unseen.is_quiet() && is_known(&unseen).1.is_some());
        unseen.take(Leaves::anything(), second, changes);
        assert!(!unseen.is_quiet() && is_known(&unseen).1.is_some());
        unseen.forget();
        unseen.take(Leaves::default(), second, changes);
        assert_eq!(
            (unseen.is_quiet(), is_known(&unseen)),
            (false, (true, None))
        );
    }

    #[test]
    fn what_takes_too_long_to_read_keeps_what_was_known() {
        let unseen = Unseen::default();
        unseen.put_off(PUT_OFF, 0);
        assert!(unseen.look(|leaves| !leaves.is_nothing()).0 && !unseen.is_quiet());
        unseen.take(Leaves::default(), Duration::ZERO, 0);
        unseen.put_off(PUT_OFF, 0);
        assert!(unseen.is_quiet());
    }

    #[test]
    fn bounds_in_the_question_are_those_that_are_named() {
        assert!(SOURCES.contains(&format!("<= {}", 4 << 20)));
        assert!(SOURCES.contains(&format!("<= {SOURCE_MAX}")));
        assert!(SOURCES.ends_with(&format!("LIMIT {}", FUNCTIONS_MAX + 1)));
    }
}
