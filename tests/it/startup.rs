//! The first packets: versions, options, parameters, keys.

use crate::shared;
use crate::support::client::{self, Client, Login};
use crate::support::messages::{self, PROTOCOL_3_0, PROTOCOL_3_2, ServerError};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::wait_until;

fn login() -> Login {
    Login::new("postgres", "postgres")
}

async fn refusal(pgweir: &Pgweir, login: &Login) -> ServerError {
    let refused = Client::connect_as(pgweir.address, login).await;
    refused.err().expect("the login to be refused")
}

/// Version and options of a NegotiateProtocolVersion.
fn negotiated(client: &Client) -> Option<(u32, Vec<String>)> {
    let message = client.negotiated.as_ref()?;
    let (version, rest) = message.body.split_first_chunk::<4>().unwrap();
    let (count, rest) = rest.split_first_chunk::<4>().unwrap();
    let options: Vec<String> = rest
        .split_inclusive(|byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(&text[..text.len() - 1]).into_owned())
        .collect();
    assert_eq!(options.len(), u32::from_be_bytes(*count) as usize);
    Some((u32::from_be_bytes(*version), options))
}

#[tokio::test]
async fn each_protocol_version_is_answered_as_a_new_server_would() {
    let pgweir = Options::new(shared::server()).start();
    for (asked, told, key) in [
        (PROTOCOL_3_0, None, 4),
        (PROTOCOL_3_2, None, 32),
        (0x0003_0003, Some(PROTOCOL_3_2), 32),
        (0x0003_270f, Some(PROTOCOL_3_2), 32),
        (0x0003_ffff, Some(PROTOCOL_3_2), 32),
    ] {
        let mut client = pgweir.client_as(&login().protocol(asked)).await;
        assert_eq!(negotiated(&client), told.map(|version| (version, vec![])));
        assert_eq!(client.key.len(), 4 + key, "{asked:x}");
        assert_eq!(client.value("SELECT 1").await, "1");
        client.terminate().await;
    }
}

#[tokio::test]
async fn unknown_protocol_options_are_listed_and_the_rest_works() {
    let pgweir = Options::new(shared::server()).start();
    let login = login()
        .with("_pq_.first", "on")
        .with("application_name", "known")
        .with("_pq_.second", "1");
    let mut client = pgweir.client_as(&login).await;
    let options = vec!["_pq_.first".to_owned(), "_pq_.second".to_owned()];
    assert_eq!(negotiated(&client), Some((PROTOCOL_3_0, options)));
    assert_eq!(client.value("SHOW application_name").await, "known");
}

#[tokio::test]
async fn other_major_versions_are_refused_as_the_server_refuses_them() {
    let pgweir = Options::new(shared::server()).start();
    for (version, named) in [
        (0x0002_0000, "2.0"),
        (0x0004_0000, "4.0"),
        (0x0001_0000, "1.0"),
    ] {
        let error = refusal(&pgweir, &login().protocol(version)).await;
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "0A000")
        );
        let message = format!("unsupported frontend protocol {named}: server supports 3.0 to 3.2");
        assert_eq!(error.message, message);
    }
}

#[tokio::test]
async fn a_long_key_cancels_and_its_beginning_does_not() {
    let server = shared::server();
    let pgweir = Options::new(server).start();
    let mut client = pgweir.client_as(&login().protocol(PROTOCOL_3_2)).await;
    client
        .send(&messages::query("SELECT 'long key', pg_sleep(600)"))
        .await;
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
                  AND query LIKE '%long key%'";
    wait_until("the statement to sleep", || {
        server.sql("postgres", asleep).unwrap() == "1"
    });
    let key = client.key.clone();
    let mut wrong = key.clone();
    wrong[20] ^= 1;
    for guess in [&key[..8], &key[..35], &wrong] {
        client::cancel(pgweir.address, guess).await;
        assert_eq!(server.sql("postgres", asleep).unwrap(), "1");
    }
    client::cancel(pgweir.address, &key).await;
    assert_eq!(client.reply().await.sqlstate(), "57014");
}

