//! A line for each login and each end of a client, if the configuration asks for them.

use crate::shared;
use crate::support::pgweir::Options;

#[tokio::test]
async fn logins_and_ends_are_logged_with_who_and_why() {
    let pgweir = Options::new(shared::server()).start();
    pgweir.client().await.terminate().await;
    pgweir
        .wait_for_log("client logged in user=\"postgres\" database=\"postgres\" client=127.0.0.1:");
    pgweir.wait_for_log("reason=\"client closed the connection\"");
}

#[tokio::test]
async fn neither_is_logged_where_it_is_switched_off() {
    let mut pgweir = Options::new(shared::server())
        .set("log.log_connections", "false")
        .set("log.log_disconnections", "false")
        .start();
    pgweir.client().await.terminate().await;
    // The end of the process comes after the client's.
    assert!(pgweir.stop().success());
    let log = pgweir.log();
    assert!(log.contains("stopped"), "{log}");
    assert!(
        !log.contains("client logged in") && !log.contains("client disconnected"),
        "{log}"
    );
}
