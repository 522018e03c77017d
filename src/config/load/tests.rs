//! The configuration as a whole: defaults, inheritance, and every problem in its exact words.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::model::{AuthMethod, PoolMode, SslMode};

/// A folder with `pgweir.toml` and some files that keys can name.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("pgweir.toml", toml),
            ("some.pem", "x"),
            ("password", "s3cret\n"),
            ("empty", ""),
            ("lines", "a\nb\n"),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn load(&self) -> Result<Loaded, Problems> {
        let env = |name: &str| match name {
            "PW" => Some("hunter2".to_owned()),
            "SIZE" => Some("7".to_owned()),
            _ => None,
        };
        load(Some(&self.path("pgweir.toml")), &Overrides::new(), &env)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Lines with the folder left out, as it differs from run to run.
    fn lines<'a>(&self, problems: impl Iterator<Item = &'a Problem>) -> Vec<String> {
        let folder = format!("{}/", self.0.path().display());
        problems
            .map(|problem| problem.to_string().replace(&folder, ""))
            .collect()
    }
}

fn config(toml: &str) -> Config {
    match Folder::new(toml).load() {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{problems}"),
    }
}

fn problems(toml: &str) -> Vec<String> {
    let folder = Folder::new(toml);
    match folder.load() {
        Ok(_) => Vec::new(),
        Err(problems) => folder.lines(problems.iter()),
    }
}

fn warnings(toml: &str) -> Vec<String> {
    let folder = Folder::new(toml);
    folder.lines(folder.load().unwrap().warnings.iter())
}

const PRIMARY: &str = "cluster.primary = \"postgres://db1\"\n";

