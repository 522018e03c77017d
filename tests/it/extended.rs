//! The extended protocol over backends that change from exchange to exchange.

use crate::same::Same;
use crate::shared;
use crate::support::messages::{bind, close, describe, execute, flush, frame, parse, query, sync};
use crate::support::pgweir::Options;

async fn same() -> Same {
    Same::new(|options| options).await
}

/// Bind, Execute and Sync of a named statement.
fn run(name: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    [bind("", name, parameters), execute("", 0), sync()].concat()
}

#[tokio::test]
async fn statements_are_there_on_whichever_backend_comes() {
    let mut role = shared::role("ext_across").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut clients = Vec::new();
    for number in 0..3 {
        let mut client = role.client(&pgweir).await;
        // One name, three meanings.
        let text = format!("SELECT {number}, $1::int + {number}");
        client
            .send(&[parse("same", &text, &[]), sync()].concat())
            .await;
        client.reply().await.ok();
        clients.push(client);
    }
    for round in 0..6 {
        // One of the three keeps a backend and the other two share what is left.
        let holder = round % 3;
        clients[holder].query("BEGIN").await.ok();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&run("same", &[Some("10")])).await;
            let reply = client.reply().await.ok();
            let expected = [number.to_string(), (10 + number).to_string()].map(Some);
            assert_eq!(reply.rows, [expected]);
        }
        clients[holder].query("COMMIT").await.ok();
    }
    assert_eq!(role.pids().await.len(), 2);
}

#[tokio::test]
async fn the_unnamed_statement_lives_across_syncs_and_backends() {
    let mut same = same().await;
    let tags = same
        .tags(&[parse("", "SELECT $1::text", &[]), sync()].concat())
        .await;
    assert_eq!(tags, "1Z");
    for value in ["a", "b", "c"] {
        assert_eq!(same.tags(&run("", &[Some(value)])).await, "2DCZ");
        assert_eq!(
            same.tags(&[describe(b'S', ""), sync()].concat()).await,
            "tTZ"
        );
    }
    // It is gone after a simple query, and after a Parse that fails, but not after one that is skipped.
    same.check(&query("SELECT 1")).await;
    assert_eq!(same.tags(&run("", &[Some("d")])).await, "EZ");
    same.check(&[parse("", "SELECT 'again'", &[]), sync()].concat())
        .await;
    let skipped = [
        parse("x", "SELEC", &[]),
        parse("", "SELECT 'skipped'", &[]),
        sync(),
    ];
    assert_eq!(same.tags(&skipped.concat()).await, "EZ");
    assert_eq!(same.tags(&run("", &[])).await, "2DCZ");
    assert_eq!(
        same.tags(&[parse("", "SELEC", &[]), sync()].concat()).await,
        "EZ"
    );
    assert_eq!(same.tags(&run("", &[])).await, "EZ");
}

#[tokio::test]
async fn several_exchanges_in_one_write_are_answered_one_by_one() {
    let mut same = same().await;
    let good = |value| {
        [
            parse("", "SELECT $1::text", &[]),
            bind("", "", &[Some(value)]),
            describe(b'P', ""),
            execute("", 0),
        ]
        .concat()
    };
    let wrong = [
        parse("", "SELECT 1/0", &[]),
        bind("", "", &[]),
        execute("", 0),
    ]
    .concat();
    let batch = [
        good("1"),
        sync(),
        // The error takes the rest of its exchange with it, and what the exchange did before.
        good("2"),
        wrong.clone(),
        good("3"),
        sync(),
        good("4"),
        sync(),
        query("SELECT 5; SELECT 1/0; SELECT 6"),
        sync(),
        wrong,
        sync(),
        query(""),
        good("7"),
        sync(),
    ]
    .concat();
    assert_eq!(
        same.tags(&batch).await,
        "12TDCZ12TDC1EZ12TDCZTDCEZZ1EZIZ12TDCZ"
    );
    assert_eq!(same.tags(&run("", &[Some("8")])).await, "2DCZ");
}

