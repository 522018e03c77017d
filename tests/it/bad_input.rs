//! Whatever a client sends: an error that names it, or the end of its connection, and nobody else notices.

use std::net::SocketAddr;
use std::sync::OnceLock;

use pgweir::demo::cluster::Guardian;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::shared;
use crate::support::client::Client;
use crate::support::messages::{self, Message, ServerError, frame};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::tls::write_private;
use crate::support::wait::{eventually, within_limit};

fn start() -> Pgweir {
    Options::new(shared::server())
        .flag("--pool-size", "2")
        .start()
}

/// One pgweir that all of them abuse at once.
fn abused() -> &'static Pgweir {
    static PGWEIR: OnceLock<(Pgweir, Guardian)> = OnceLock::new();
    let (pgweir, _) = PGWEIR.get_or_init(|| {
        let pgweir = start();
        // What is static is not dropped.
        let guardian = Guardian::of_folder(pgweir.folder(), false).unwrap();
        (pgweir, guardian)
    });
    pgweir
}

/// What comes back before the connection is closed.
async fn answer_to(pgweir: &Pgweir, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(pgweir.address).await.unwrap();
    // It may be closed while we write, which is one of the right answers.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = within_limit("the end of the connection", stream.read_to_end(&mut answer)).await;
    answer
}

fn error_in(bytes: &[u8]) -> ServerError {
    assert_eq!(bytes.first(), Some(&b'E'), "{bytes:?}");
    let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
    assert_eq!(bytes.len(), length + 1, "one error and nothing else");
    ServerError::parse(&Message {
        tag: b'E',
        body: bytes[5..].to_vec(),
    })
}

async fn others_are_served(pgweir: &Pgweir) {
    // Twice as many as there are server connections: none of those is lost.
    for _ in 0..4 {
        let mut client = pgweir.client().await;
        assert_eq!(client.value("SELECT 'served'").await, "served");
        client.terminate().await;
    }
}

#[tokio::test]
async fn a_first_packet_that_is_none_is_refused() {
    let pgweir = abused();
    let startup = |body: &[u8]| messages::untagged(&[&[0, 3, 0, 0], body].concat());
    let refused: [(Vec<u8>, &str); 11] = [
        (b"GET / HTTP/1.1\r\nHost: db\r\n\r\n".to_vec(), "08P01"),
        (vec![0xff; 64], "08P01"),
        (vec![0; 64], "08P01"),
        (vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0], "08P01"),
        (vec![0, 0, 0, 7, 0, 3, 0], "08P01"),
        (vec![0, 0, 0x27, 0x11, 0, 3, 0, 0], "08P01"),
        (startup(b"user\0postgres"), "08P01"),
        (startup(b"user\0postgres\0"), "08P01"),
        (startup(b"user\0postgres\0\0trailing"), "08P01"),
        (startup(b"\0"), "28000"),
        (startup(b"database\0postgres\0\0"), "28000"),
    ];
    for (bytes, code) in refused {
        let error = error_in(&answer_to(pgweir, &bytes).await);
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", code),
            "{bytes:?}"
        );
    }
    // Not UTF-8, cancel requests of no use, nothing at all: closed.
    let latin = answer_to(pgweir, &startup(b"user\0m\xfcller\0\0")).await;
    assert_eq!(error_in(&latin).code, "28000");
    for bytes in [
        messages::cancel_request(&[0; 8]),
        messages::cancel_request(&[0; 36]),
        Vec::new(),
        vec![0],
        vec![0, 0, 0, 80, 0, 3, 0, 0, b'u'],
    ] {
        assert!(answer_to(pgweir, &bytes).await.is_empty(), "{bytes:?}");
    }
    others_are_served(pgweir).await;
}

#[tokio::test]
async fn requests_for_encryption_without_end_are_cut_off() {
    let pgweir = abused();
    let requests = [messages::ssl_request(), messages::gssenc_request()].concat();
    let answer = answer_to(pgweir, &requests.repeat(50)).await;
    let declined = answer.iter().take_while(|byte| **byte == b'N').count();
    assert!((2..5).contains(&declined), "{answer:?}");
    assert_eq!(error_in(&answer[declined..]).code, "08P01");
}

