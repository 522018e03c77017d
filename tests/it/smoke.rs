//! The least that must work through pgweir: a statement by hand, and psql.

use std::process::Command;

use pgweir::demo::cluster::binaries;

use crate::shared;
use crate::support::pgweir::Options;

#[tokio::test]
async fn a_statement_is_answered_through_pgweir() {
    let pgweir = Options::new(shared::server()).start();
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT 1").await, "1");
    let reply = client
        .extended("SELECT $1::text, NULL", &[Some("x")])
        .await
        .ok();
    assert_eq!(reply.rows, [[Some("x".to_owned()), None]]);
    assert_eq!(client.query("SELECT 1/0").await.sqlstate(), "22012");
    assert_eq!(client.value("SELECT 2").await, "2");
    client.terminate().await;
}

#[test]
fn psql_works_through_pgweir() {
    let mut pgweir = Options::new(shared::server()).start();
    let script = "CREATE TEMP TABLE t (a int, b text);\nCOPY t FROM stdin;\n1\tone\n2\ttwo\n\\.\n\
                  BEGIN;\nUPDATE t SET b = upper(b);\nCOPY t TO stdout;\nCOMMIT;\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script.sql");
    std::fs::write(&path, script).unwrap();
    let output = Command::new(binaries().unwrap().join("psql"))
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"])
        .args([path.as_os_str(), "-d".as_ref()])
        .arg(pgweir.url("postgres", "postgres"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\tONE\n2\tTWO\n");
    assert!(pgweir.stop().success());
}