#[tokio::test]
async fn what_is_sent_after_an_error_and_before_the_sync_is_skipped() {
    let mut same = same().await;
    for late in [
        run("", &[]),
        [parse("late", "SELECT 1", &[]), sync()].concat(),
        [close(b'S', "early"), sync()].concat(),
        [flush(), sync()].concat(),
        sync(),
    ] {
        let early = [
            parse("early", "SELECT 'early'", &[]),
            sync(),
            bind("", "missing", &[]),
            flush(),
        ];
        let clean = [close(b'S', "early"), close(b'S', "late"), sync()];
        same.check(&clean.concat()).await;
        let mut answers = Vec::new();
        for client in same.both() {
            client.send(&early.concat()).await;
            for tag in *b"1ZE" {
                client.expect(tag).await;
            }
            client.send(&late).await;
            answers.push(client.reply().await);
        }
        assert_eq!(answers[0], answers[1]);
        assert_eq!(same.tags(&run("early", &[])).await, "2DCZ");
        assert_eq!(same.tags(&run("late", &[])).await, "EZ");
    }
}

#[tokio::test]
async fn the_backend_is_free_after_the_query_behind_a_late_sync() {
    let mut role = shared::role("ext_late_sync").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut client = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    client
        .send(&[bind("", "missing", &[]), flush()].concat())
        .await;
    client.expect(b'E').await;
    client.send(&[sync(), query("SELECT 1")].concat()).await;
    assert_eq!(client.reply().await.order, "Z");
    assert_eq!(client.reply().await.ok().value(), "1");
    assert_eq!(other.value("SELECT 'other'").await, "other");
    assert_eq!(role.pids().await.len(), 1);
}

#[tokio::test]
async fn a_query_inside_an_exchange_is_answered_as_the_server_does() {
    let mut same = same().await;
    // Without a Sync in between: the query ends the exchange.
    let batch = [parse("q", "SELECT 1", &[]), query("SELECT 2"), sync()];
    assert_eq!(same.tags(&batch.concat()).await, "1TDCZZ");
    // After an error it is skipped, though it asks for an answer of its own.
    for client in same.both() {
        client
            .send(&[bind("", "none", &[]), query("SELECT 3"), sync()].concat())
            .await;
        assert_eq!(client.reply().await.order, "EZ");
        client.send(&run("q", &[])).await;
        assert_eq!(client.reply().await.order, "2DCZ");
    }
}

#[tokio::test]
async fn flush_brings_answers_before_the_sync_and_keeps_the_backend() {
    let mut role = shared::role("ext_flush").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut client = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    client
        .send(&[parse("f", "SELECT pg_backend_pid()", &[]), flush()].concat())
        .await;
    client.expect(b'1').await;
    other.send(&query("SELECT 'other'")).await;
    client
        .send(&[bind("", "f", &[]), flush(), describe(b'P', ""), flush()].concat())
        .await;
    client.expect(b'2').await;
    client.expect(b'T').await;
    client.send(&[execute("", 0), flush()].concat()).await;
    client.expect(b'D').await;
    client.expect(b'C').await;
    // A statement whose name is closed here is answered by pgweir itself, in its place.
    client.send(&[close(b'S', "f"), flush()].concat()).await;
    client.expect(b'3').await;
    client.send(&sync()).await;
    client.expect(b'Z').await;
    assert_eq!(other.reply().await.ok().value(), "other");
    assert_eq!(role.pids().await.len(), 1);
}

#[tokio::test]
async fn portals_give_their_rows_in_pieces_inside_a_transaction() {
    let mut same = same().await;
    same.check(&query("BEGIN")).await;
    let open = [
        parse("series", "SELECT generate_series(1, 5)", &[]),
        bind("one", "series", &[]),
        bind("two", "series", &[]),
        execute("one", 2),
        sync(),
    ];
    assert_eq!(same.tags(&open.concat()).await, "122DDsZ");
    let more = [execute("two", 1), execute("one", 2), sync()];
    assert_eq!(same.tags(&more.concat()).await, "DsDDsZ");
    let rest = [
        execute("one", 0),
        execute("one", 0),
        describe(b'P', "two"),
        sync(),
    ];
    assert_eq!(same.tags(&rest.concat()).await, "DCCTZ");
    let closed = [close(b'P', "two"), execute("two", 0), sync()];
    assert_eq!(same.tags(&closed.concat()).await, "3EZ");
    same.check(&query("ROLLBACK")).await;
    // Outside a transaction a portal ends with its Sync.
    let suspended = [bind("three", "series", &[]), execute("three", 2), sync()];
    assert_eq!(same.tags(&suspended.concat()).await, "2DDsZ");
    assert_eq!(
        same.tags(&[execute("three", 0), sync()].concat()).await,
        "EZ"
    );
}