/// The error that ends a logged-in connection on which `bytes` are sent.
async fn end_after(pgweir: &Pgweir, bytes: &[u8]) -> ServerError {
    let mut client = pgweir.client().await;
    let _ = client.try_send(bytes).await;
    let errors = client.expect_end().await;
    assert_eq!(errors.len(), 1, "{bytes:?}: {errors:?}");
    errors.into_iter().next().unwrap()
}

#[tokio::test]
async fn a_malformed_message_ends_its_connection_with_08p01() {
    let pgweir = abused();
    let header = |tag: u8, length: u32| [&[tag][..], &length.to_be_bytes()].concat();
    let malformed: Vec<Vec<u8>> = vec![
        header(b'Q', 0),
        header(b'Q', 3),
        header(b'Q', 0x7fff_ffff),
        header(b'Q', 0xffff_ffff),
        header(b'd', 0x8000_0000),
        header(b'S', 0),
        frame(b'Q', b"SELECT 1"),
        frame(b'Q', b"SELECT 1\0SELECT 2\0"),
        frame(b'Q', b""),
        frame(b'P', b""),
        frame(b'P', b"name"),
        frame(b'P', b"\0SELECT 1\0"),
        frame(b'P', b"\0SELECT 1\0\0\x09"),
        frame(b'P', b"\0SELECT 1\0\xff\xff\0\0\0\0"),
        frame(b'B', b"portal"),
        frame(b'B', b""),
        frame(b'D', b""),
        frame(b'D', b"X\0"),
        frame(b'D', b"Sname"),
        frame(b'C', b"P"),
        frame(b'C', b"?x\0"),
        frame(b'p', b"password\0"),
        frame(b'R', b"\0\0\0\0"),
        frame(b'Z', b"I"),
        frame(0, b""),
        frame(0xff, b"xxxx"),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        messages::startup(messages::PROTOCOL_3_0, &[("user", "postgres")]),
    ];
    for bytes in &malformed {
        // Batches are looked at whole, so the Sync lets the message reach its turn.
        let batch = [bytes.clone(), messages::sync()].concat();
        let error = end_after(pgweir, &batch).await;
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "08P01"),
            "{bytes:?}: {error:?}"
        );
    }
    others_are_served(pgweir).await;
}

