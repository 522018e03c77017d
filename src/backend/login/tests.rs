use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;
use crate::auth::scram::server::ServerExchange;
use crate::net::frame::message as framed;

const STARTUP: &[(&[u8], &[u8])] = &[(b"user", b"app"), (b"database", b"shop")];

fn request(code: u32, data: &[u8]) -> Vec<u8> {
    framed(b'R', &[&code.to_be_bytes(), data])
}

/// What follows a successful authentication.
fn ready() -> Vec<u8> {
    [
        request(0, b""),
        framed(b'S', &[b"server_version\x0018.0\0"]),
        framed(b'N', &[b"SNOTICE\0MHello\0\0"]),
        framed(b'S', &[b"TimeZone\0Europe/Rome\0"]),
        framed(b'K', &[&7u32.to_be_bytes(), b"\x01\x02\x03\x04"]),
        framed(b'Z', &[b"I"]),
    ]
    .concat()
}

fn password(text: &str) -> Credentials {
    Credentials::Password(Secret::new(text.to_owned()))
}

/// Logs in to a server that says all of `script` at once, whatever it is told.
async fn against(script: &[u8], credentials: &Credentials) -> Result<LoggedIn, LoginError> {
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
    let server = async move {
        // A login that fails early does not read to the end.
        let _ = theirs.write_all(script).await;
        theirs.shutdown().await.unwrap();
        theirs
    };
    let client = async move {
        login_over(
            &mut ours,
            ProtocolVersion::V3_2,
            STARTUP,
            credentials,
            None,
            &AtomicBool::default(),
        )
        .await
    };
    tokio::join!(client, server).0
}

/// Logs in to a server that says each part after having read one message; returns what it was sent.
async fn dialogue(
    parts: &[Vec<u8>],
    credentials: &Credentials,
) -> (Result<LoggedIn, LoginError>, Vec<Vec<u8>>) {
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
    let server = async {
        let mut sent = Vec::new();
        let length = theirs.read_u32().await.unwrap();
        let mut startup = vec![0; length as usize - 4];
        theirs.read_exact(&mut startup).await.unwrap();
        sent.push(startup);
        for part in parts {
            theirs.write_all(part).await.unwrap();
            if let Ok(frame) = frame::read_frame(&mut theirs, 1 << 16).await {
                assert_eq!(frame.tag, b'p');
                sent.push(frame.body);
            }
        }
        sent
    };
    let client = async move {
        login_over(
            &mut ours,
            ProtocolVersion::V3_0,
            STARTUP,
            credentials,
            None,
            &AtomicBool::default(),
        )
        .await
    };
    tokio::join!(client, server)
}

#[tokio::test]
async fn a_trusted_login_collects_what_the_server_says() {
    let (done, sent) = dialogue(&[ready()], &Credentials::None).await;
    let done = done.unwrap();
    assert_eq!(sent[0], b"\0\x03\0\0user\0app\0database\0shop\0\0");
    assert_eq!((done.pid, done.cancel_key), (7, vec![1, 2, 3, 4]));
    assert_eq!(done.method, UpstreamAuth::Trust);
    assert_eq!(done.protocol, ProtocolVersion::V3_0);
    assert!(done.learned.is_none());
    assert_eq!(
        done.parameters[1],
        (b"TimeZone".to_vec(), b"Europe/Rome".to_vec())
    );
    assert_eq!(done.notices[0].body, b"SNOTICE\0MHello\0\0");
}

#[tokio::test]
async fn nothing_after_ready_for_query_is_read() {
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
    theirs.write_all(&ready()).await.unwrap();
    theirs.write_all(b"A notification").await.unwrap();
    let none = Credentials::None;
    login_over(
        &mut ours,
        ProtocolVersion::V3_0,
        STARTUP,
        &none,
        None,
        &AtomicBool::default(),
    )
    .await
    .unwrap();
    let mut rest = [0; 14];
    ours.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"A notification");
}

#[tokio::test]
async fn clear_text_and_md5_are_answered() {
    let asked = [request(3, b""), ready()];
    let (done, sent) = dialogue(&asked, &password("secret")).await;
    assert_eq!(done.unwrap().method, UpstreamAuth::Cleartext);
    assert_eq!(sent[1], b"secret\0");

    let asked = [request(5, b"salt"), ready()];
    let expected = format!(
        "{}\0",
        postgres_protocol::authentication::md5_hash(b"app", b"secret", *b"salt")
    );
    let stored = Credentials::Md5(Md5Hash::new("secret", b"app"));
    for credentials in [password("secret"), stored] {
        let (done, sent) = dialogue(&asked, &credentials).await;
        assert_eq!(done.unwrap().method, UpstreamAuth::Md5);
        assert_eq!(sent[1], expected.as_bytes());
    }
}