#[tokio::test]
async fn closed_statements_are_gone_and_their_names_free() {
    let mut same = same().await;
    same.check(&[parse("s", "SELECT 1", &[]), sync()].concat())
        .await;
    let batch = [
        close(b'S', "s"),
        close(b'S', "s"),
        close(b'S', "never"),
        close(b'P', "never"),
        close(b'S', ""),
        sync(),
    ];
    assert_eq!(same.tags(&batch.concat()).await, "33333Z");
    assert_eq!(same.tags(&run("s", &[])).await, "EZ");
    assert_eq!(
        same.tags(&[describe(b'S', "s"), sync()].concat()).await,
        "EZ"
    );
    let again = [
        parse("s", "SELECT 2", &[]),
        bind("", "s", &[]),
        close(b'S', "s"),
        execute("", 0),
        parse("s", "SELECT 3", &[]),
        sync(),
    ];
    assert_eq!(same.tags(&again.concat()).await, "123DC1Z");
    assert_eq!(same.tags(&run("s", &[])).await, "2DCZ");
    // A Close that is skipped closes nothing.
    let skipped = [bind("", "never", &[]), close(b'S', "s"), sync()];
    assert_eq!(same.tags(&skipped.concat()).await, "EZ");
    assert_eq!(same.tags(&run("s", &[])).await, "2DCZ");
}