#[tokio::test]
async fn a_bind_that_lies_about_its_parameters_is_the_servers_to_refuse() {
    let pgweir = abused();
    for body in [
        &b"\0\0"[..],
        b"\0\0\0\0",
        b"\0\0\0\0\0\x05",
        b"\0\0\xff\xff",
        b"\0\0\0\0\0\x01\0\0\x10\0x",
    ] {
        let mut client = pgweir.client().await;
        let batch = [
            messages::parse("", "SELECT 1", &[]),
            frame(b'B', body),
            messages::execute("", 0),
            messages::sync(),
        ];
        client.send(&batch.concat()).await;
        let reply = client.reply().await;
        assert_eq!(reply.sqlstate(), "08P01", "{body:?}");
        assert_eq!(client.value("SELECT 1").await, "1");
    }
    others_are_served(pgweir).await;
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_of_a_message_leaves_nothing_behind() {
    let pgweir = abused();
    let batch = [
        messages::query("SELECT 1"),
        messages::parse("s", "SELECT $1::int", &[]),
        messages::bind("", "s", &[Some("1")]),
        messages::describe(b'P', ""),
        messages::execute("", 0),
        messages::sync(),
    ]
    .concat();
    for cut in 0..batch.len() {
        let mut client = pgweir.client().await;
        client.send(&batch[..cut]).await;
        drop(client);
    }
    others_are_served(pgweir).await;
}

#[tokio::test]
async fn large_messages_cut_short_leave_nothing_behind() {
    let pgweir = start();
    for tag in [b'Q', b'P', b'B', b'd', b'F', b'E'] {
        for sent in [10, 70_000, 5_000_000] {
            let mut client = pgweir.client().await;
            let mut bytes = [&[tag][..], &100_000_000_u32.to_be_bytes()].concat();
            bytes.extend_from_slice(b"\0\0");
            bytes.resize(sent, b'x');
            // pgweir or the server may have enough of it before all is sent.
            let _ = client.try_send(&bytes).await;
            drop(client);
        }
    }
    others_are_served(&pgweir).await;
}

/// What a well-behaved client would not send, or not in this order.
fn odd_sequences() -> Vec<Vec<Vec<u8>>> {
    vec![
        // Copy messages outside COPY, Flush and Sync without anything to flush: ignored or answered.
        vec![
            messages::copy_data(b"x"),
            messages::copy_done(),
            messages::sync(),
        ],
        vec![
            messages::copy_fail("why"),
            messages::flush(),
            messages::sync(),
        ],
        vec![messages::sync(), messages::sync(), messages::sync()],
        vec![messages::execute("nowhere", 0), messages::sync()],
        vec![messages::bind("", "nothing", &[]), messages::sync()],
        vec![messages::describe(b'S', "nothing"), messages::sync()],
        vec![messages::describe(b'P', "nothing"), messages::sync()],
        vec![messages::close(b'S', "nothing"), messages::sync()],
        vec![messages::close(b'P', "nothing"), messages::sync()],
        vec![
            messages::execute("", 0),
            messages::parse("", "SELECT 1", &[]),
            messages::query("SELECT 2"),
            messages::sync(),
        ],
        vec![
            messages::parse("", "SELEC", &[]),
            messages::bind("", "", &[]),
            messages::sync(),
            messages::query("SELECT 3"),
        ],
        vec![
            messages::parse("a", "SELECT 1", &[]),
            messages::parse("a", "SELECT 2", &[]),
            messages::sync(),
        ],
        vec![
            messages::parse("", "SELECT 4", &[]),
            messages::bind("", "", &[]),
            messages::execute("", 0),
            messages::query("SELECT 5"),
            messages::sync(),
        ],
    ]
}

/// Sends the messages and a query of its own, and returns the order of all answers and the errors among them.
async fn answers_to(address: SocketAddr, messages: &[u8]) -> (String, Vec<(String, String)>) {
    let mut client = Client::connect(address, "postgres", "postgres").await;
    // A last Sync, and a query whose answer ends the exchange.
    let end = [messages::sync(), messages::query("SELECT 'the end'")].concat();
    client.send(&[messages, &end].concat()).await;
    let (mut order, mut errors) = (String::new(), Vec::new());
    loop {
        let reply = client.reply().await;
        order.push_str(&reply.order);
        let is_end = reply.column() == ["the end"];
        errors.extend(
            reply
                .errors
                .into_iter()
                .map(|error| (error.code, error.message)),
        );
        if is_end {
            return (order, errors);
        }
    }
}

#[tokio::test]
async fn messages_out_of_order_get_the_servers_answers() {
    let pgweir = abused();
    for sequence in odd_sequences() {
        let sequence = sequence.concat();
        let direct = answers_to(shared::server().address(), &sequence).await;
        let through = answers_to(pgweir.address, &sequence).await;
        assert_eq!(through, direct, "{sequence:?}");
    }
    others_are_served(pgweir).await;
}

#[tokio::test]
async fn an_error_before_the_rest_of_its_exchange_is_sent_skips_that_rest() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    client
        .send(&[messages::parse("", "SELEC", &[]), messages::flush()].concat())
        .await;
    client.expect(b'E').await;
    // Others are served meanwhile, on other connections than the one that skips.
    others_are_served(&pgweir).await;
    let rest = [
        messages::bind("", "", &[]),
        messages::execute("", 0),
        messages::query("SELECT 'skipped'"),
        messages::close(b'S', "s"),
        messages::parse("s", "SELECT 'skipped too'", &[]),
    ];
    client.send(&rest.concat()).await;
    client.send(&messages::sync()).await;
    assert_eq!(client.reply().await.order, "Z");
    let bound = [messages::bind("", "s", &[]), messages::sync()].concat();
    client.send(&bound).await;
    assert_eq!(client.reply().await.sqlstate(), "26000");
    assert_eq!(client.value("SELECT 'on'").await, "on");
}

