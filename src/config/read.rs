//! The whole tree as typed sections; whatever no section takes is refused.

use std::collections::BTreeMap;

use super::decode::Reader;
use super::document::{Node, Origin, Table};
use super::raw::{
    Auth, ClientTls, Cluster, Database, General, Http, Key, Pool, Retry, Routing, ServerTls,
    Timeouts, User,
};
use super::raw_limits::{Overload, StatementRule};
use super::raw_seeing::{Log, LogRule, Metrics, QueryLog, SlowLog, Traces};

/// One `[databases.NAME]`, with the keys of other sections that stand in it over the general ones.
pub(super) struct DatabaseTable {
    pub(super) path: String,
    pub(super) at: Option<Origin>,
    pub(super) own: Database,
    pub(super) routing: Routing,
    pub(super) pool: Pool,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Retry,
}

/// Everything as given, of the right types.
pub(super) struct Raw {
    pub(super) general: General,
    pub(super) http: Http,
    pub(super) cluster: Cluster,
    pub(super) auth: Auth,
    pub(super) client_tls: ClientTls,
    pub(super) server_tls: ServerTls,
    pub(super) routing: Routing,
    pub(super) pool: Pool,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Retry,
    pub(super) databases: BTreeMap<String, DatabaseTable>,
    pub(super) users: BTreeMap<String, (String, User)>,
    pub(super) overload: Overload,
    pub(super) statement_rules: BTreeMap<String, StatementRule>,
    pub(super) metrics: Metrics,
    pub(super) slow_log: SlowLog,
    pub(super) query_log: QueryLog,
    pub(super) log_rules: BTreeMap<String, LogRule>,
    pub(super) traces: Traces,
    pub(super) log: Log,
}

/// Tables of the file.
const NAMES: [&str; 19] = [
    "general",
    "http",
    "cluster",
    "auth",
    "tls",
    "routing",
    "pool",
    "timeouts",
    "retry",
    "databases",
    "users",
    "overload",
    "statement_rules",
    "metrics",
    "slow_log",
    "query_log",
    "log_rules",
    "traces",
    "log",
];

/// Reads everything; what is wrong or unknown is reported and left at its default.
pub(super) fn read(mut root: Table, reader: &mut Reader<'_>) -> Raw {
    macro_rules! section {
        ($type:ident, $parent:expr, $name:literal) => {{
            let mut table = reader.take_table($parent, $name);
            let section = $type::read(&mut table, &$type::default(), reader);
            refuse_unknown(&table, &$type::docs().keys, reader);
            section
        }};
    }
    let general = section!(General, &mut root, "general");
    let http = section!(Http, &mut root, "http");
    let cluster = section!(Cluster, &mut root, "cluster");
    let auth = section!(Auth, &mut root, "auth");
    let mut tls = reader.take_table(&mut root, "tls");
    let client_tls = section!(ClientTls, &mut tls, "client");
    let server_tls = section!(ServerTls, &mut tls, "server");
    refuse_unknown_names(&tls, &["client", "server"], reader);
    let routing = section!(Routing, &mut root, "routing");
    let pool = section!(Pool, &mut root, "pool");
    let timeouts = section!(Timeouts, &mut root, "timeouts");
    let retry = section!(Retry, &mut root, "retry");
    let databases = read_databases(&mut root, (&routing, &pool, &timeouts, &retry), reader);
    let users = read_users(&mut root, reader);
    let overload = section!(Overload, &mut root, "overload");
    let statement_rules = read_statement_rules(&mut root, reader);
    let metrics = section!(Metrics, &mut root, "metrics");
    let slow_log = section!(SlowLog, &mut root, "slow_log");
    let query_log = section!(QueryLog, &mut root, "query_log");
    let log_rules = read_rules(&mut root, reader);
    let traces = section!(Traces, &mut root, "traces");
    let log = section!(Log, &mut root, "log");
    refuse_unknown_names(&root, &NAMES, reader);
    Raw {
        general,
        http,
        cluster,
        auth,
        client_tls,
        server_tls,
        routing,
        pool,
        timeouts,
        retry,
        databases,
        users,
        overload,
        statement_rules,
        metrics,
        slow_log,
        query_log,
        log_rules,
        traces,
        log,
    }
}

