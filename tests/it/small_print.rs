//! What applications and tools stumble over where a proxy is not quite the server.

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{Message, query};
use crate::support::pgweir::Options;

#[tokio::test]
async fn parked_server_connections_keep_no_database_from_being_dropped_renamed_or_copied() {
    let pgweir = Options::new(shared::server()).start();
    let mut admin = pgweir.client_as(&Login::new("postgres", "postgres")).await;
    for name in ["parked", "\"Parked too\""] {
        admin.query(&format!("CREATE DATABASE {name}")).await.ok();
        let database = name.trim_matches('"');
        let mut client = pgweir.client_as(&Login::new("postgres", database)).await;
        client.query("LISTEN a").await.ok();
        client.query("CREATE TABLE t AS SELECT 42 AS a").await.ok();
        drop(client);
        let copy = format!("CREATE DATABASE parked_copy TEMPLATE {name}");
        admin.query(&copy).await.ok();
        let login = Login::new("postgres", "parked_copy");
        let mut client = pgweir.client_as(&login).await;
        assert_eq!(client.value("SELECT a FROM t").await, "42");
        admin
            .extended("ALTER DATABASE parked_copy RENAME TO parked_renamed", &[])
            .await
            .ok();
        let login = Login::new("postgres", "parked_renamed");
        let mut client = pgweir.client_as(&login).await;
        assert_eq!(client.value("SELECT a FROM t").await, "42");
        admin.query("DROP DATABASE parked_renamed").await.ok();
        admin.query(&format!("DROP DATABASE {name}")).await.ok();
    }
    // What needs no empty database empties none.
    let mut parked = pgweir.client_as(&Login::new("postgres", "template1")).await;
    let pid = parked.value("SELECT pg_backend_pid()").await;
    let set = "ALTER DATABASE template1 SET application_name = ''";
    admin.query(set).await.ok();
    admin.query("ALTER DATABASE template1 RESET ALL").await.ok();
    assert_eq!(parked.value("SELECT pg_backend_pid()").await, pid);
    drop(parked);
    let mut template = pgweir.client_as(&Login::new("postgres", "template1")).await;
    assert_eq!(template.value("SELECT 1").await, "1");
    admin.query("CREATE DATABASE parked").await.ok();
    admin.query("DROP DATABASE parked").await.ok();
}

/// The last message before the connection ends.
async fn last_words(client: &mut Client) -> Option<Message> {
    let mut last = None;
    while let Some(message) = client.read_message().await {
        last = Some(message);
    }
    last
}

#[tokio::test]
async fn the_servers_last_words_reach_the_client_whole() {
    let pgweir = Options::new(shared::server()).start();
    let login = Login::new("postgres", "postgres");
    let mut words = Vec::new();
    for address in [pgweir.address, shared::server().address()] {
        let mut client = Client::connect_as(address, &login).await.unwrap();
        client.query("BEGIN").await.ok();
        let pid = client.value("SELECT pg_backend_pid()").await;
        client.send(&query("SELECT pg_sleep(60)")).await;
        let mut other = shared::direct().await;
        let end = format!("SELECT pg_terminate_backend({pid})");
        assert_eq!(other.value(&end).await, "t");
        words.push(last_words(&mut client).await);
    }
    assert_eq!(words[0].as_ref().map(|message| message.tag), Some(b'E'));
    assert_eq!(words[0], words[1]);
}

#[tokio::test]
async fn startup_parameters_are_the_servers_and_told_as_the_server_tells_them() {
    let pgweir = Options::new(shared::server()).start();
    let login = Login::new("postgres", "postgres")
        .with("client_encoding", "utf-8")
        .with("datestyle", "german")
        .with("TimeZone", "europe/berlin")
        .with("application_name", "an application")
        .with("extra_float_digits", "2")
        .with("my.custom", "Grüße")
        .with("options", "-c work_mem=7MB -c your.custom=a\\ b --geqo=off");
    let mut told = Vec::new();
    for address in [pgweir.address, shared::server().address()] {
        let mut client = Client::connect_as(address, &login).await.unwrap();
        let mut values = Vec::new();
        for _ in 0..2 {
            for name in [
                "client_encoding",
                "datestyle",
                "timezone",
                "application_name",
                "extra_float_digits",
                "my.custom",
                "your.custom",
                "work_mem",
                "geqo",
            ] {
                values.push(client.value(&format!("SHOW {name}")).await);
            }
        }
        told.push((client.parameters.clone(), values));
    }
    assert_eq!(told[0], told[1]);
    for wrong in [
        ("client_encoding", "klingon"),
        ("datestyle", "stardate"),
        ("options", "-c work_mem=much"),
        ("options", "-c no_such_setting=1"),
        ("nothing", "1"),
    ] {
        let login = Login::new("postgres", "postgres").with(wrong.0, wrong.1);
        let mut refusals = Vec::new();
        for address in [pgweir.address, shared::server().address()] {
            let refused = Client::connect_as(address, &login).await;
            let refused = refused.err().unwrap_or_else(|| panic!("{wrong:?}"));
            refusals.push((refused.code, refused.message, refused.detail, refused.hint));
        }
        assert_eq!(refusals[0], refusals[1], "{wrong:?}");
    }
}
