use proptest::prelude::*;

use super::client::{Binding, ClientExchange};
use super::server::ServerExchange;
use super::*;
use std::sync::Arc;

/// Runs a whole exchange; `tamper(step, message)` sees each of the four messages before the other side does.
fn exchange(
    password: &str,
    verifier: &Verifier,
    binding: Binding,
    server_binding: Option<&[u8]>,
    mut tamper: impl FnMut(usize, &mut Vec<u8>),
) -> Result<(ScramKeys, ScramKeys), ScramError> {
    let server = ServerExchange::new(Arc::new(verifier.clone()), true, server_binding);
    let mechanism = binding.mechanism();
    let (client, message) = ClientExchange::start(binding);
    let mut message = message.into_bytes();
    tamper(0, &mut message);
    let (server, message) = server.client_first(mechanism.as_bytes(), &message)?;
    let mut message = message.into_bytes();
    tamper(1, &mut message);
    let challenge = client.server_first(&message)?;
    let keys = ScramKeys::derive(password, challenge.salt(), challenge.iterations());
    let (client, message) = challenge.respond(&keys);
    let mut message = message.into_bytes();
    tamper(2, &mut message);
    let (recovered, message) = server.client_final(&message)?;
    let mut message = message.into_bytes();
    tamper(3, &mut message);
    client.server_final(&message)?;
    Ok((keys, recovered))
}

fn verifier(password: &str) -> Verifier {
    ScramKeys::derive(password, b"0123456789abcdef", 3).verifier()
}