fn read_databases(
    root: &mut Table,
    (routing, pool, timeouts, retry): (&Routing, &Pool, &Timeouts, &Retry),
    reader: &mut Reader<'_>,
) -> BTreeMap<String, DatabaseTable> {
    let mut databases = BTreeMap::new();
    for (name, mut table, at) in named_tables(root, "databases", reader) {
        let own = Database::read(&mut table, &Database::default(), reader);
        let routing = Routing::read(&mut table, routing, reader);
        let mut retry_table = reader.take_table(&mut table, "retry");
        let retry = Retry::read(&mut retry_table, retry, reader);
        refuse_unknown(&retry_table, &Retry::docs().keys, reader);
        let pool = Pool::read(&mut table, pool, reader);
        let timeouts = Timeouts::read(&mut table, timeouts, reader);
        let mut keys = Database::docs().keys;
        keys.extend(Routing::docs().keys);
        keys.extend(Pool::docs().keys);
        keys.extend(Timeouts::docs().keys);
        refuse_unknown(&table, &keys, reader);
        let path = table.path;
        databases.insert(
            name,
            DatabaseTable {
                path,
                at: Some(at),
                own,
                routing,
                pool,
                timeouts,
                retry,
            },
        );
    }
    databases
}

fn read_users(root: &mut Table, reader: &mut Reader<'_>) -> BTreeMap<String, (String, User)> {
    let mut users = BTreeMap::new();
    for (name, mut table, _) in named_tables(root, "users", reader) {
        let user = User::read(&mut table, &User::default(), reader);
        refuse_unknown(&table, &User::docs().keys, reader);
        users.insert(name, (table.path, user));
    }
    users
}

fn read_statement_rules(
    root: &mut Table,
    reader: &mut Reader<'_>,
) -> BTreeMap<String, StatementRule> {
    let mut rules = BTreeMap::new();
    for (name, mut table, _) in named_tables(root, "statement_rules", reader) {
        let rule = StatementRule::read(&mut table, &StatementRule::default(), reader);
        refuse_unknown(&table, &StatementRule::docs().keys, reader);
        rules.insert(name, rule);
    }
    rules
}

fn read_rules(root: &mut Table, reader: &mut Reader<'_>) -> BTreeMap<String, LogRule> {
    let mut rules = BTreeMap::new();
    for (name, mut table, _) in named_tables(root, "log_rules", reader) {
        let rule = LogRule::read(&mut table, &LogRule::default(), reader);
        refuse_unknown(&table, &LogRule::docs().keys, reader);
        rules.insert(name, rule);
    }
    rules
}

/// The tables inside the table `name`.
fn named_tables(
    root: &mut Table,
    name: &str,
    reader: &mut Reader<'_>,
) -> Vec<(String, Table, Origin)> {
    let mut outer = reader.take_table(root, name);
    let names: Vec<String> = outer.entries.keys().cloned().collect();
    let mut tables = Vec::new();
    for name in names {
        let Some(entry) = outer.entries.get(&name) else {
            continue;
        };
        let is_table = matches!(entry.item.node, Node::Table(_));
        let at = entry.key_at.clone();
        let table = reader.take_table(&mut outer, &name);
        if is_table {
            tables.push((name, table, at));
        }
    }
    tables
}

fn refuse_unknown(table: &Table, keys: &[Key], reader: &mut Reader<'_>) {
    let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
    refuse_unknown_names(table, &names, reader);
}

/// Whatever nobody took out of the table is a mistake, most often a slip of the pen.
fn refuse_unknown_names(table: &Table, known: &[&str], reader: &mut Reader<'_>) {
    for (name, entry) in &table.entries {
        let nearest = known
            .iter()
            .map(|known| (distance(name, known), known))
            .min()
            .filter(|(distance, _)| *distance <= 3 && *distance * 2 <= name.chars().count());
        let message = match nearest {
            Some((_, nearest)) => format!("unknown key; did you mean {nearest}?"),
            None => "unknown key".to_owned(),
        };
        reader.problem(Some(&entry.key_at), &table.key(name), message);
    }
}

/// Levenshtein's distance, of the first characters of an overlong name.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
