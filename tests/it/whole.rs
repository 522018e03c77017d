//! The commands a new user begins with, from their first line to their end.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use pgweir::demo::cluster::Guardian;
use tempfile::TempDir;

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::pgweir::{Options, binary, command};
use crate::support::wait::{wait_for, wait_until};

#[tokio::test]
async fn the_demo_serves_its_exchange_and_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    // The servers run as another user where the tests run as root.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let files = TempDir::new().unwrap();
    let file = |name| File::create(files.path().join(name)).unwrap();
    let mut demo = Command::new(binary())
        .args(["demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(file("stdout"))
        .stderr(file("stderr"))
        .spawn()
        .unwrap();
    let guardian = Guardian::of_process(demo.id()).unwrap();
    let said = || fs::read_to_string(files.path().join("stdout")).unwrap();
    let address = wait_for("the demo to serve", || {
        if demo.try_wait().unwrap().is_some() {
            let log = fs::read_to_string(files.path().join("stderr")).unwrap();
            panic!("the demo ended:\n{}{log}", said());
        }
        let said = said();
        let (_, dsn) = said.split_once("postgres://trader@")?;
        let (address, _) = dsn.split_once("/exchange")?;
        address.parse().ok()
    });
    let mut client = Client::connect(address, "trader", "exchange").await;
    let users = client.value("SELECT count(*) FROM users").await;
    assert!(users.parse::<u32>().unwrap() > 1000, "{users}");
    let mut console = Client::connect(address, "trader", "pgweir").await;
    assert_eq!(console.query("SHOW NODES").await.ok().rows.len(), 3);
    let stopped = Command::new("sh")
        .args(["-c", "kill -s INT \"$1\"", "sh", &demo.id().to_string()])
        .status()
        .unwrap();
    assert!(stopped.success());
    let status = wait_for("the demo to end", || demo.try_wait().unwrap());
    guardian.dismiss();
    assert!(status.success(), "{status}");
    // The last of it goes with the guardian of the template, which outlives the demo for a moment.
    wait_until("its folders to be gone", || {
        fs::read_dir(folder.path()).unwrap().next().is_none()
    });
}

#[tokio::test]
async fn a_pgbouncer_ini_with_its_userlist_imports_and_serves() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let port = shared::server().address().port();
    let ini = format!(
        "[databases]\napp = host=127.0.0.1 port={port} dbname=postgres user=postgres pool_size=3\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = 0\nauth_type = scram-sha-256\n\
         auth_file = {}\npool_mode = transaction\n",
        path("userlist.txt").display()
    );
    fs::write(path("pgbouncer.ini"), ini).unwrap();
    fs::write(path("userlist.txt"), "\"web\" \"secret\"\n").unwrap();
    let ini = path("pgbouncer.ini");
    let (status, config, said) = command(&["import", ini.to_str().unwrap()]);
    assert!(status.success(), "{said}");
    // The tests want to know where /metrics is.
    let config = config.replacen("[general]\n", "[general]\nhttp = \"127.0.0.1:0\"\n", 1);
    let pgweir = Options::config(&config).start();
    let login = Login::new("web", "app");
    let mut client = pgweir.client_as(&login.clone().password("secret")).await;
    assert_eq!(client.value("SELECT 42").await, "42");
    let wrong = Client::connect_as(pgweir.address, &login.password("wrong")).await;
    let refused = wrong.err().expect("a wrong password is refused");
    assert_eq!(refused.code, "28P01");
}