#[tokio::test]
async fn an_exchange_without_its_sync_keeps_its_backend() {
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut first = pgweir.client().await;
    first
        .query("CREATE TABLE IF NOT EXISTS flushed (a int)")
        .await
        .ok();
    let batch = [
        messages::parse("", "INSERT INTO flushed VALUES (1)", &[]),
        messages::bind("", "", &[]),
        messages::execute("", 0),
        messages::flush(),
    ];
    first.send(&batch.concat()).await;
    for tag in [b'1', b'2', b'C'] {
        first.expect(tag).await;
    }
    // Not committed: nobody else may run in that transaction, so the next client waits for it.
    let mut second = pgweir.client().await;
    second
        .send(&messages::query("SELECT count(*) FROM flushed"))
        .await;
    // A simple query ends the exchange and commits what it did.
    first.send(&messages::query("SELECT 1")).await;
    first.reply().await.ok();
    assert_eq!(second.reply().await.ok().value(), "1");
    // One that leaves in the midst of it has done nothing.
    first.send(&batch.concat()).await;
    first.expect(b'1').await;
    drop(first);
    eventually("the pool to be clean", async || {
        second.value("SELECT count(*) FROM flushed").await == "1"
    })
    .await;
    second.query("DROP TABLE flushed").await.ok();
}

#[tokio::test]
async fn whatever_bytes_follow_a_login_nobody_else_is_hurt() {
    let pgweir = start();
    // A generator of its own, so that a failure can be run again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let tags = b"QPBDECSHFdcfXp";
    for _ in 0..150 {
        let mut bytes = Vec::new();
        for _ in 0..random() % 8 {
            let body: Vec<u8> = (0..random() % 20)
                .map(|_| random().to_be_bytes()[7])
                .collect();
            let tag = tags[usize::try_from(random() % 14).unwrap()];
            bytes.extend(frame(tag, &body));
        }
        bytes.extend((0..random() % 10).map(|_| random().to_be_bytes()[7]));
        let mut client = pgweir.client().await;
        let _ = client.try_send(&bytes).await;
        drop(client);
    }
    others_are_served(&pgweir).await;
}

/// Resident memory in kB.
fn resident(pgweir: &Pgweir) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pgweir.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn strangers_cost_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let list = write_private(folder.path(), "userlist", "");
    let pgweir = Options::new(shared::server())
        .flag("--auth", "scram")
        .set("auth.userlist", list.to_str().unwrap())
        .set("auth.auth_query", "")
        .start();
    let before = resident(&pgweir);
    let mut strangers = Vec::new();
    for number in 0..1000_u32 {
        let mut client = Client::open(pgweir.address).await;
        if number % 2 == 0 {
            // Announces the largest packet there may be and sends all but its end.
            client.send(&[0, 0, 0x27, 0x10]).await;
            client.send(&[b'x'; 9_000]).await;
        } else {
            // Users and databases that nobody knows.
            let name = format!("stranger_{number}");
            let startup = messages::startup(
                messages::PROTOCOL_3_0,
                &[("user", &name), ("database", &name)],
            );
            client.send(&startup).await;
            client.expect(b'R').await;
            client.send(&[b'p', 0, 0, 0xff, 0xff]).await;
        }
        strangers.push(client);
    }
    let each = (resident(&pgweir).saturating_sub(before)) * 1024 / 1000;
    assert!(each < 30_000, "{each} bytes for each stranger");
    drop(strangers);
    // Those that come and go leave nothing.
    let before = resident(&pgweir);
    for number in 0..1000 {
        let name = format!("passer_by_{number}");
        let mut client = Client::open(pgweir.address).await;
        let startup = messages::startup(
            messages::PROTOCOL_3_0,
            &[("user", &name), ("database", &name)],
        );
        client.send(&startup).await;
        client.expect(b'R').await;
    }
    let more = resident(&pgweir).saturating_sub(before);
    assert!(more < 8_000, "{more} kB more after a thousand passers-by");
}

#[tokio::test]
async fn a_message_larger_than_allowed_is_refused_before_it_is_read() {
    let pgweir = Options::new(shared::server())
        .set("general.max_packet_size", "1MiB")
        .start();
    let mut client = pgweir.client().await;
    let text = format!("SELECT '{}'", "x".repeat(1_000_000));
    assert_eq!(client.query(&text).await.ok().value().len(), 1_000_000);
    let header = [&[b'Q'][..], &2_000_000_u32.to_be_bytes()].concat();
    client.send(&header).await;
    let errors = client.expect_end().await;
    assert_eq!(errors[0].code, "08P01");
    assert!(errors[0].message.contains("1048576"), "{errors:?}");
}
