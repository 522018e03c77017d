//! `pgweir demo`: a scratch PostgreSQL cluster with sample data, and what to show of it.
//!
//! Makes the servers and fills them; serving them through pgweir and printing are the command line's. The tests use
//! [`cluster`] as well, so that the demo's servers are the tested ones. No module below the command line imports this
//! one.
//!
//! # Why
//!
//! - Statements, those of the [`load`] too, go through `psql`: a driver here would be one more protocol implementation to keep, and `psql` comes
//!   with every server.
//! - The sample is loaded before the replicas are cloned: copying files is cheaper than replaying their WAL twice.

mod binaries;
pub mod cluster;
pub mod load;
mod options;
mod process;
mod scratch;
mod server;
mod template;

use std::path::Path;

use self::cluster::{Cluster, ClusterOptions, SUPERUSER, ServerOptions};
use self::load::ANALYST;

/// The database of the sample.
pub const DATABASE: &str = "exchange";

/// The role that owns the sample's tables and that the demo's DSN names. It has no password: the demo trusts.
pub const USER: &str = "trader";

/// Tables and rows of the sample.
const SAMPLE: &str = include_str!("../../config/demo/init.sql");

/// Statements worth trying, in an order that tells a story: a look, a write, a read, a bulk read, a cancel.
pub const TRY_THESE: [&str; 6] = [
    "SELECT symbol, count(*) FROM market_orders JOIN assets ON assets.id = asset_id GROUP BY symbol ORDER BY 2 DESC;",
    "BEGIN; UPDATE balances SET amount = amount - 1 WHERE user_id = 1 AND asset_id = 1; \
     UPDATE balances SET amount = amount + 1 WHERE user_id = 2 AND asset_id = 1; COMMIT;",
    "SELECT pg_is_in_recovery(), amount FROM balances WHERE user_id = 2 AND asset_id = 1;",
    "SELECT count(*) FROM user_notifications WHERE user_id = 7 AND read_at IS NULL;",
    "\\copy (SELECT * FROM p2p_offers WHERE status = 'open' LIMIT 5) TO STDOUT CSV HEADER",
    "SELECT pg_sleep(60);  -- then Ctrl-C",
];

/// Tables of the console that the load gives something to show, each with what it tells.
pub const LOOK_AT: [(&str, &str); 9] = [
    (
        "SHOW QUERIES ORDER BY total_time DESC LIMIT 10;",
        "where the time goes, by statement",
    ),
    (
        "SHOW SLOW WHERE plan IS NOT NULL;",
        "the latest slow statements, with their plans",
    ),
    ("SHOW ERRORS;", "the latest failed ones"),
    ("SHOW POOLS;", "who waits for a server connection"),
    ("SHOW PINS;", "who keeps one, and why"),
    ("SHOW WAITS;", "what long statements wait for"),
    (
        "SHOW LOCKS;",
        "who stands in whose way (every 20 s; add \\watch 0.2)",
    ),
    ("SHOW NODES;", "the servers and how far behind they are"),
    ("SHOW ROUTES;", "where statements went, and why"),
];

/// Why there is no demo, or no test server.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(
        "PostgreSQL's server programs were not found: install them (Debian, Ubuntu: apt-get install postgresql) or \
         name their folder in PGWEIR_PG_BIN"
    )]
    NotInstalled,
    #[error("{program} failed ({status}): {errors}")]
    Program {
        program: String,
        status: String,
        errors: String,
    },
    #[error("{server} could not {action}: {reason}\n{log}")]
    Server {
        server: String,
        action: &'static str,
        reason: String,
        /// The end of the server's log.
        log: String,
    },
    #[error("gave up waiting for {what} after {seconds} s")]
    TooLong { what: &'static str, seconds: u64 },
    #[error("the work was interrupted")]
    Interrupted,
    #[error("could not set up a scratch server: {0}")]
    Io(#[from] std::io::Error),
}

/// What the demo is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    pub replicas: usize,
    /// Leave the servers' folder behind when the demo ends.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            replicas: 2,
            keep: false,
        }
    }
}

