//! Fresh sessions, compared with one of a direct connection: nothing of anybody else is in them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::client::{Connection, Over};
use super::scene::{ROLE, Scene};
use crate::support::client::Client;
use crate::support::pgweir::Pgweir;

/// Everything of a session that SQL can see and that a direct connection starts without.
const PROBE: &str = "SELECT string_agg(line, E'\\n') FROM (
    SELECT name || '=' || coalesce(setting, '') AS line FROM pg_settings
    UNION ALL SELECT 'user ' || current_user || ' ' || session_user
    UNION ALL SELECT 'temporary ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
    UNION ALL SELECT 'advisory lock ' || objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    UNION ALL SELECT 'cursor ' || name FROM pg_cursors WHERE name <> ''
    UNION ALL SELECT 'prepared ' || name FROM pg_prepared_statements
    UNION ALL SELECT 'channel ' || channel FROM pg_listening_channels() AS channel
    UNION ALL SELECT 'token ' || coalesce(current_setting('chaos.token', true), '')
    ORDER BY line) AS lines";

/// What a direct connection finds.
pub async fn direct(address: SocketAddr) -> String {
    let mut client = Client::connect(address, ROLE, "postgres").await;
    // In a transaction that is the primary's, as the others do it.
    client.query("BEGIN READ WRITE").await.ok();
    let found = client.value(PROBE).await;
    client.query("COMMIT").await.ok();
    client.terminate().await;
    found
}

/// Lines that only one of them has.
fn difference(found: &str, expected: &str) -> String {
    let only = |these: &str, those: &str| -> Vec<String> {
        let those: Vec<&str> = those.lines().collect();
        let only = these.lines().filter(|line| !those.contains(line));
        only.map(str::to_owned).collect()
    };
    format!(
        "{:?} instead of {:?}",
        only(found, expected),
        only(expected, found)
    )
}

/// Looks at the session it has and says whether it is like a direct one.
async fn look(scene: &Scene, connection: &mut Connection) -> Result<(), Over> {
    let alone = connection
        .ask("SELECT now() = statement_timestamp()")
        .await?;
    if alone.values != ["t"] || alone.status != b'I' {
        scene
            .findings
            .add(format!("a fresh session is in a transaction: {alone:?}"));
    }
    connection.ask("BEGIN READ WRITE").await?;
    let answer = connection.ask(PROBE).await?;
    connection.ask("COMMIT").await?;
    let found = answer.values.first().map_or("", String::as_str);
    if found == scene.baseline {
        scene.count("fresh session like a direct one");
    } else {
        scene.findings.add(format!(
            "a fresh session differs from a direct one: {}",
            difference(found, &scene.baseline)
        ));
    }
    Ok(())
}

/// Comes, looks and goes, until the end.
pub async fn live(scene: Arc<Scene>) {
    while !scene.stop.load(Ordering::Relaxed) {
        if let Ok(mut connection) = Connection::open(&scene, &[]).await {
            let _ = look(&scene, &mut connection).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As many fresh clients at once as the pool has backends.
pub async fn every_backend(scene: &Scene, pgweir: &Pgweir, backends: usize) {
    let mut clients = Vec::new();
    for _ in 0..backends {
        let mut client = Client::connect(pgweir.address, ROLE, "postgres").await;
        client.query("BEGIN READ WRITE").await.ok();
        let found = client.value(PROBE).await;
        if found != scene.baseline {
            scene.findings.add(format!(
                "a backend is not like a fresh one: {}",
                difference(&found, &scene.baseline)
            ));
        }
        clients.push(client);
    }
}