#[tokio::test]
async fn parameters_and_options_hold_as_in_a_direct_connection() {
    let server = shared::server();
    let pgweir = Options::new(server).flag("--pool-size", "1").start();
    let login = login()
        .with("application_name", "it's \\ a \"name\"")
        .with("client_encoding", "latin1")
        .with("DateStyle", "German")
        .with("search_path", "a, \"B c\"")
        .with(
            "options",
            "-c work_mem=5MB --statement-timeout=77s -ctimezone=Asia/Tokyo -c application_name=lost \
             -c my.own=x\\ y\\\\z",
        );
    let show = "SELECT string_agg(name || '=' || setting, ';' ORDER BY name) FROM pg_settings \
                WHERE name IN ('application_name', 'client_encoding', 'DateStyle', 'search_path', \
                'work_mem', 'statement_timeout', 'TimeZone')";
    let own = "SHOW my.own";
    let mut direct = Client::connect_as(server.address(), &login).await.unwrap();
    let mut through = pgweir.client_as(&login).await;
    let (expected, expected_own) = (direct.value(show).await, direct.value(own).await);
    assert!(
        expected.contains("work_mem=5120") && expected_own == r"x y\z",
        "{expected}"
    );
    assert_eq!(through.parameters, direct.parameters);
    // Another client in between leaves no trace, nor is left one.
    let mut plain = pgweir.client().await;
    for _ in 0..2 {
        assert_eq!(through.value(show).await, expected);
        assert_eq!(through.value(own).await, expected_own);
        assert_eq!(plain.value("SHOW work_mem").await, "4MB");
        assert_eq!(plain.value("SHOW application_name").await, "");
    }
    // RESET goes back to what the client started with, as it would on a connection of its own.
    for client in [&mut direct, &mut through] {
        client
            .query("SET work_mem = '9MB'; SET timezone = 'UTC'")
            .await
            .ok();
        client.query("RESET work_mem").await.ok();
        assert_eq!(client.value("SHOW work_mem").await, "5MB");
        client.query("RESET ALL").await.ok();
        assert_eq!(client.value("SHOW timezone").await, "Asia/Tokyo");
    }
    assert_eq!(through.value(show).await, direct.value(show).await);
}

#[tokio::test]
async fn a_parameter_the_server_refuses_is_refused_in_its_words() {
    let server = shared::server();
    let pgweir = Options::new(server).start();
    for login in [
        login().with("work_mem", "lots"),
        login().with("no_such_setting", "1"),
        login().with("DateStyle", "nonsense"),
        login().with("client_encoding", "klingon"),
        login().with("options", "-c work_mem=1"),
        login().with("options", "-c statement_timeout=-5"),
        login().with("role", "nobody_there"),
        login().with("TimeZone", "Nowhere/Land"),
    ] {
        let direct = Client::connect_as(server.address(), &login).await;
        let direct = direct
            .err()
            .unwrap_or_else(|| panic!("{login:?} is accepted"));
        assert_eq!(refusal(&pgweir, &login).await, direct, "{login:?}");
    }
    // The connections they were tried on serve others.
    assert_eq!(pgweir.client().await.value("SELECT 1").await, "1");
    for options in ["-x", "-c", "nonsense", "--nothing"] {
        let error = refusal(&pgweir, &login().with("options", options)).await;
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "42601")
        );
    }
}

#[tokio::test]
async fn the_database_defaults_to_the_user() {
    let pgweir = Options::new(shared::server()).start();
    let mut client = Client::open(pgweir.address).await;
    client
        .send(&messages::startup(PROTOCOL_3_0, &[("user", "postgres")]))
        .await;
    loop {
        let message = client.message().await;
        match message.tag {
            b'Z' => break,
            b'R' | b'K' => {}
            _ => panic!("{message:?}"),
        }
    }
    assert_eq!(client.value("SELECT current_database()").await, "postgres");
}

#[tokio::test]
async fn what_a_client_is_told_at_login_is_what_a_server_tells() {
    let server = shared::server();
    let pgweir = Options::new(server).start();
    let direct = Client::connect(server.address(), "postgres", "postgres").await;
    let through = pgweir.client().await;
    assert_eq!(through.parameters, direct.parameters);
    assert_eq!(through.key.len(), direct.key.len());
    assert_ne!(through.key, direct.key);
}
