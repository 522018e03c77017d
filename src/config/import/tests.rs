//! Whole inis through the import and back through `load`.

use std::path::PathBuf;
use std::time::Duration;

use super::settings::SETTINGS;
use super::*;
use crate::config::model::{AuthMethod, Config, PoolMode, SslMode};
use crate::config::{Overrides, load};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let text = text.replace("DIR", &folder.path().display().to_string());
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn import(&self) -> Imported {
        import(&self.path("pgbouncer.ini")).unwrap()
    }

    /// The configuration that the import's TOML makes.
    fn load(&self) -> Config {
        let toml = self.import().toml;
        std::fs::write(self.path("pgweir.toml"), &toml).unwrap();
        match load(Some(&self.path("pgweir.toml")), &Overrides::new(), &|_| {
            None
        }) {
            Ok(loaded) => loaded.config,
            Err(problems) => panic!("{problems}\n{toml}"),
        }
    }
}

const TYPICAL: &str = "\
;; a typical file
[databases]
app = host=10.0.0.5 port=5433 dbname=app_prod pool_size=50 pool_mode=session
reports = host=db2,db3,db2 user=reporter connect_query='SET search_path = ''r''' timezone=UTC
\"odd name\" = host=::1 user=u password='p''w ${x}' query_wait_timeout=7
* = host=/var/run/postgresql auth_user=other

[users]
batch = pool_mode=session max_user_connections=3 query_timeout=0 idle_transaction_timeout=1.5

[pgbouncer]
logfile = /var/log/postgresql/pgbouncer.log
pidfile = /var/run/postgresql/pgbouncer.pid
listen_addr = 127.0.0.1, ::1
listen_port = 6433
unix_socket_dir = DIR
unix_socket_mode = 0770
auth_type = scram-sha-256
auth_file = userlist.txt
auth_user = lookup
auth_query = SELECT usename, passwd FROM f($1)
admin_users = postgres, root
stats_users = stats
pool_mode = transaction
max_client_conn = 500
default_pool_size = 25
min_pool_size = 5
reserve_pool_size = 3
reserve_pool_timeout = 2.5
server_lifetime = 1800
server_idle_timeout = 60
query_wait_timeout = 0
idle_transaction_timeout = 90
ignore_startup_parameters = extra_float_digits,options
server_reset_query = DISCARD ALL
log_connections = 0
verbose = 1
client_tls_sslmode = require
client_tls_cert_file = DIR/server.crt
client_tls_key_file = DIR/server.crt
server_tls_sslmode = verify-full
server_tls_ca_file = DIR/server.crt
tcp_user_timeout = 1500
made_up = 5
";

fn typical() -> Folder {
    let userlist = "\"reporter\" \"plain pw\"\n\"lookup\" \"SCRAM-SHA-256$4096:x$y:z\"\n";
    Folder::new(&[
        ("pgbouncer.ini", TYPICAL),
        ("userlist.txt", userlist),
        ("server.crt", "x"),
    ])
}

