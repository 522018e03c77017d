//! COPY in both directions and both protocols, whatever goes wrong on the way; and messages too large to be held.

use crate::same::Same;
use crate::shared::{self, Role};
use crate::support::client::Client;
use crate::support::messages::{
    self, bind, copy_data, copy_done, copy_fail, describe, execute, flush, parse, query, sync,
};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{ScriptedBackend, Step};
use crate::support::wait::eventually;

const FROM: &str = "COPY copied FROM STDIN";

async fn copying(name: &'static str) -> (Role, Pgweir, Client) {
    let mut role = shared::role(name).await;
    role.observe(&format!(
        "CREATE SCHEMA {name} CREATE TABLE copied (a int); ALTER ROLE {name} SET search_path = {name}; SELECT 1"
    ))
    .await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let client = role.client(&pgweir).await;
    (role, pgweir, client)
}

/// Parse, Bind, Describe and Execute of a COPY.
fn extended(sql: &str) -> Vec<u8> {
    [
        parse("", sql, &[]),
        bind("", "", &[]),
        describe(b'P', ""),
        execute("", 0),
    ]
    .concat()
}

#[tokio::test]
async fn data_goes_in_and_out() {
    let (role, pgweir, mut client) = copying("copy_both").await;
    let mut other = role.client(&pgweir).await;
    let reply = client.copy_in(FROM, &[b"1\n2", b"\n3\n", b""]).await;
    assert_eq!(reply.ok().tags, ["COPY 3"]);
    assert_eq!(
        client.query("COPY copied TO STDOUT").await.ok().copied,
        b"1\n2\n3\n"
    );
    // In the extended protocol, with the Sync before the data as libpq sends it, and another behind.
    client.send(&[extended(FROM), sync()].concat()).await;
    for tag in *b"12nG" {
        client.expect(tag).await;
    }
    client
        .send(&[copy_data(b"4\n"), copy_done(), sync()].concat())
        .await;
    assert_eq!(client.reply().await.ok().order, "CZ");
    // With everything in one write.
    let batch = [extended(FROM), copy_data(b"5\n"), copy_done(), sync()];
    client.send(&batch.concat()).await;
    for tag in *b"12nG" {
        client.expect(tag).await;
    }
    assert_eq!(client.reply().await.ok().order, "CZ");
    client
        .send(&[extended("COPY copied TO STDOUT"), sync()].concat())
        .await;
    let reply = client.reply().await.ok();
    assert_eq!(
        (reply.order.as_str(), reply.copied.as_slice()),
        ("12nHdddddcCZ", &b"1\n2\n3\n4\n5\n"[..])
    );
    assert_eq!(other.value("SELECT count(*) FROM copied").await, "5");
    assert_eq!(client.value("SELECT sum(a) FROM copied").await, "15");
}

#[tokio::test]
async fn two_copies_in_one_query_and_a_pipeline_behind() {
    let (_role, _pgweir, mut client) = copying("copy_pipeline").await;
    let batch = [
        query(FROM),
        copy_data(b"1\n"),
        copy_done(),
        query("SELECT count(*) FROM copied"),
        query(FROM),
        copy_fail("changed my mind"),
        query("SELECT count(*) FROM copied"),
    ];
    client.send(&batch.concat()).await;
    client.expect(b'G').await;
    assert_eq!(client.reply().await.ok().tags, ["COPY 1"]);
    assert_eq!(client.reply().await.ok().value(), "1");
    client.expect(b'G').await;
    assert_eq!(client.reply().await.sqlstate(), "57014");
    assert_eq!(client.reply().await.ok().value(), "1");
    client
        .send(&query(&format!("{FROM}; SELECT 7; {FROM}")))
        .await;
    for _ in 0..2 {
        while client.message().await.tag != b'G' {}
        client
            .send(&[copy_data(b"2\n"), copy_done()].concat())
            .await;
    }
    assert_eq!(client.reply().await.ok().order, "CZ");
    assert_eq!(client.value("SELECT count(*) FROM copied").await, "3");
}