#[test]
fn the_vector_of_rfc_7677_is_reproduced_by_both_roles() {
    let first =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    let (client, _) =
        ClientExchange::with_nonce(Binding::Unsupported, "rOprNGfwEbeRWgbNEkqO".to_owned());
    let challenge = client
        .challenge("n=user,r=rOprNGfwEbeRWgbNEkqO", first.as_bytes())
        .unwrap();
    let keys = ScramKeys::derive("pencil", challenge.salt(), challenge.iterations());
    let (client, answer) = challenge.respond(&keys);
    assert_eq!(
        answer,
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
         p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    );
    client
        .server_final(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
        .unwrap();
}

#[test]
fn a_verifier_survives_printing_and_parsing() {
    let verifier = verifier("secret");
    assert_eq!(Verifier::parse(&verifier.to_text()), Some(verifier));
}

#[test]
fn a_verifier_made_by_postgresql_accepts_its_password() {
    // SET password_encryption = 'scram-sha-256'; the RFC's example in PostgreSQL's form.
    let verifier = Verifier::parse(
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    )
    .unwrap();
    assert!(verifier.accepts("pencil"));
    assert!(!verifier.accepts("pencils"));
}

#[test]
fn what_is_no_verifier_does_not_parse() {
    let good = verifier("secret").to_text();
    for cut in 0..good.len() {
        assert_eq!(Verifier::parse(&good[..cut]), None, "{cut}");
    }
    for bad in [
        "",
        "md5abc",
        "SCRAM-SHA-256$0:AA==$AA==:AA==",
        "SCRAM-SHA-256$-1:a$b:c",
    ] {
        assert_eq!(Verifier::parse(bad), None, "{bad}");
    }
}

#[test]
fn a_mock_verifier_is_the_same_each_time_and_differs_by_user() {
    let secret = MockSecret::random();
    assert_eq!(
        Verifier::mock("app", &secret),
        Verifier::mock("app", &secret)
    );
    assert_ne!(
        Verifier::mock("app", &secret).salt,
        Verifier::mock("ap", &secret).salt
    );
    assert_eq!(Verifier::mock("app", &secret).salt.len(), SALT_LEN);
}

#[test]
fn a_right_proof_fails_where_the_verifier_is_a_mock() {
    let keys = ScramKeys::derive("secret", b"salt", 3);
    let server = ServerExchange::new(Arc::new(keys.verifier()), false, None);
    let (client, first) = ClientExchange::start(Binding::Unsupported);
    let (server, first) = server
        .client_first(b"SCRAM-SHA-256", first.as_bytes())
        .unwrap();
    let (_, last) = client
        .server_first(first.as_bytes())
        .unwrap()
        .respond(&keys);
    assert_eq!(
        server.client_final(last.as_bytes()),
        Err(ScramError::WrongProof)
    );
}

#[test]
fn binding_flags_are_judged_as_postgresql_does() {
    let hash: &[u8] = &[7; 32];
    let judge = |mechanism: &str, flag: &str, binding: Option<&[u8]>| {
        ServerExchange::new(Arc::new(verifier("x")), true, binding)
            .client_first(mechanism.as_bytes(), format!("{flag},,n=,r=abc").as_bytes())
            .map(|_| ())
    };
    let plus = SCRAM_SHA_256_PLUS;
    let plain = SCRAM_SHA_256;
    assert_eq!(judge(plain, "n", None), Ok(()));
    assert_eq!(judge(plain, "n", Some(hash)), Ok(()));
    assert_eq!(judge(plain, "y", None), Ok(()));
    assert_eq!(judge(plain, "y", Some(hash)), Err(ScramError::Downgrade));
    assert_eq!(judge(plus, "p=tls-server-end-point", Some(hash)), Ok(()));
    assert_eq!(
        judge(plus, "p=tls-server-end-point", None),
        Err(ScramError::UnknownMechanism)
    );
    assert_eq!(
        judge(plus, "p=tls-unique", Some(hash)),
        Err(ScramError::UnsupportedBinding)
    );
    for (mechanism, flag) in [
        (plus, "n"),
        (plus, "y"),
        (plain, "p=tls-server-end-point"),
        (plain, "x"),
        (plain, ""),
    ] {
        let judged = judge(mechanism, flag, Some(hash));
        assert!(
            matches!(judged, Err(ScramError::Malformed(_))),
            "{mechanism} {flag}"
        );
    }
}

#[test]
fn a_binding_to_another_certificate_is_refused() {
    let binding = Binding::ServerEndPoint(vec![1; 32]);
    let failed = exchange(
        "secret",
        &verifier("secret"),
        binding,
        Some(&[2; 32]),
        |_, _| {},
    );
    assert_eq!(failed, Err(ScramError::BindingMismatch));
}

#[test]
fn unsupported_parts_of_the_first_message_are_named() {
    let judge = |message: &str| {
        ServerExchange::new(Arc::new(verifier("x")), true, None)
            .client_first(b"SCRAM-SHA-256", message.as_bytes())
            .map(|_| ())
            .unwrap_err()
    };
    assert_eq!(
        judge("n,a=root,n=,r=abc"),
        ScramError::AuthorizationIdentity
    );
    assert_eq!(judge("n,,m=ext,n=,r=abc"), ScramError::UnsupportedExtension);
    assert!(matches!(judge("n,,n=,r="), ScramError::Malformed(_)));
    assert!(matches!(judge("n,,n=,r=a\x01b"), ScramError::Malformed(_)));
}

#[test]
fn a_server_nonce_must_extend_the_clients_and_the_count_is_capped() {
    let judge = |message: &str| {
        let (client, _) = ClientExchange::with_nonce(Binding::Unsupported, "abc".to_owned());
        client
            .server_first(message.as_bytes())
            .map(|_| ())
            .unwrap_err()
    };
    assert!(matches!(judge("r=abc,s=AAAA,i=1"), ScramError::Invalid(_)));
    assert!(matches!(judge("r=xyzw,s=AAAA,i=1"), ScramError::Invalid(_)));
    assert!(matches!(
        judge("r=abcd,s=AAAA,i=0"),
        ScramError::Malformed(_)
    ));
    assert_eq!(
        judge("r=abcd,s=AAAA,i=4000000000"),
        ScramError::TooManyIterations(4_000_000_000)
    );
}

#[test]
fn secrets_do_not_print() {
    let keys = ScramKeys::derive("secret", b"salt", 2);
    let printed = format!("{keys:?} {:?} {:?}", keys.verifier(), MockSecret::random());
    assert_eq!(
        printed,
        "ScramKeys { iterations: 2, .. } Verifier { iterations: 2, .. } MockSecret(********)"
    );
}

fn bindings() -> impl Strategy<Value = (Binding, Option<Vec<u8>>)> {
    prop_oneof![
        Just((Binding::Unsupported, None)),
        Just((Binding::NotOffered, None)),
        proptest::collection::vec(any::<u8>(), 32..64)
            .prop_map(|hash| (Binding::ServerEndPoint(hash.clone()), Some(hash))),
    ]
}

proptest! {
    #[test]
    fn server_and_client_agree_and_the_recovered_keys_are_the_clients(
        password in any::<String>(),
        salt in proptest::collection::vec(any::<u8>(), 0..40),
        iterations in 1u32..40,
        (binding, server_binding) in bindings(),
    ) {
        let keys = ScramKeys::derive(&password, &salt, iterations);
        let done = exchange(&password, &keys.verifier(), binding, server_binding.as_deref(), |_, _| {});
        prop_assert_eq!(done, Ok((keys.clone(), keys)));
    }

    #[test]
    fn another_password_is_refused(password in "[a-z]{1,8}", other in "[A-Z]{1,8}") {
        let done = exchange(&other, &verifier(&password), Binding::Unsupported, None, |_, _| {});
        prop_assert_eq!(done, Err(ScramError::WrongProof));
    }

    #[test]
    fn any_flipped_bit_in_any_message_fails(
        step in 0usize..4,
        at in any::<proptest::sample::Index>(),
        bit in 0u8..8,
        (binding, server_binding) in bindings(),
    ) {
        let done = exchange("secret", &verifier("secret"), binding, server_binding.as_deref(), |now, message| {
            if now == step {
                let at = at.index(message.len());
                message[at] ^= 1 << bit;
            }
        });
        prop_assert!(done.is_err());
    }

    #[test]
    fn garbage_never_panics(message in proptest::collection::vec(any::<u8>(), 0..80)) {
        let server = ServerExchange::new(Arc::new(verifier("x")), true, None);
        let _ = server.client_first(b"SCRAM-SHA-256", &message);
        let (server, _) = ServerExchange::new(Arc::new(verifier("x")), true, None)
            .client_first(b"SCRAM-SHA-256", b"n,,n=,r=abc")
            .unwrap();
        prop_assert!(server.client_final(&message).is_err());
        let (client, _) = ClientExchange::start(Binding::Unsupported);
        prop_assert!(client.server_first(&message).is_err());
    }
}