#[test]
fn a_primary_alone_is_a_configuration() {
    let config = config(PRIMARY);
    assert_eq!(config.general.listen, ["127.0.0.1:6432"]);
    assert_eq!(config.general.http, Some(([127, 0, 0, 1], 9930).into()));
    assert_eq!(config.general.max_client_conn, 10_000);
    assert_eq!(config.general.unix_socket_dir, None);
    assert_eq!(config.general.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(config.auth.method, AuthMethod::Passthrough);
    assert_eq!(config.auth.cache_ttl, Duration::from_secs(300));
    assert!(config.auth.auth_query.unwrap().contains("rolvaliduntil"));
    assert_eq!(config.client_tls.sslmode, SslMode::Disable);
    assert_eq!(config.server_tls.sslmode, SslMode::Prefer);
    assert_eq!(config.pool.pool_mode, PoolMode::Transaction);
    assert_eq!(config.pool.max_size, 20);
    assert_eq!(config.pool.max_prepared_statements, 200);
    let timeouts = &config.timeouts;
    assert_eq!(timeouts.query_wait_timeout, Some(Duration::from_secs(120)));
    assert_eq!(timeouts.query_wait_notify, Some(Duration::from_secs(5)));
    assert_eq!(timeouts.server_connect_timeout, Duration::from_secs(15));
    assert_eq!(timeouts.server_login_retry, Duration::from_secs(1));
    assert_eq!(timeouts.client_login_timeout, Duration::from_secs(60));
    assert_eq!(timeouts.server_idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(timeouts.server_lifetime, Some(Duration::from_secs(3600)));
    assert_eq!(timeouts.cancel_wait_timeout, Duration::from_secs(10));
    assert_eq!(timeouts.query_timeout, None);
    let fallback = &config.databases["*"];
    assert_eq!(
        (fallback.primary.host.as_str(), fallback.primary.port),
        ("db1", 5432)
    );
    assert_eq!(fallback.pool, config.pool);
}

#[test]
fn the_example_is_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/pgweir.toml");
    let loaded = load(Some(Path::new(path)), &Overrides::new(), &|_| None).unwrap();
    assert_eq!(loaded.warnings, []);
    let defaults = config("cluster.primary = \"postgres://127.0.0.1:5432\"");
    assert_eq!(loaded.config, defaults, "the example shows the defaults");
}

#[test]
fn a_database_inherits_what_it_does_not_say() {
    let config = config(
        "[cluster]\nprimary = \"postgres://own:pw@db1/postgres\"\nreplicas = [\"postgres://db2\"]\n\
         [pool]\nmax_size = 9\n[timeouts]\nquery_timeout = \"30s\"\n\
         [databases.app]\nmin_idle = 2\nquery_timeout = \"0\"\ntimezone = \"UTC\"\n\
         [databases.far]\nhost = \"::1\"\nport = 5433\nuser = \"u\"\npassword = \"${PW}\"\n\
         [databases.url]\nprimary = \"postgres://db3/real\"\nreplicas = \"postgres://db4:1\"\n\
         [databases.\"*\"]\nmax_size = 3\n[users.bob]\nmax_size = 1\n",
    );
    let app = &config.databases["app"];
    assert_eq!((app.pool.max_size, app.pool.min_idle), (9, 2));
    assert_eq!(app.timeouts.query_timeout, None);
    assert_eq!(app.startup["timezone"], "UTC");
    assert_eq!(app.primary.host, "db1");
    assert_eq!(app.dbname, None);
    assert_eq!(app.replicas[0].user.as_deref(), Some("own"));
    assert_eq!(app.replicas[0].password, app.primary.password);
    let far = &config.databases["far"];
    assert_eq!((far.primary.host.as_str(), far.primary.port), ("::1", 5433));
    assert_eq!(far.password.as_ref().unwrap().expose(), "hunter2");
    assert_eq!(far.primary.user.as_deref(), Some("u"));
    assert!(far.replicas.is_empty());
    assert_eq!(far.timeouts.query_timeout, Some(Duration::from_secs(30)));
    let url = &config.databases["url"];
    assert_eq!(
        (url.dbname.as_deref(), url.replicas.len()),
        (Some("real"), 1)
    );
    assert_eq!(config.databases["*"].pool.max_size, 3);
    assert_eq!(config.databases["*"].dbname, None);
    assert_eq!(config.users["bob"].max_size, Some(1));
}

#[test]
fn files_are_found_beside_the_configuration() {
    let folder = Folder::new(
        "cluster.primary = \"postgres://u@db1\"\ncluster.password_file = \"password\"\n\
         auth.userlist = \"some.pem\"\ntls.client = { cert_file = \"some.pem\", key_file = \"some.pem\" }\n\
         pool.max_size = \"${SIZE}\"\n",
    );
    let config = folder.load().unwrap().config;
    assert_eq!(config.auth.userlist, Some(folder.path("some.pem")));
    assert_eq!(config.client_tls.sslmode, SslMode::Prefer);
    assert_eq!(config.pool.max_size, 7);
    let password = config.databases["*"].primary.password.clone().unwrap();
    assert_eq!(password.expose(), "s3cret");
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn all_problems_come_at_once_each_with_its_place() {
    let toml = "\
[general]
listen = [\"nowhere\", \"*:6432\"]
lisen = 1
http = 9930
workers = 0
unix_socket_mode = 777

[pool]
max_size = 4
min_idle = 8
pool_mode = \"transactoin\"
max_client_conn = 5

[timeouts]
query_timeout = 30
server_connect_timeout = \"0\"
client_idle_timeout = \"5 minutes\"

[databases.pgbouncer]
host = \"a,b\"
port = 70000

[databases.app]
colour = \"${PW}\"
max_server_connections = 5
password = \"x\"

[users.bob]
query_timeout = \"0\"

[log]
level = \"inof\"

[extra]
";
    let expected = [
        "pgweir.toml:2:11: general.listen: expected HOST:PORT, such as \"127.0.0.1:6432\", \"0.0.0.0:6432\" or \
         \"[::]:6432\"",
        "pgweir.toml:2:22: general.listen: expected HOST:PORT, such as \"127.0.0.1:6432\", \"0.0.0.0:6432\" or \
         \"[::]:6432\"",
        "pgweir.toml:3:1: general.lisen: unknown key; did you mean listen?",
        "pgweir.toml:4:8: general.http: expected IP:PORT, such as \"127.0.0.1:9930\", or \"off\", got a number",
        "pgweir.toml:5:11: general.workers: must be between 1 and 1024, got 0",
        "pgweir.toml:6:20: general.unix_socket_mode: expected permissions in octal, such as \"0770\", got a number",
        "pgweir.toml:9:12: pool.max_size: must be at least min_idle (8), got 4",
        "pgweir.toml:11:13: pool.pool_mode: expected one of session, transaction, statement; got \"transactoin\"",
        "pgweir.toml:12:1: pool.max_client_conn: unknown key",
        "pgweir.toml:15:17: timeouts.query_timeout: a duration needs a unit: write \"30s\" or \"30ms\"",
        "pgweir.toml:16:26: timeouts.server_connect_timeout: must be more than 0",
        "pgweir.toml:17:23: timeouts.client_idle_timeout: unknown unit \"minutes\" of a duration: write ms, s, min, \
         h or d",
        "pgweir.toml:19:12: databases.pgbouncer: is the console's name; call the database something else",
        "pgweir.toml:20:8: databases.pgbouncer.host: names several hosts: give one, and the others as replicas",
        "pgweir.toml:21:8: databases.pgbouncer.port: must be between 1 and 65535, got 70000",
        "pgweir.toml:23:12: databases.app: has no server: give primary or host here, or primary in [cluster]",
        "pgweir.toml:24:1: databases.app.colour: unknown key",
        "pgweir.toml:25:26: databases.app.max_server_connections: counts over all databases: set it in [pool]",
        "pgweir.toml:26:12: databases.app.password: needs databases.app.user",
        "pgweir.toml:29:17: users.bob.query_timeout: must be more than 0; leave it out to keep the database's limit",
        "pgweir.toml:32:9: log.level: expected error, warn, info, debug, trace, or a directive such as \
         \"pgweir::pool=debug,info\"",
        "pgweir.toml:34:2: extra: unknown key",
    ];
    assert_eq!(problems(toml), expected);
}

/// One key at a time, over a primary: what is said of it.
const WRONG: &[(&str, &str)] = &[
    ("pool = 5", "pool: expected a table [pool], got a number"),
    (
        "databases.app = \"x\"",
        "databases.app: expected a table [databases.app], got a string",
    ),
    (
        "general.listen = []",
        "general.listen: must name at least one address",
    ),
    (
        "general.listen = [\"A:1\", \"a:1\"]",
        "general.listen: a:1 is given twice",
    ),
    (
        "general.http = \"127.0.0.1:6432\"",
        "general.http: 127.0.0.1:6432 is an address of general.listen too",
    ),
    (
        "general.unix_socket_dir = \"nope\"",
        "general.unix_socket_dir: nope is not a folder",
    ),
    (
        "general.unix_socket_mode = \"0888\"",
        "general.unix_socket_mode: expected permissions in octal, such as \"0770\"",
    ),
    (
        "general.max_client_conn = 0",
        "general.max_client_conn: must be at least 1, got 0",
    ),
    (
        "general.max_client_conn = -1",
        "general.max_client_conn: must be between 0 and 10000000, got -1",
    ),
    (
        "general.max_client_conn = 99999999999999999999",
        "general.max_client_conn: expected a whole number, got a number that is too large",
    ),
    (
        "general.max_client_conn = 1.5",
        "general.max_client_conn: expected a whole number, got a number with a fraction",
    ),
    (
        "general.max_packet_size = 65536",
        "general.max_packet_size: a size needs a unit: write \"65536KiB\" or \"65536B\"",
    ),
    (
        "general.max_packet_size = \"1KiB\"",
        "general.max_packet_size: must be between 10000B and 2147483647B",
    ),
    (
        "general.tcp_keepalive = 1",
        "general.tcp_keepalive: expected true or false, got a number",
    ),
    (
        "general.admin_users = 5",
        "general.admin_users: expected a string, got a number",
    ),
    (
        "general.admin_users = [\"a\", true]",
        "general.admin_users: expected a string, got true",
    ),
    (
        "cluster.replicas = [\"postgres://u:hunter2@db2:x\"]",
        "cluster.replicas: has a port that is not a number between 1 and 65535",
    ),
    (
        "cluster.replicas = [\"postgres://db1\"]",
        "cluster.replicas: server db1:5432 is given twice",
    ),
    (
        "cluster.password_file = \"password\"",
        "cluster.password_file: needs a user in cluster.primary: postgres://USER@HOST",
    ),
    (
        "auth.method = \"kerberos\"",
        "auth.method: expected one of passthrough, scram-sha-256, scram, md5, trust, cert, peer, hba; got \
             \"kerberos\"",
    ),
    (
        "auth.method = \"${PW}\"",
        "auth.method: expected one of passthrough, scram-sha-256, scram, md5, trust, cert, peer, hba; got \
             \"${PW}\"",
    ),
    (
        "timeouts.query_timeout = \"5${PW}\"",
        "timeouts.query_timeout: expected a duration such as \"30s\"",
    ),
    (
        "auth.method = \"scram\"",
        "auth.method: needs verifiers: give auth.userlist, or auth.auth_user (or a user in the primary's URL) \
             to run auth.auth_query",
    ),
    (
        "auth.method = \"peer\"",
        "auth.method: peer needs general.unix_socket_dir",
    ),
    (
        "auth.method = \"hba\"",
        "auth.method: hba needs auth.hba_file",
    ),
    (
        "auth.auth_query = \"SELECT 1\"",
        "auth.auth_query: must contain $1, which stands for the user's name",
    ),
    (
        "auth.auth_password = \"x\"",
        "auth.auth_password: needs auth.auth_user",
    ),
    (
        "auth.userlist = \"nope\"",
        "auth.userlist: can't read nope: entity not found",
    ),
    ("auth.userlist = \".\"", "auth.userlist: . is a folder"),
    (
        "auth.auth_user = \"${NOPE}\"",
        "auth.auth_user: environment variable NOPE is not set",
    ),
    (
        "auth.auth_user = \"${\"",
        "auth.auth_user: ${ without a closing }; write $${ for a literal ${",
    ),
    (
        "auth.auth_user = \"a\\u0000\"",
        "auth.auth_user: must not contain a NUL character",
    ),
    (
        "auth = { auth_user = \"u\", auth_password_file = \"empty\" }",
        "auth.auth_password_file: empty is empty",
    ),
    (
        "auth = { auth_user = \"u\", auth_password_file = \"lines\" }",
        "auth.auth_password_file: lines holds more than one line",
    ),
    (
        "auth = { auth_user = \"u\", auth_password = \"x\", auth_password_file = \"password\" }",
        "auth.auth_password_file: can't be given together with auth.auth_password",
    ),
    (
        "tls.client.cert_file = \"some.pem\"",
        "tls.client.cert_file: needs tls.client.key_file",
    ),
    (
        "tls.server.key_file = \"some.pem\"",
        "tls.server.key_file: needs tls.server.cert_file",
    ),
    (
        "tls.client.sslmode = \"require\"",
        "tls.client.sslmode: needs tls.client.cert_file and tls.client.key_file",
    ),
    (
        "tls.server.sslmode = \"verify-full\"",
        "tls.server.sslmode: needs tls.server.ca_file",
    ),
    (
        "tls.server.direct = true",
        "tls.server.direct: needs tls.server.sslmode to be require or stronger",
    ),
    (
        "tls.sever.direct = true",
        "tls.sever: unknown key; did you mean server?",
    ),
    (
        "pool.min_idle = 21",
        "pool.min_idle: must be at most max_size (20), got 21",
    ),
    (
        "pool.max_prepared_statements = 0",
        "pool.max_prepared_statements: must be between 1 and 100000, got 0",
    ),
    (
        "timeouts.query_timeout = \"1.5s\"",
        "timeouts.query_timeout: unknown unit \".5s\" of a duration: write ms, s, min, h or d",
    ),
    (
        "databases.app.client_login_timeout = \"5s\"",
        "databases.app.client_login_timeout: starts before the database is known: set it in [timeouts]",
    ),
    (
        "databases.app.port = 5432",
        "databases.app.port: needs host",
    ),
    (
        "databases.app.replicas = \"postgres://db9\"",
        "databases.app.replicas: needs primary or host beside it",
    ),
    (
        "databases.app.min_idle = 21",
        "databases.app.min_idle: must be at most max_size (20), got 21",
    ),
    (
        "databases.\"my.db\".max_size = 0",
        "databases.\"my.db\".max_size: must be between 1 and 100000, got 0",
    ),
    (
        "databases.app = { primary = \"postgres://a\", host = \"b\" }",
        "databases.app.host: can't be given together with primary",
    ),
    (
        "users.bob.max_size = 0",
        "users.bob.max_size: must be more than 0; leave it out to keep the database's limit",
    ),
    ("users.bob.min_idle = 1", "users.bob.min_idle: unknown key"),
];

#[test]
fn each_wrong_setting_has_its_words() {
    for (toml, expected) in WRONG {
        let lines = problems(&format!("{PRIMARY}{toml}\n"));
        let [line] = lines.as_slice() else {
            panic!("{toml}: {lines:#?}");
        };
        let (place, message) = line.split_once(": ").unwrap();
        assert_eq!(message, *expected, "{toml}");
        assert!(place.starts_with("pgweir.toml:2:"), "{toml}: {place}");
        assert!(!line.contains("hunter2"), "{line}");
    }
}

#[test]
fn a_certificate_for_clients_needs_their_authorities() {
    let expected = [
        "cert needs tls.client.ca_file",
        "cert needs tls.client.cert_file",
    ];
    let lines = problems(&format!("{PRIMARY}auth.method = \"cert\""));
    assert_eq!(
        lines,
        expected.map(|message| format!("pgweir.toml:2:15: auth.method: {message}"))
    );
}

#[test]
fn without_a_server_there_is_nothing_to_do() {
    let expected = "no server to connect to: give --primary URL, or primary in [cluster]";
    assert_eq!(
        problems("[log]\nlevel = \"info\"\n"),
        [format!("pgweir.toml: {expected}")]
    );
    let problems = load(None, &Overrides::new(), &|_| None).unwrap_err();
    assert_eq!(problems.to_string(), expected);
}

#[test]
fn a_file_that_is_no_toml_says_where() {
    let lines = problems("[pool]\nmax_size = \npassword = \"hunter2\n[log\n");
    assert!(!lines.is_empty());
    for line in &lines {
        assert!(line.starts_with("pgweir.toml:"), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
    let missing = load(
        Some(Path::new("/does/not/exist")),
        &Overrides::new(),
        &|_| None,
    )
    .unwrap_err();
    assert_eq!(
        missing.to_string(),
        "can't read /does/not/exist: entity not found"
    );
}

#[test]
fn what_is_doubtful_is_a_warning() {
    let rows = [
        ("log.level = \"debug\"", vec![]),
        ("auth.method = \"trust\"", vec![]),
        (
            "auth.method = \"trust\"\ngeneral.listen = [\"[::1]:1\", \"0.0.0.0:6432\"]",
            vec![
                "pgweir.toml:2:15: auth.method: trust lets everyone in who can reach 0.0.0.0:6432, under any name",
            ],
        ),
        (
            "auth.hba_file = \"some.pem\"",
            vec!["pgweir.toml:2:17: auth.hba_file: is not used: auth.method is not hba"],
        ),
        (
            "auth.method = \"passthrough\"\ntls.server = { cert_file = \"some.pem\", key_file = \"some.pem\" }",
            vec![
                "pgweir.toml:2:15: auth.method: passthrough lets everyone in whom the server asks for no password: a \
                 user whom it admits by the certificate in tls.server.cert_file",
            ],
        ),
        (
            "tls.server = { sslmode = \"disable\", ca_file = \"some.pem\" }",
            vec![
                "pgweir.toml:2:26: tls.server.sslmode: disable leaves the certificate files unused",
            ],
        ),
    ];
    for (toml, expected) in rows {
        assert_eq!(warnings(&format!("{PRIMARY}{toml}\n")), expected, "{toml}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_file_panics(toml in "(\\[?[a-z._\"*]{0,12}\\]?[ =]*[0-9a-z\"\\[\\],{}$:/@%]{0,20}\n){0,8}") {
        let _ = Folder::new(&toml).load();
    }
}