#[tokio::test]
async fn credentials_that_cannot_answer_ask_for_the_password() {
    let keys = Arc::new(ScramKeys::derive("secret", b"salt", 3));
    let stale = request(11, b"r=never-mind,s=AAAA,i=3");
    let sasl = request(10, b"SCRAM-SHA-256\0\0");
    let cases = [
        (request(3, b""), Credentials::None, UpstreamAuth::Cleartext),
        (
            request(3, b""),
            Credentials::Md5(Md5Hash::new("a", b"b")),
            UpstreamAuth::Cleartext,
        ),
        (
            request(5, b"salt"),
            Credentials::ScramKeys(keys),
            UpstreamAuth::Md5,
        ),
        (sasl.clone(), Credentials::None, UpstreamAuth::Scram),
        (
            [sasl, stale].concat(),
            Credentials::Md5(Md5Hash::new("a", b"b")),
            UpstreamAuth::Scram,
        ),
    ];
    for (script, credentials, expected) in cases {
        let failed = against(&script, &credentials).await;
        assert!(
            matches!(failed, Err(LoginError::PasswordNeeded { asked }) if asked == expected),
            "{credentials:?}: {failed:?}"
        );
    }
}

/// A server with a real SCRAM exchange, which may skip its signature.
async fn scram_server(
    verifier: crate::auth::scram::Verifier,
    binding: Option<&[u8]>,
    credentials: &Credentials,
    signs: bool,
) -> Result<LoggedIn, LoginError> {
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
    let server = async move {
        let mut startup = vec![0; theirs.read_u32().await.unwrap() as usize - 4];
        theirs.read_exact(&mut startup).await.unwrap();
        let exchange = ServerExchange::new(Arc::new(verifier), true, binding);
        let offer = exchange.mechanisms().join("\0") + "\0\0";
        theirs
            .write_all(&request(10, offer.as_bytes()))
            .await
            .unwrap();
        let first = frame::read_frame(&mut theirs, 1024).await.ok()?.body;
        let end = first.iter().position(|byte| *byte == 0).unwrap();
        let (exchange, challenge) = exchange
            .client_first(&first[..end], &first[end + 5..])
            .unwrap();
        theirs
            .write_all(&request(11, challenge.as_bytes()))
            .await
            .unwrap();
        let last = frame::read_frame(&mut theirs, 1024).await.ok()?.body;
        let (keys, signature) = exchange.client_final(&last).ok()?;
        if signs {
            theirs
                .write_all(&request(12, signature.as_bytes()))
                .await
                .unwrap();
        }
        theirs.write_all(&ready()).await.unwrap();
        Some(keys)
    };
    let client = async move {
        login_over(
            &mut ours,
            ProtocolVersion::V3_0,
            STARTUP,
            credentials,
            binding,
            &AtomicBool::default(),
        )
        .await
    };
    let (done, _) = tokio::join!(client, server);
    done
}