#[tokio::test]
async fn wrong_data_fails_the_copy_and_what_follows_is_ignored() {
    let (_role, _pgweir, mut client) = copying("copy_wrong").await;
    for ends in [true, false] {
        client.send(&query(FROM)).await;
        client.expect(b'G').await;
        client.send(&copy_data(b"1\nnot a number\n")).await;
        if ends {
            client
                .send(&[copy_data(b"2\n"), copy_done()].concat())
                .await;
        } else {
            // The error is seen at the end of the data, or once enough has come.
            client.send(&copy_data(&b"3\n".repeat(50_000))).await;
            client.send(&copy_done()).await;
        }
        assert_eq!(client.reply().await.sqlstate(), "22P02");
        assert_eq!(client.value("SELECT count(*) FROM copied").await, "0");
        client.send(&[extended(FROM), flush()].concat()).await;
        for tag in *b"12nG" {
            client.expect(tag).await;
        }
        client.send(&copy_data(b"not a number\n")).await;
        if !ends {
            client.send(&copy_data(&b"3\n".repeat(50_000))).await;
        }
        client.send(&[copy_done(), sync()].concat()).await;
        let reply = client.reply().await;
        assert_eq!((reply.order.as_str(), reply.sqlstate()), ("EZ", "22P02"));
        assert_eq!(client.value("SELECT count(*) FROM copied").await, "0");
    }
    // No such table: the data is already under way.
    let batch = [
        query("COPY nowhere FROM STDIN"),
        copy_data(b"1\n"),
        copy_done(),
        query("SELECT 1"),
    ];
    client.send(&batch.concat()).await;
    assert_eq!(client.reply().await.sqlstate(), "42P01");
    assert_eq!(client.reply().await.ok().value(), "1");
}

#[tokio::test]
async fn copy_fail_ends_a_copy_in_both_protocols() {
    let (role, pgweir, mut client) = copying("copy_fail").await;
    client.query("BEGIN").await.ok();
    client.send(&query(FROM)).await;
    client.expect(b'G').await;
    client
        .send(&[copy_data(b"1\n"), copy_fail("no more")].concat())
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.sqlstate(), reply.status), ("57014", 'E'));
    client.query("ROLLBACK").await.ok();
    client.send(&[extended(FROM), flush()].concat()).await;
    for tag in *b"12nG" {
        client.expect(tag).await;
    }
    client.send(&[copy_fail("no more"), sync()].concat()).await;
    assert_eq!(client.reply().await.order, "EZ");
    let mut other = role.client(&pgweir).await;
    assert_eq!(other.value("SELECT count(*) FROM copied").await, "0");
}

#[tokio::test]
async fn a_client_that_vanishes_in_a_copy_leaves_a_usable_backend() {
    let (mut role, pgweir, mut client) = copying("copy_gone").await;
    assert_eq!(client.value("SELECT 1").await, "1");
    let starts = [
        query(FROM),
        [query(FROM), copy_data(b"1\n")].concat(),
        [extended(FROM), flush(), copy_data(b"2\n")].concat(),
        [extended(FROM), sync(), copy_data(b"3\n")].concat(),
        [query("BEGIN"), query(FROM), copy_data(b"4\n")].concat(),
        query("COPY (SELECT generate_series(1, 5000000)) TO STDOUT"),
        [
            extended("COPY (SELECT generate_series(1, 5000000)) TO STDOUT"),
            sync(),
        ]
        .concat(),
    ];
    for (index, start) in starts.iter().enumerate() {
        for waits in [false, true] {
            let mut leaver = role.client(&pgweir).await;
            leaver.send(start).await;
            while waits && !matches!(leaver.message().await.tag, b'G' | b'd') {}
            drop(leaver);
            let since = tokio::time::Instant::now();
            assert_eq!(
                client.value("SELECT count(*) FROM copied").await,
                "0",
                "{index}"
            );
            assert!(
                since.elapsed().as_secs() < 5,
                "{index}: {:?}",
                since.elapsed()
            );
        }
    }
    // Where a Sync may have been read as part of the COPY or not, the connection is replaced instead of cleaned.
    assert_eq!(role.pids().await.len(), 1);
    // Cut in the middle of a message: the server waits for the rest of it, so the connection is closed.
    let mut leaver = role.client(&pgweir).await;
    leaver.send(&query(FROM)).await;
    leaver.expect(b'G').await;
    let data = copy_data(&b"1\n".repeat(100_000));
    leaver.send(&data[..data.len() - 5]).await;
    drop(leaver);
    assert_eq!(client.value("SELECT count(*) FROM copied").await, "0");
    eventually("one backend", async || role.pids().await.len() == 1).await;
}

#[tokio::test]
async fn a_large_copy_is_not_held_in_memory() {
    let (_role, pgweir, mut client) = copying("copy_large").await;
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pgweir.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let before = memory();
    client.send(&query(FROM)).await;
    client.expect(b'G').await;
    let block = copy_data(&b"1234567\n".repeat(125_000));
    for _ in 0..32 {
        client.send(&block).await;
    }
    client.send(&copy_done()).await;
    assert_eq!(client.reply().await.ok().tags, ["COPY 4000000"]);
    // Asked for and not read for a while: the server has to wait.
    client.send(&query("COPY copied TO STDOUT")).await;
    client.expect(b'H').await;
    tokio::time::sleep(crate::support::pgweir::SILENCE).await;
    let mut bytes = 0;
    loop {
        let message = client.message().await;
        match message.tag {
            b'd' => bytes += message.body.len(),
            b'Z' => break,
            tag => assert!(matches!(tag, b'c' | b'C'), "{message:?}"),
        }
    }
    assert_eq!(bytes, 32_000_000);
    let grown = memory() - before;
    assert!(grown < 8 * 1024, "grown by {grown} kB for 32 MB");
}