#[tokio::test]
async fn a_parse_that_fails_leaves_no_name() {
    let mut same = same().await;
    for wrong in [
        "SELEC 1",
        "SELECT nothing",
        "SELECT 1; SELECT 2",
        "SELECT 'open",
    ] {
        assert_eq!(
            same.tags(&[parse("w", wrong, &[]), sync()].concat()).await,
            "EZ"
        );
        assert_eq!(same.tags(&run("w", &[])).await, "EZ");
    }
    let batch = [
        parse("w", "SELECT nothing", &[]),
        sync(),
        parse("w", "SELECT 1", &[]),
        sync(),
    ];
    assert_eq!(same.tags(&batch.concat()).await, "EZ1Z");
    assert_eq!(same.tags(&run("w", &[])).await, "2DCZ");
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused_and_keeps_its_meaning() {
    let mut same = same().await;
    same.check(&[parse("d", "SELECT 'first'", &[]), sync()].concat())
        .await;
    for text in ["SELECT 'first'", "SELECT 'second'", "SELEC", "SELECT none"] {
        let again = [parse("d", text, &[]), sync()];
        assert_eq!(same.tags(&again.concat()).await, "EZ", "{text}");
        assert_eq!(same.tags(&run("d", &[])).await, "2DCZ");
    }
    let mut first = same.check(&run("d", &[])).await;
    assert_eq!(first.remove(1).body, b"\0\x01\0\0\0\x05first");
    // In one exchange with its cause, and inside a transaction, which fails.
    let batch = [
        parse("e", "SELECT 1", &[]),
        parse("e", "SELECT 1", &[]),
        sync(),
    ];
    assert_eq!(same.tags(&batch.concat()).await, "1EZ");
    assert_eq!(same.tags(&run("e", &[])).await, "2DCZ");
    same.check(&query("BEGIN")).await;
    same.check(&[parse("d", "SELECT 2", &[]), sync()].concat())
        .await;
    same.check(&query("SELECT 1")).await;
    same.check(&query("ROLLBACK")).await;
    assert_eq!(same.tags(&run("d", &[])).await, "2DCZ");
}

#[tokio::test]
async fn many_statements_fit_in_few_places() {
    let mut same = Same::new(|options| options.set("pool.max_prepared_statements", "2")).await;
    for number in 0..40 {
        let text = format!("SELECT {number}, $1::int");
        same.check(&[parse(&format!("s{number}"), &text, &[]), sync()].concat())
            .await;
    }
    for number in (0..40).rev().chain([3, 17, 3, 4]) {
        same.check(&run(&format!("s{number}"), &[Some("1")])).await;
    }
    // Ten of them in one write, in an order that needs each place many times.
    let batch: Vec<u8> = (0..10)
        .flat_map(|number| {
            let name = format!("s{}", number * 7 % 10);
            [describe(b'S', &name), run(&name, &[Some("2")])].concat()
        })
        .collect();
    same.check(&batch).await;
    // An error in the middle, whose Closes and Parses are skipped with the rest.
    let batch = [
        run("s1", &[Some("1")]),
        bind("", "s2", &[Some("x")]),
        bind("", "s3", &[Some("1")]),
        bind("", "s4", &[Some("1")]),
        sync(),
        run("s2", &[Some("1")]),
        run("s3", &[Some("1")]),
        run("s4", &[Some("1")]),
        run("s1", &[Some("1")]),
    ];
    same.check(&batch.concat()).await;
    for client in same.both() {
        let kept = client
            .value("SELECT count(*) FROM pg_prepared_statements")
            .await;
        assert!(
            kept == "40" || kept.parse::<usize>().unwrap() <= 2,
            "{kept}"
        );
    }
}

#[tokio::test]
async fn statements_and_portals_are_described() {
    let mut same = same().await;
    let batch = [
        parse("q", "SELECT $1::int AS a, $2::text AS b", &[23]),
        describe(b'S', "q"),
        bind("p", "q", &[Some("1"), None]),
        describe(b'P', "p"),
        parse("none", "SET lock_timeout = 0", &[]),
        describe(b'S', "none"),
        sync(),
    ];
    assert_eq!(same.tags(&batch.concat()).await, "1tT2T1tnZ");
    assert_eq!(
        same.tags(&[describe(b'S', "q"), sync()].concat()).await,
        "tTZ"
    );
    assert_eq!(
        same.tags(&[describe(b'P', "p"), sync()].concat()).await,
        "EZ"
    );
}

#[tokio::test]
async fn deallocate_and_discard_forget_statements_sent_before_and_keep_those_behind() {
    let mut same = same().await;
    for all in ["DEALLOCATE ALL", "DISCARD ALL"] {
        let batch = [
            parse("old", "SELECT 'old'", &[]),
            sync(),
            query(all),
            parse("new", "SELECT 'new'", &[]),
            sync(),
        ];
        assert_eq!(same.tags(&batch.concat()).await, "1ZCZ1Z");
        assert_eq!(same.tags(&run("old", &[])).await, "EZ");
        assert_eq!(same.tags(&run("new", &[])).await, "2DCZ");
        assert_eq!(same.tags(&run("new", &[])).await, "2DCZ");
        same.check(&query(all)).await;
    }
}

#[tokio::test]
async fn a_statement_is_reparsed_where_its_table_changed() {
    let mut same = same().await;
    let mut owner = shared::direct().await;
    owner.query("CREATE TABLE ext_moving (a int)").await.ok();
    same.check(&[parse("m", "SELECT a FROM ext_moving", &[]), sync()].concat())
        .await;
    same.check(&run("m", &[])).await;
    owner.query("DROP TABLE ext_moving").await.ok();
    for _ in 0..3 {
        let reply = same.tags(&run("m", &[])).await;
        assert_eq!(reply, "EZ");
    }
    owner.query("CREATE TABLE ext_moving (a int)").await.ok();
    for _ in 0..3 {
        assert_eq!(same.tags(&run("m", &[])).await, "2CZ");
    }
}

/// `oid` of the function, and its arguments in text.
fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let count = u16::try_from(arguments.len()).unwrap().to_be_bytes();
    let mut body = oid.to_be_bytes().to_vec();
    body.extend([0, 0]);
    body.extend(count);
    for argument in arguments {
        body.extend(u32::try_from(argument.len()).unwrap().to_be_bytes());
        body.extend(argument.as_bytes());
    }
    body.extend([0, 0]);
    frame(b'F', &body)
}