#[tokio::test]
async fn scram_learns_keys_that_log_in_again() {
    let verifier = || ScramKeys::derive("secret", b"salt", 5).verifier();
    for binding in [None, Some(&[9; 32][..])] {
        let done = scram_server(verifier(), binding, &password("secret"), true)
            .await
            .unwrap();
        assert_eq!(done.method, UpstreamAuth::Scram);
        let keys = Credentials::ScramKeys(done.learned.unwrap());
        let again = scram_server(verifier(), binding, &keys, true).await;
        assert_eq!(again.unwrap().method, UpstreamAuth::Scram);
        let changed = ScramKeys::derive("secret", b"pepper", 5).verifier();
        let failed = scram_server(changed, binding, &keys, true).await;
        assert!(
            matches!(failed, Err(LoginError::PasswordNeeded { .. })),
            "{failed:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_does_not_prove_itself_is_not_believed() {
    let verifier = ScramKeys::derive("secret", b"salt", 5).verifier();
    let failed = scram_server(verifier.clone(), None, &password("secret"), false).await;
    assert!(matches!(failed, Err(LoginError::Protocol(_))), "{failed:?}");
    let wrong = scram_server(verifier, None, &password("other"), true).await;
    assert!(matches!(wrong, Err(LoginError::Closed)), "{wrong:?}");
}

#[tokio::test]
async fn a_refusal_is_kept_whole() {
    let body = b"SFATALE\0VFATAL\0C28P01\0Mpassword authentication failed for user \"app\"\0\0";
    let refusal = framed(b'E', &[body]);
    let failed = against(&refusal, &Credentials::None).await.unwrap_err();
    let report = failed.report();
    let LoginError::Server(error) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!(error.frame, refusal);
    assert_eq!(error.severity, crate::error::Severity::Fatal);
    assert_eq!(error.code, SqlState::INVALID_PASSWORD);
    assert_eq!(
        report.message,
        "password authentication failed for user \"app\""
    );
    assert_eq!(report.code, SqlState::INVALID_PASSWORD);
}

#[tokio::test]
async fn a_version_below_the_one_asked_for_is_taken_and_none_above() {
    let negotiated = |version: u32, options: u32| {
        framed(b'v', &[&version.to_be_bytes(), &options.to_be_bytes()])
    };
    for version in [0, 0x0003_0000] {
        let script = [negotiated(version, 0), ready()].concat();
        let done = against(&script, &Credentials::None).await.unwrap();
        assert_eq!(done.protocol, ProtocolVersion::V3_0);
    }
    let long_key = framed(b'K', &[&7u32.to_be_bytes(), &[5; 256]]);
    let script = [request(0, b""), long_key, framed(b'Z', &[b"I"])].concat();
    let done = against(&script, &Credentials::None).await.unwrap();
    assert_eq!(
        (done.protocol, done.cancel_key.len()),
        (ProtocolVersion::V3_2, 256)
    );
    for (version, options) in [(0x0003_0003, 0), (0x0004_0000, 0), (0, 1)] {
        let script = [negotiated(version, options), ready()].concat();
        let failed = against(&script, &Credentials::None).await;
        assert!(matches!(failed, Err(LoginError::Protocol(_))), "{failed:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_named() {
    for (code, name) in [
        (7, "GSSAPI"),
        (9, "SSPI"),
        (2, "Kerberos V5"),
        (99, "code 99"),
    ] {
        let failed = against(&request(code, b""), &Credentials::None)
            .await
            .unwrap_err();
        assert_eq!(
            failed.to_string(),
            format!("server requires an unsupported authentication method: {name}")
        );
        assert_eq!(failed.report().code, SqlState::FEATURE_NOT_SUPPORTED);
    }
    let failed = against(&request(10, b"OAUTHBEARER\0\0"), &password("x")).await;
    assert!(
        matches!(failed, Err(LoginError::Unsupported(_))),
        "{failed:?}"
    );
}

#[tokio::test]
async fn messages_out_of_order_or_out_of_bounds_end_the_login() {
    let scripts = [
        framed(b'Z', &[b"I"]),
        request(11, b""),
        [request(0, b""), framed(b'D', &[b""])].concat(),
        [request(0, b""), framed(b'Z', &[b"T"])].concat(),
        [request(0, b""), framed(b'K', &[b"\0\0\0\x01abc"])].concat(),
        [request(0, b""), framed(b'S', &[b"name only\0"])].concat(),
        [request(3, b""), request(3, b"")].concat(),
        b"R\x7f\xff\xff\xff".to_vec(),
        framed(b'N', &[&vec![b'x'; MAX_BODY]]).repeat(17),
    ];
    for script in scripts {
        let failed = against(&script, &password("secret")).await;
        let start = &script[..script.len().min(20)];
        assert!(
            matches!(failed, Err(LoginError::Protocol(_))),
            "{start:?}: {failed:?}"
        );
    }
    let closed = against(&request(0, b""), &Credentials::None).await;
    assert!(matches!(closed, Err(LoginError::Closed)), "{closed:?}");
}

#[tokio::test]
async fn a_nul_in_a_startup_parameter_is_refused_before_anything_is_sent() {
    let (mut ours, _theirs) = tokio::io::duplex(64);
    let startup: &[(&[u8], &[u8])] = &[(b"user", b"app\0database\0other")];
    let none = Credentials::None;
    let failed = login_over(
        &mut ours,
        ProtocolVersion::V3_0,
        startup,
        &none,
        None,
        &AtomicBool::default(),
    )
    .await;
    assert!(matches!(failed, Err(LoginError::Protocol(_))));
}

proptest! {
    #[test]
    fn garbage_never_panics(
        tag in prop_oneof![Just(b'R'), Just(b'E'), Just(b'v'), Just(b'S'), Just(b'K'), any::<u8>()],
        body in proptest::collection::vec(prop_oneof![Just(0u8), 0u8..13, any::<u8>()], 0..60),
        after in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut script = if after { request(0, b"") } else { Vec::new() };
        script.extend(framed(tag, &[&body]));
        let failed = runtime.block_on(against(&script, &password("secret")));
        prop_assert!(failed.is_err());
    }
}