#[test]
fn a_typical_ini_keeps_its_general_settings() {
    let folder = typical();
    let config = folder.load();
    let general = &config.general;
    assert_eq!(general.listen, ["127.0.0.1:6433", "[::1]:6433"]);
    assert_eq!(general.unix_socket_dir.as_deref(), Some(folder.0.path()));
    assert_eq!(general.unix_socket_mode, 0o770);
    assert_eq!(general.max_client_conn, 500);
    assert_eq!(general.admin_users, ["postgres", "root"]);
    assert_eq!(general.stats_users, ["stats"]);
    assert_eq!(general.tcp_user_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(config.auth.method, AuthMethod::ScramSha256);
    assert_eq!(config.auth.userlist, Some(folder.path("userlist.txt")));
    assert_eq!(config.auth.auth_user.as_deref(), Some("lookup"));
    assert_eq!(config.auth.auth_password, None, "a verifier is no password");
    assert_eq!(
        config.auth.auth_query.as_deref(),
        Some("SELECT usename, passwd FROM f($1)")
    );
    assert_eq!(config.client_tls.sslmode, SslMode::Require);
    assert_eq!(config.server_tls.sslmode, SslMode::VerifyFull);
    let pool = &config.pool;
    assert_eq!(pool.pool_mode, PoolMode::Transaction);
    assert_eq!(
        (pool.max_size, pool.min_idle, pool.reserve_size),
        (25, 5, 3)
    );
    assert_eq!(pool.reserve_timeout, Duration::from_millis(2500));
    assert_eq!(
        config.timeouts.server_lifetime,
        Some(Duration::from_secs(1800))
    );
    assert_eq!(
        config.timeouts.server_idle_timeout,
        Some(Duration::from_secs(60))
    );
    assert_eq!(config.timeouts.query_wait_timeout, None);
    assert_eq!(
        config.timeouts.idle_transaction_timeout,
        Some(Duration::from_secs(90))
    );
    assert_eq!(
        config.timeouts.server_login_retry,
        Duration::from_secs(15),
        "PgBouncer's default"
    );
    assert_eq!(
        (config.log.level.as_str(), config.log.log_connections),
        ("debug", false)
    );
}

#[test]
fn a_typical_ini_keeps_its_databases_and_users() {
    let config = typical().load();
    let app = &config.databases["app"];
    assert_eq!(
        (app.primary.host.as_str(), app.primary.port),
        ("10.0.0.5", 5433)
    );
    assert_eq!(app.dbname.as_deref(), Some("app_prod"));
    assert_eq!(
        (app.pool.max_size, app.pool.pool_mode),
        (50, PoolMode::Session)
    );
    let reports = &config.databases["reports"];
    assert_eq!(
        (
            reports.primary.host.as_str(),
            reports.replicas[0].host.as_str()
        ),
        ("db2", "db3")
    );
    assert_eq!(reports.password.as_ref().unwrap().expose(), "plain pw");
    assert_eq!(
        reports.pool.connect_query.as_deref(),
        Some("SET search_path = 'r'")
    );
    assert_eq!(reports.startup["timezone"], "UTC");
    let odd = &config.databases["odd name"];
    assert_eq!(odd.password.as_ref().unwrap().expose(), "p'w ${x}");
    assert_eq!(
        odd.timeouts.query_wait_timeout,
        Some(Duration::from_secs(7))
    );
    assert_eq!(config.databases["*"].primary.host, "/var/run/postgresql");
    let batch = &config.users["batch"];
    assert_eq!(
        (batch.pool_mode, batch.max_user_connections),
        (Some(PoolMode::Session), Some(3))
    );
    assert_eq!(batch.query_timeout, None);
    assert_eq!(
        batch.idle_transaction_timeout,
        Some(Duration::from_millis(1500))
    );
}

#[test]
fn what_is_not_the_same_is_said_without_secrets() {
    let imported = typical().import();
    let expected = [
        "logfile: not supported: the log goes to standard error; leave the rest to the service manager",
        "pidfile: not needed: leave it to the service manager",
        "ignore_startup_parameters: not needed: startup parameters are carried to the server",
        "server_reset_query: not needed: session state is cleaned when a connection changes hands",
        "made_up: not known: left out",
        "databases.reports.host: several hosts: pgweir finds out which is the primary, PgBouncer takes turns",
        "databases.reports.password: taken from auth_file, where PgBouncer finds it",
        "databases.\"*\".auth_user: not supported: there is one for all databases, and it is another",
    ];
    assert_eq!(imported.notes, expected);
    for note in expected {
        assert!(imported.toml.contains(&format!("# - {note}\n")), "{note}");
    }
}

#[test]
fn a_minimal_ini_gets_the_defaults_of_pgbouncer() {
    let folder = Folder::new(&[
        (
            "pgbouncer.ini",
            "[databases]\npostgres =\n[pgbouncer]\nauth_file = DIR/u\nlisten_addr = *\n",
        ),
        ("u", "\"a\" \"md50123456789abcdef0123456789abcdef\"\n"),
    ]);
    let config = folder.load();
    assert_eq!(config.general.listen, ["0.0.0.0:6432"]);
    assert_eq!(config.general.unix_socket_dir, Some(PathBuf::from("/tmp")));
    assert_eq!(config.general.max_client_conn, 100);
    assert_eq!(config.pool.pool_mode, PoolMode::Session);
    assert_eq!(config.pool.max_size, 20);
    assert_eq!(config.auth.method, AuthMethod::Md5);
    assert_eq!(config.databases["postgres"].primary.host, "/tmp");
}

#[test]
fn zeros_with_a_meaning_of_their_own_are_named() {
    let folder = Folder::new(&[(
        "pgbouncer.ini",
        "[databases]\na = host=h min_pool_size=9 pool_size=4\nb = host=h password=x\n[pgbouncer]\nauth_type = any\n\
         unix_socket_dir =\ndefault_pool_size = 0\nserver_lifetime = 0\nreserve_pool_size = 5\n\
         reserve_pool_timeout = 0\nmax_prepared_statements = 0\nclient_login_timeout = 0\n",
    )]);
    let config = folder.load();
    assert_eq!(config.auth.method, AuthMethod::Trust);
    assert_eq!(config.general.unix_socket_dir, None);
    assert_eq!(
        (config.pool.max_size, config.pool.reserve_size),
        (100_000, 0)
    );
    assert_eq!(
        config.timeouts.server_lifetime,
        Some(Duration::from_secs(1))
    );
    assert_eq!(config.databases["a"].pool.min_idle, 4);
    let named: Vec<String> = folder.import().notes;
    let named: Vec<&str> = named
        .iter()
        .filter_map(|note| Some(note.split_once(": ")?.0))
        .collect();
    assert_eq!(
        named,
        [
            "listen_addr",
            "default_pool_size",
            "server_lifetime",
            "client_login_timeout",
            "auth_type",
            "reserve_pool_timeout",
            "max_prepared_statements",
            "databases.b.password",
            "databases.a.min_idle",
        ]
    );
}

#[test]
fn an_auth_user_of_a_database_holds_for_all() {
    let folder = Folder::new(&[
        (
            "pgbouncer.ini",
            "[databases]\na = host=h auth_user=lookup\nb = host=h auth_user=lookup\n[pgbouncer]\nauth_file = DIR/u\n",
        ),
        ("u", "\"lookup\" \"pw\"\n"),
    ]);
    let auth = folder.load().auth;
    assert_eq!(auth.auth_user.as_deref(), Some("lookup"));
    assert_eq!(auth.auth_password.unwrap().expose(), "pw");
    let notes = folder.import().notes;
    let expected = "databases.a.auth_user: holds for all databases: written as auth.auth_user";
    assert!(notes.iter().any(|note| note == expected), "{notes:?}");
    assert!(
        !notes
            .iter()
            .any(|note| note.starts_with("databases.b.auth_user")),
        "{notes:?}"
    );
}

#[test]
fn auth_types_become_methods() {
    let rows = [
        (
            "md5",
            "\"a\" \"SCRAM-SHA-256$1:x$y:z\"",
            AuthMethod::ScramSha256,
        ),
        ("md5", "\"a\" \"plain\"", AuthMethod::Md5),
        ("plain", "\"a\" \"plain\"", AuthMethod::ScramSha256),
        ("trust", "", AuthMethod::Trust),
        ("hba", "", AuthMethod::Hba),
        ("pam", "", AuthMethod::Passthrough),
        ("ldap", "", AuthMethod::Passthrough),
        ("nonsense", "", AuthMethod::Passthrough),
    ];
    for (auth_type, userlist, expected) in rows {
        let ini = format!(
            "[databases]\n* = host=h\n[pgbouncer]\nauth_type = {auth_type}\nauth_file = DIR/u\n\
             auth_hba_file = DIR/u\n"
        );
        let folder = Folder::new(&[("pgbouncer.ini", &ini), ("u", userlist)]);
        assert_eq!(folder.load().auth.method, expected, "{auth_type}");
    }
}

/// A value that fits the setting, for each of PgBouncer's names.
fn sample(name: &str) -> &'static str {
    match name {
        "auth_type" => "trust",
        "pool_mode" => "statement",
        "client_tls_sslmode" => "verify-full",
        "server_tls_sslmode" => "verify-ca",
        "listen_addr" => "0.0.0.0",
        "unix_socket_dir" => "DIR",
        "auth_query" => "SELECT $1",
        "max_packet_size" => "1048576",
        "unix_socket_mode" => "0700",
        "min_pool_size" | "verbose" | "tcp_keepalive" => "1",
        _ if name.ends_with("_file") => "DIR/file",
        _ => "7",
    }
}

