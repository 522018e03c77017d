//! `currval` does not return the number of a client that wrote later; pins end when what caused them is gone.

use crate::shared;
use crate::support::pgweir::Options;

#[tokio::test]
async fn currval_is_not_that_of_a_later_writer() {
    let role = shared::role("sequences").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("CREATE SEQUENCE own_numbers").await.ok();
    one.query("SELECT nextval('own_numbers')").await.ok();
    two.query("SELECT nextval('own_numbers')").await.ok();
    let reply = one.query("SELECT currval('own_numbers')").await;
    assert_eq!(reply.sqlstate(), "55000");
    one.terminate().await;
    // The last to advance it reads its own.
    two.query("SELECT nextval('own_numbers')").await.ok();
    assert_eq!(two.value("SELECT currval('own_numbers')").await, "3");
    assert_eq!(two.value("SELECT lastval()").await, "3");
    two.query("DROP SEQUENCE own_numbers").await.ok();
}

#[tokio::test]
async fn a_pin_ends_when_its_cause_is_gone() {
    let role = shared::role("unpinned").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    let causes = [
        ("CREATE TEMP TABLE t (a int)", "DROP TABLE t"),
        ("LISTEN ch", "UNLISTEN *"),
        ("SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock(7)"),
        ("PREPARE p AS SELECT 1", "DEALLOCATE p"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "CLOSE c"),
    ];
    for (make, end) in causes {
        one.query(make).await.ok();
        one.query(end).await.ok();
        // With one backend, this is served only if `one` has let go of it.
        assert_eq!(two.value("SELECT 1").await, "1", "{end}");
    }
    // Anything in the temporary schema counts, not only tables.
    one.query("CREATE TEMP TABLE t (a int, b int)").await.ok();
    one.query("CREATE STATISTICS pg_temp.s ON a, b FROM t")
        .await
        .ok();
    one.query("CREATE TYPE pg_temp.pair AS (a int, b int)")
        .await
        .ok();
    one.query("DROP TABLE t").await.ok();
    one.query("SELECT NULL::pg_temp.pair").await.ok();
    one.query("DROP TYPE pg_temp.pair").await.ok();
    assert_eq!(two.value("SELECT 1").await, "1");
    one.query("LISTEN ch").await.ok();
    one.query("CREATE TEMP TABLE t (a int)").await.ok();
    one.query("DROP TABLE t").await.ok();
    assert_eq!(
        one.value("SELECT count(*) FROM pg_listening_channels()")
            .await,
        "1"
    );
    one.query("UNLISTEN ch").await.ok();
    assert_eq!(two.value("SELECT 2").await, "2");
}