/// The running cluster with the sample in it. Dropping it stops the servers, which blocks for a moment, and removes
/// them unless they are to be kept.
#[derive(Debug)]
pub struct Demo {
    cluster: Cluster,
}

impl Demo {
    /// For `--primary`.
    pub fn primary_url(&self) -> String {
        self.cluster.primary.url(SUPERUSER, DATABASE)
    }

    /// For `--replica`.
    pub fn replica_urls(&self) -> Vec<String> {
        let replicas = self.cluster.replicas.iter();
        replicas
            .map(|replica| replica.url(SUPERUSER, DATABASE))
            .collect()
    }

    /// The folder that stays if the demo is kept.
    pub fn folder(&self) -> &Path {
        self.cluster.folder()
    }

    /// How to start the servers of a kept demo again: a command for each.
    pub fn restart_commands(&self) -> Vec<String> {
        let servers = std::iter::once(&self.cluster.primary).chain(&self.cluster.replicas);
        servers
            .map(|server| {
                let data = server.data();
                format!("pg_ctl -D {0} -l {0}.log start", data.display())
            })
            .collect()
    }
}

/// Makes the cluster and fills it. Not cancel safe in time: if it is dropped, the work goes on to its end on a
/// blocking thread and is then undone.
pub async fn prepare(options: Options) -> Result<Demo, DemoError> {
    tokio::task::spawn_blocking(move || prepare_blocking(&options))
        .await
        .map_err(|_| DemoError::Interrupted)?
}

fn prepare_blocking(options: &Options) -> Result<Demo, DemoError> {
    let mut cluster = ClusterOptions {
        server: ServerOptions::default()
            .set("max_connections", "200")
            // The sample is loaded in one go; the default would checkpoint in the middle of it.
            .set("max_wal_size", "2GB"),
        replicas: 0,
        keep: options.keep,
    }
    .start()?;
    let create = format!(
        "CREATE ROLE {USER} LOGIN;\nCREATE ROLE {ANALYST} LOGIN;\nCREATE DATABASE {DATABASE} OWNER {USER};\n"
    );
    cluster.primary.sql("postgres", &create)?;
    let fill = format!(
        "SET ROLE {USER};\n{SAMPLE}\nGRANT SELECT ON ALL TABLES IN SCHEMA public TO {ANALYST};\n"
    );
    cluster.primary.sql(DATABASE, &fill)?;
    cluster.add_replicas(options.replicas)?;
    Ok(Demo { cluster })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_postgresql_is_told_in_one_line_with_the_remedy() {
        let line = DemoError::NotInstalled.to_string();
        assert!(line.contains("apt-get install postgresql"));
        assert!(!line.contains('\n'));
    }

    #[tokio::test]
    async fn the_demo_has_its_sample_on_every_server() {
        let demo = prepare(Options::default()).await.unwrap();
        assert_eq!(demo.replica_urls().len(), 2);
        demo.cluster.wait_until_caught_up().unwrap();
        let rows = "SELECT (SELECT count(*) FROM users) > 1000, \
                    (SELECT count(*) FROM balance_changes) > 100000, pg_is_in_recovery()";
        let replica = &demo.cluster.replicas[1];
        assert_eq!(demo.cluster.primary.sql(DATABASE, rows).unwrap(), "t|t|f");
        assert_eq!(replica.sql(DATABASE, rows).unwrap(), "t|t|t");
        let books = "SELECT count(*) FROM balances b FULL JOIN \
                     (SELECT user_id, asset_id, sum(amount) AS amount FROM balance_changes GROUP BY 1, 2) c \
                     USING (user_id, asset_id) WHERE b.amount IS DISTINCT FROM c.amount";
        assert_eq!(replica.sql(DATABASE, books).unwrap(), "0");
        for statement in &TRY_THESE[..5] {
            let as_user = format!("SET ROLE {USER};\n{statement}\n");
            demo.cluster.primary.sql(DATABASE, &as_user).unwrap();
        }
        let folder = demo.folder().to_owned();
        drop(demo);
        assert!(!folder.exists());
    }
}