#[tokio::test]
async fn a_value_of_16_mb_passes_both_ways() {
    let (_role, _pgweir, mut client) = copying("copy_16mb").await;
    let value = "v".repeat(16 * 1024 * 1024);
    let reply = client
        .extended("SELECT $1::text, length($1::text)", &[Some(&value)])
        .await
        .ok();
    assert_eq!(reply.rows[0][1].as_deref(), Some("16777216"));
    assert!(reply.rows[0][0].as_deref() == Some(&value));
    let reply = client.query(&format!("SELECT '{value}'")).await.ok();
    assert!(reply.value() == value);
    assert_eq!(client.value("SELECT 'after'").await, "after");
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_but_itself() {
    let role = shared::role("slow_reader").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut slow = role.client(&pgweir).await;
    slow.send(&query(
        "SELECT repeat('x', 1000) FROM generate_series(1, 50000)",
    ))
    .await;
    slow.read_message().await;
    let mut quick = role.client(&pgweir).await;
    for round in 0..100 {
        assert_eq!(
            quick.value(&format!("SELECT {round}")).await,
            round.to_string()
        );
    }
    let reply = slow.reply().await.ok();
    assert_eq!(reply.rows.len(), 50_000);
}

/// The answers to one dialogue, cut into packets of one byte and of a few, must be those to the same in one write.
#[tokio::test]
async fn messages_split_at_every_byte_mean_the_same() {
    let mut same = Same::new(|options| options).await;
    let dialogue = [
        parse("split", "SELECT $1::text || $2::text", &[]),
        describe(b'S', "split"),
        bind("", "split", &[Some("one"), Some("two")]),
        describe(b'P', ""),
        execute("", 0),
        sync(),
        query("SELECT 1; SELECT 'two'"),
        bind("", "none", &[]),
        execute("", 0),
        sync(),
        query("SET application_name = 'split'; SHOW application_name"),
        parse("", "SELECT 1", &[]),
        bind("", "", &[]),
        execute("", 1),
        flush(),
        sync(),
    ]
    .concat();
    let expected = same.check(&dialogue).await;
    same.check(&[messages::close(b'S', "split"), sync()].concat())
        .await;
    let through = {
        let [_, through] = same.both();
        through
    };
    // Each cut once.
    for cut in 1..dialogue.len() {
        through.send(&dialogue[..cut]).await;
        tokio::task::yield_now().await;
        through.send(&dialogue[cut..]).await;
        let got = crate::same::read(through, crate::same::readies(&dialogue)).await;
        assert_eq!(crate::same::placeless(&got), expected, "cut at {cut}");
        through
            .send(&[messages::close(b'S', "split"), sync()].concat())
            .await;
        through.reply().await.ok();
    }
    // Every cut at once.
    for byte in &dialogue {
        through.send(&[*byte]).await;
    }
    let got = crate::same::read(through, crate::same::readies(&dialogue)).await;
    assert_eq!(crate::same::placeless(&got), expected);
}

/// What a server answers, in packets of one byte: values that look like messages, a notice, a reported value.
#[tokio::test]
async fn answers_split_at_every_byte_mean_the_same() {
    let value = "Z\0\0\0\x05I C\0\0\0\x0d";
    let answer = [
        messages::frame(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhear\0\0"),
        messages::parameter_status("application_name", "split"),
        messages::row_description(&["value"]),
        messages::data_row(&[Some(value)]),
        messages::data_row(&[None]),
        messages::command_complete("SELECT 2"),
        messages::ready_for_query(b'I'),
    ]
    .concat();
    let every_byte: Vec<usize> = (1..answer.len()).collect();
    let backend = ScriptedBackend::start(vec![
        Step::ExpectSql("first"),
        Step::SendSplit(answer, every_byte),
        // pgweir asks for what was reported, and has it in two pieces as well.
        Step::Expect(b'Q'),
        Step::SendSplit(setting_answer(), vec![40, 60]),
        Step::AnswerAll("second"),
    ])
    .await;
    let pgweir = Options::in_front_of_script(&backend).start();
    let mut client = Client::connect(pgweir.address, "u", "d").await;
    let reply = client.query("SELECT 'first'").await.ok();
    assert_eq!(reply.rows, [[Some(value.to_owned())], [None]]);
    assert_eq!(client.notices[0].message, "hear");
    assert_eq!(client.parameters["application_name"], "split");
    assert_eq!(client.value("SELECT 'second'").await, "second");
}

fn setting_answer() -> Vec<u8> {
    [
        messages::row_description(&["name", "value"]),
        messages::data_row(&[Some("application_name"), Some("split")]),
        messages::command_complete("SELECT 1"),
        messages::ready_for_query(b'I'),
    ]
    .concat()
}
