use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tokio::net::UnixStream;

use super::*;
use crate::backend::login::{self, Credentials, LoggedIn, LoginError, ProtocolVersion};
use crate::net::frame::{message, read_frame};
use crate::net::stream::Stream;

fn plain(password: &str) -> UserSecret {
    UserSecret::parse(password)
}

fn scram_secret(password: &str) -> UserSecret {
    let keys = ScramKeys::derive(password, b"0123456789abcdef", 7);
    UserSecret::Scram(Arc::new(keys.verifier()))
}

fn md5_secret(password: &str) -> UserSecret {
    UserSecret::Md5(Md5Hash::new(password, b"app"))
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

/// Which exchange the server end runs.
#[derive(Clone, Copy, Debug)]
enum Method {
    Scram,
    Md5,
    Cleartext,
}

type Ended = (Result<Proof, AuthError>, Result<LoggedIn, LoginError>);

/// pgweir's own login, as the client, against pgweir's authentication, as the server.
async fn meet(method: Method, secret: Option<&UserSecret>, credentials: &Credentials) -> Ended {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let (mut theirs, mut ours) = (Stream::Unix(theirs), Stream::Unix(ours));
    let mock = MockSecret::random();
    let server = async move {
        let mut startup = vec![0; 4];
        tokio::io::AsyncReadExt::read_exact(&mut ours, &mut startup).await?;
        startup = vec![0; usize::from(startup[3]) - 4];
        tokio::io::AsyncReadExt::read_exact(&mut ours, &mut startup).await?;
        let proof = match method {
            Method::Scram => scram(&mut ours, "app", secret, &mock, None)
                .await
                .map(Proof::ScramKeys),
            Method::Md5 => md5(&mut ours, "app", secret, &mock, None).await,
            Method::Cleartext => match cleartext(&mut ours, "app").await {
                Ok(password) => check_cleartext("app", &password, secret, &mock)
                    .await
                    .map(|()| Proof::Password(password)),
                Err(error) => Err(error),
            },
        }?;
        ours.write_all(&message(b'R', &[&[0; 4]])).await?;
        ours.write_all(&message(b'Z', &[b"I"])).await?;
        Ok(proof)
    };
    let startup: &[(&[u8], &[u8])] = &[(b"user", b"app")];
    let client = async move {
        let heard = AtomicBool::default();
        login::login(
            &mut theirs,
            ProtocolVersion::V3_0,
            startup,
            credentials,
            &heard,
        )
        .await
    };
    tokio::join!(server, client)
}

fn password(text: &str) -> Credentials {
    Credentials::Password(secret(text))
}

#[tokio::test]
async fn the_right_password_passes_every_method_with_every_stored_form() {
    let stored = [
        (plain("secret"), true),
        (scram_secret("secret"), true),
        (md5_secret("secret"), false),
    ];
    for (stored, knows_scram) in stored {
        for method in [Method::Scram, Method::Md5, Method::Cleartext] {
            let (proof, login) = meet(method, Some(&stored), &password("secret")).await;
            let expected = knows_scram || !matches!(method, Method::Scram);
            assert_eq!(proof.is_ok(), expected, "{method:?} {stored:?}: {proof:?}");
            assert_eq!(login.is_ok(), expected, "{method:?} {stored:?}");
        }
    }
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_read_the_same() {
    let stored = [
        None,
        Some(plain("other")),
        Some(scram_secret("other")),
        Some(md5_secret("other")),
    ];
    for stored in &stored {
        for method in [Method::Scram, Method::Md5, Method::Cleartext] {
            let (proof, login) = meet(method, stored.as_ref(), &password("secret")).await;
            let report = proof.unwrap_err().report();
            assert_eq!(
                report,
                Report::fatal(
                    SqlState::INVALID_PASSWORD,
                    "password authentication failed for user \"app\"",
                )
            );
            assert!(login.is_err());
        }
    }
}

#[tokio::test]
async fn keys_recovered_from_a_client_log_in_upstream() {
    let stored = scram_secret("secret");
    let (proof, _) = meet(Method::Scram, Some(&stored), &password("secret")).await;
    let Ok(Proof::ScramKeys(keys)) = proof else {
        panic!("{proof:?}");
    };
    let (proof, login) = meet(Method::Md5, Some(&stored), &Credentials::ScramKeys(keys)).await;
    assert!(matches!(proof, Ok(Proof::ScramKeys(_))), "{proof:?}");
    assert!(login.is_ok(), "{login:?}");
}

/// Runs an exchange with a client that says all of `said` at once and then hangs up.
async fn hearing(method: Method, said: &[u8]) -> (Result<(), AuthError>, Vec<u8>) {
    let (mut client, mut ours) = tokio::io::duplex(1 << 20);
    client.write_all(said).await.unwrap();
    client.shutdown().await.unwrap();
    let (stored, mock) = (scram_secret("secret"), MockSecret::random());
    let done = match method {
        Method::Scram => scram(&mut ours, "app", Some(&stored), &mock, None)
            .await
            .map(|_| ()),
        Method::Md5 => md5(&mut ours, "app", None, &mock, None).await.map(|_| ()),
        Method::Cleartext => cleartext(&mut ours, "app").await.map(|_| ()),
    };
    drop(ours);
    let mut heard = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut client, &mut heard)
        .await
        .unwrap();
    (done, heard)
}

async fn refusal(method: Method, said: &[u8]) -> (String, SqlState) {
    let error = hearing(method, said).await.0.unwrap_err();
    (error.to_string(), error.report().code)
}

#[tokio::test]
async fn bad_password_messages_are_refused_in_postgresqls_words() {
    let violation = SqlState::PROTOCOL_VIOLATION;
    for method in [Method::Md5, Method::Cleartext] {
        assert_eq!(
            refusal(method, &message(b'p', &[b"\0"])).await,
            (
                "empty password returned by client".to_owned(),
                SqlState::INVALID_PASSWORD
            )
        );
        for body in [&b""[..], b"no end", b"two\0strings\0"] {
            assert_eq!(
                refusal(method, &message(b'p', &[body])).await,
                ("invalid password packet size".to_owned(), violation)
            );
        }
        assert_eq!(
            refusal(method, &message(b'Q', &[b"select 1\0"])).await,
            (
                "expected password response, got message type 81".to_owned(),
                violation
            )
        );
        let (_, code) = refusal(method, b"p\x7f\xff\xff\xff").await;
        assert_eq!(code, violation);
        let (gone, _) = hearing(method, b"").await;
        assert!(matches!(gone, Err(AuthError::Closed)), "{gone:?}");
        let (goodbye, _) = hearing(method, &message(b'X', &[])).await;
        assert!(matches!(goodbye, Err(AuthError::Closed)), "{goodbye:?}");
    }
    assert_eq!(
        refusal(Method::Cleartext, &message(b'p', &[b"caf\xe9\0"]))
            .await
            .1,
        SqlState::INVALID_PASSWORD
    );
}

#[tokio::test]
async fn scram_is_offered_without_binding_where_there_is_no_tls() {
    let (_, heard) = hearing(Method::Scram, b"").await;
    assert_eq!(
        heard,
        message(b'R', &[&SASL.to_be_bytes(), b"SCRAM-SHA-256\0\0"])
    );
}

#[tokio::test]
async fn bad_sasl_messages_are_refused() {
    let initial = |mechanism: &[u8], length: i32, data: &[u8]| {
        message(b'p', &[mechanism, b"\0", &length.to_be_bytes(), data])
    };
    let first = b"n,,n=,r=abc";
    let cases = [
        (
            initial(b"SCRAM-SHA-1", 11, first),
            "client selected an invalid SASL authentication mechanism",
        ),
        (
            initial(b"SCRAM-SHA-256-PLUS", 11, first),
            "client selected an invalid SASL authentication mechanism",
        ),
        (
            initial(b"SCRAM-SHA-256", 12, first),
            "malformed SCRAM message",
        ),
        (
            initial(b"SCRAM-SHA-256", -2, first),
            "malformed SCRAM message",
        ),
        (
            message(b'p', &[b"SCRAM-SHA-256"]),
            "malformed SCRAM message",
        ),
        (
            message(b'p', &[&[b'x'; 2000]]),
            "invalid message length 2004 of message type 'p'",
        ),
    ];
    for (said, expected) in cases {
        let (text, code) = refusal(Method::Scram, &said).await;
        assert_eq!(
            (text.as_str(), code),
            (expected, SqlState::PROTOCOL_VIOLATION)
        );
    }
}

#[tokio::test]
async fn a_client_may_name_the_mechanism_first_and_speak_later() {
    let said = [
        message(b'p', &[b"SCRAM-SHA-256\0\xff\xff\xff\xff"]),
        message(b'p', &[b"n,,n=,r=abc"]),
    ]
    .concat();
    let (done, heard) = hearing(Method::Scram, &said).await;
    assert!(matches!(done, Err(AuthError::Closed)), "{done:?}");
    let mut heard = &heard[..];
    let mut codes = Vec::new();
    while let Ok(frame) = read_frame(&mut heard, 1024).await {
        codes.push((frame.body[3], frame.body.len() > 4));
    }
    assert_eq!(codes, [(10, true), (11, false), (11, true)]);
}

#[tokio::test]
async fn peer_names_come_from_the_system() {
    let passwd =
        "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:5:5::/:\napp:x:1000:1000::/home/app:/bin/sh\n";
    assert_eq!(user_name(passwd, 0), Some("root"));
    assert_eq!(user_name(passwd, 1000), Some("app"));
    assert_eq!(user_name(passwd, 5), None);
    assert_eq!(user_name(passwd, 6), None);

    let maps = IdentMaps::parse("ops root app").unwrap();
    assert!(peer(Some(0), "root", None, &maps).await.is_ok());
    assert!(peer(Some(0), "app", Some("ops"), &maps).await.is_ok());
    for (uid, user) in [(Some(0), "app"), (None, "root")] {
        let report = peer(uid, user, None, &maps).await.unwrap_err().report();
        assert_eq!(
            report.message,
            format!("Peer authentication failed for user \"{user}\"")
        );
        assert_eq!(report.code, SqlState::INVALID_AUTHORIZATION);
    }
}

#[test]
fn a_certificate_must_be_there_and_name_the_user() {
    let maps = IdentMaps::default();
    let check = |presented, name| certificate(presented, name, "app", None, &maps);
    assert!(check(true, Some("app")).is_ok());
    let words = |result: Result<(), AuthError>| result.unwrap_err().report().message.into_owned();
    assert_eq!(
        words(check(false, None)),
        "connection requires a valid client certificate"
    );
    assert_eq!(
        words(check(true, Some("other"))),
        "certificate authentication failed for user \"app\""
    );
}

proptest! {
    #[test]
    fn garbage_never_panics_and_never_passes(
        body in proptest::collection::vec(any::<u8>(), 0..60),
        mechanism in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let said = if mechanism {
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            message(b'p', &[b"SCRAM-SHA-256\0", &length, &body])
        } else {
            message(b'p', &[&body])
        };
        prop_assert!(runtime.block_on(hearing(Method::Scram, &said)).0.is_err());
        prop_assert!(runtime.block_on(hearing(Method::Md5, &said)).0.is_err());
    }
}