#[tokio::test]
async fn functions_are_called_by_number() {
    const INT4PL: u32 = 177;
    const INT4DIV: u32 = 154;
    let mut same = same().await;
    assert_eq!(same.tags(&function_call(INT4PL, &["1", "2"])).await, "VZ");
    assert_eq!(same.tags(&function_call(INT4DIV, &["1", "0"])).await, "EZ");
    let batch = [
        function_call(INT4PL, &["3", "4"]),
        query("SELECT 1"),
        function_call(1, &[]),
        run("none", &[]),
    ];
    assert_eq!(same.tags(&batch.concat()).await, "VZTDCZEZEZ");
}

#[tokio::test]
async fn a_lock_taken_by_a_function_call_stays_with_its_session() {
    const PG_ADVISORY_LOCK: u32 = 2880;
    let mut role = shared::role("ext_call_lock").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut owner = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    owner
        .send(&function_call(PG_ADVISORY_LOCK, &["4242"]))
        .await;
    owner.reply().await.ok();
    let mine =
        "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'";
    for _ in 0..3 {
        assert_eq!(other.value(mine).await, "0");
        assert_eq!(owner.value(mine).await, "1");
    }
    owner.terminate().await;
    crate::support::wait::eventually("the lock to be gone", async || {
        role.observe("SELECT count(*) FROM pg_locks WHERE objid = 4242")
            .await
            == "0"
    })
    .await;
}

#[tokio::test]
async fn large_parameters_and_statements_pass_in_pieces() {
    let mut same = same().await;
    let large = "x".repeat(300_000);
    let batch = [
        parse("large", "SELECT length($1::text), $2::text", &[]),
        sync(),
        run("large", &[Some(&large), Some("a")]),
        run("large", &[Some("b"), Some(&large)]),
        query(&format!("SELECT length('{large}')")),
        parse("", &format!("SELECT '{large}'"), &[]),
        run("", &[]),
    ];
    assert_eq!(same.tags(&batch.concat()).await, "1Z2DCZ2DCZTDCZ12DCZ");
    assert_eq!(same.tags(&query("SELECT 'after'")).await, "TDCZ");
}

/// What code deallocates no message tells of.
#[tokio::test]
async fn statements_that_a_function_deallocates_are_gone_for_its_session_and_nobody_else() {
    let mut role = shared::role("deallocating_code").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    let all = "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$";
    // A text with the view's name in it would be shown the client's own names.
    let some = "DO $$ DECLARE s text; BEGIN EXECUTE 'SELECT quote_ident(name) FROM pg_prepared_' || 'statements \
                WHERE name LIKE ''pgweir%'' ORDER BY prepare_time LIMIT 1' INTO s; EXECUTE 'DEALLOCATE ' || s; END $$";
    for round in 0..3 {
        let name = format!("s{round}");
        for (client, value) in [(&mut one, "1"), (&mut two, "2")] {
            let text = format!("SELECT {value} + {round}");
            client
                .send(&[parse(&name, &text, &[]), sync()].concat())
                .await;
            client.reply().await.ok();
        }
        match round {
            0 => one.query(all).await.ok(),
            // A rollback does not bring them back.
            1 => {
                one.query("BEGIN").await.ok();
                one.query(some).await.ok();
                one.query("ROLLBACK").await.ok()
            }
            _ => {
                for guess in 1..20 {
                    let reply = one.query(&format!("DEALLOCATE pgweir_{guess}")).await;
                    assert_eq!(reply.sqlstate(), "26000");
                }
                continue;
            }
        };
        let run = [bind("", &name, &[]), execute("", 0), sync()].concat();
        two.send(&run).await;
        assert_eq!(two.reply().await.ok().value(), (2 + round).to_string());
        one.send(&run).await;
        let own = one.reply().await;
        if round == 0 {
            assert_eq!(own.sqlstate(), "26000");
            assert!(own.error().message.contains("\"s0\""), "{own:?}");
        } else {
            assert_eq!(own.ok().value(), (1 + round).to_string());
        }
    }
    assert_eq!(role.pids().await.len(), 1);
}