/// The keys of a TOML, without its comments.
fn keys(imported: &Imported) -> Vec<&str> {
    let lines = imported.toml.lines();
    lines.filter(|line| !line.starts_with('#')).collect()
}

#[test]
fn every_setting_of_pgbouncer_is_carried_or_named() {
    let flags = ["log_connections", "log_disconnections", "log_pooler_errors"];
    let mut lines = vec![(
        String::new(),
        "[databases]\n* = host=h\n[pgbouncer]".to_owned(),
    )];
    for (name, _) in SETTINGS {
        let value = if flags.contains(name) {
            "0"
        } else {
            sample(name)
        };
        lines.push(((*name).to_owned(), format!("{name} = {value}")));
    }
    // The whole ini, or all of it but one setting.
    let ini = |left_out: &str| {
        let kept = lines
            .iter()
            .filter(|(name, _)| name.is_empty() || name != left_out);
        kept.map(|(_, line)| line.as_str())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let folder = Folder::new(&[("pgbouncer.ini", &ini("")), ("file", "x")]);
    let all = folder.import();
    folder.load();
    for (name, _) in SETTINGS {
        let other = ini(name).replace("DIR", &folder.0.path().display().to_string());
        std::fs::write(folder.path("other.ini"), other).unwrap();
        let other = import(&folder.path("other.ini")).unwrap();
        let named = all
            .notes
            .iter()
            .any(|note| note.starts_with(&format!("{name}: ")));
        assert!(
            keys(&all) != keys(&other) || named,
            "{name} is neither carried nor named"
        );
    }
}

#[test]
fn a_broken_database_line_is_an_error_without_its_password() {
    let folder = Folder::new(&[(
        "pgbouncer.ini",
        "[databases]\nx = host=h password='hunter2\n",
    )]);
    let error = import(&folder.path("pgbouncer.ini"))
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with(
            "pgbouncer.ini:2: expected a connection string, such as host=db1 port=5432 dbname=app"
        ),
        "{error}"
    );
}
