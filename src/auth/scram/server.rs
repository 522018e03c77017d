//! The server's role, towards pgweir's clients. Each step consumes the exchange and returns the next.
//!
//! Checks and their order follow PostgreSQL's `auth-scram.c`.

use std::sync::Arc;

use base64::Engine;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    BASE64, Key, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, ScramKeys, Verifier, attribute,
    decode_key, hmac, is_printable, nonce, xor,
};

const BINDING_TYPE: &str = "tls-server-end-point";

/// An exchange in which the client has not spoken yet.
#[derive(Debug)]
pub struct ServerExchange {
    verifier: Arc<Verifier>,
    genuine: bool,
    /// The `tls-server-end-point` hash of pgweir's certificate.
    binding: Option<Vec<u8>>,
    nonce: String,
}

/// An exchange that waits for the client's proof.
#[derive(Debug)]
pub struct AwaitingProof {
    verifier: Arc<Verifier>,
    genuine: bool,
    nonce: String,
    /// What `c=` must be, decoded.
    expected_binding: Vec<u8>,
    /// `client-first-message-bare,server-first-message,`
    transcript: String,
}

impl ServerExchange {
    /// `genuine` is false for a [`Verifier::mock`]: the exchange takes its course and then fails.
    /// `binding` is the hash of pgweir's own certificate, present on TLS connections only.
    pub fn new(verifier: Arc<Verifier>, genuine: bool, binding: Option<&[u8]>) -> Self {
        Self {
            verifier,
            genuine,
            binding: binding.map(<[u8]>::to_vec),
            nonce: nonce(),
        }
    }

    /// What to offer in `AuthenticationSASL`.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.binding.is_some() {
            &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256]
        } else {
            &[SCRAM_SHA_256]
        }
    }

    /// Whether the client may choose `mechanism`.
    pub fn check_mechanism(&self, mechanism: &[u8]) -> Result<(), ScramError> {
        let offered = self.mechanisms();
        if offered.iter().any(|name| name.as_bytes() == mechanism) {
            Ok(())
        } else {
            Err(ScramError::UnknownMechanism)
        }
    }

    /// Takes the client-first-message and answers with the server-first-message.
    pub fn client_first(
        self,
        mechanism: &[u8],
        message: &[u8],
    ) -> Result<(AwaitingProof, String), ScramError> {
        self.check_mechanism(mechanism)?;
        let message = text(message)?;
        let plus = mechanism == SCRAM_SHA_256_PLUS.as_bytes();
        let (gs2_header, bare) = split_gs2_header(message)?;
        let expected_binding = self.expected_binding(gs2_header, plus)?;
        let client_nonce = client_nonce(bare)?;
        let nonce = format!("{client_nonce}{}", self.nonce);
        let server_first = format!(
            "r={nonce},s={},i={}",
            BASE64.encode(&self.verifier.salt),
            self.verifier.iterations
        );
        let awaiting = AwaitingProof {
            verifier: self.verifier,
            genuine: self.genuine,
            nonce,
            expected_binding,
            transcript: format!("{bare},{server_first},"),
        };
        Ok((awaiting, server_first))
    }

    /// Judges the gs2 binding flag, and returns what the client must repeat in `c=`.
    fn expected_binding(&self, gs2_header: &str, plus: bool) -> Result<Vec<u8>, ScramError> {
        let (flag, _) = gs2_header
            .split_once(',')
            .ok_or(ScramError::Malformed("Comma expected."))?;
        let mut expected = gs2_header.as_bytes().to_vec();
        match (flag, flag.strip_prefix("p=")) {
            ("n" | "y", _) if plus => Err(ScramError::Malformed(
                "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
            )),
            ("y", _) if self.binding.is_some() => Err(ScramError::Downgrade),
            ("n" | "y", _) => Ok(expected),
            (_, Some(_)) if !plus => Err(ScramError::Malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.",
            )),
            (_, Some(BINDING_TYPE)) => {
                let hash = self.binding.as_deref();
                expected.extend_from_slice(hash.ok_or(ScramError::UnknownMechanism)?);
                Ok(expected)
            }
            (_, Some(_)) => Err(ScramError::UnsupportedBinding),
            _ => Err(ScramError::Malformed("Unexpected channel-binding flag.")),
        }
    }
}

impl AwaitingProof {
    /// Takes the client-final-message. If the proof holds, returns the server-final-message and the keys that will
    /// log in wherever the same verifier is stored.
    pub fn client_final(self, message: &[u8]) -> Result<(ScramKeys, String), ScramError> {
        let message = text(message)?;
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or(ScramError::Malformed("The proof is missing."))?;
        let proof: Key = decode_key(proof).ok_or(ScramError::Malformed(
            "Malformed proof in client-final-message.",
        ))?;
        self.check_binding_and_nonce(without_proof)?;

        let auth_message = [self.transcript.as_bytes(), without_proof.as_bytes()];
        let mut client_key = hmac(&self.verifier.stored_key, &auth_message);
        xor(&mut client_key, &proof);
        let stored_key: Key = Sha256::digest(client_key).into();
        let right = bool::from(stored_key.ct_eq(&self.verifier.stored_key));
        if !(right && self.genuine) {
            return Err(ScramError::WrongProof);
        }
        let signature = hmac(&self.verifier.server_key, &auth_message);
        let keys = ScramKeys {
            client_key,
            server_key: self.verifier.server_key,
            salt: self.verifier.salt.clone(),
            iterations: self.verifier.iterations,
        };
        Ok((keys, format!("v={}", BASE64.encode(signature))))
    }

    fn check_binding_and_nonce(&self, without_proof: &str) -> Result<(), ScramError> {
        let (binding, rest) = attribute(without_proof, 'c').ok_or(ScramError::Malformed(
            "Expected attribute \"c\" in client-final-message.",
        ))?;
        let binding = BASE64
            .decode(binding)
            .map_err(|_| ScramError::Malformed("The channel-binding attribute is not base64."))?;
        if binding != self.expected_binding {
            return Err(if self.expected_binding.starts_with(b"p=") {
                ScramError::BindingMismatch
            } else {
                ScramError::Invalid(
                    "Unexpected SCRAM channel-binding attribute in client-final-message.",
                )
            });
        }
        let (nonce, _extensions) = attribute(rest, 'r').ok_or(ScramError::Malformed(
            "Expected attribute \"r\" in client-final-message.",
        ))?;
        if nonce != self.nonce {
            return Err(ScramError::Invalid("Nonce does not match."));
        }
        Ok(())
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.contains(&0) {
        return Err(ScramError::Malformed(
            "Message length does not match input length.",
        ));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("The message is not UTF-8."))
}

/// Splits `n,,n=user,r=…` into `n,,` and `n=user,r=…`.
fn split_gs2_header(message: &str) -> Result<(&str, &str), ScramError> {
    let mut commas = message.match_indices(',').map(|(at, _)| at);
    let (Some(flag_end), Some(header_end)) = (commas.next(), commas.next()) else {
        return Err(ScramError::Malformed(
            "Comma expected, but found the end of the message.",
        ));
    };
    if header_end != flag_end + 1 {
        return Err(if message[flag_end + 1..].starts_with("a=") {
            ScramError::AuthorizationIdentity
        } else {
            ScramError::Malformed("Unexpected attribute in client-first-message.")
        });
    }
    Ok(message.split_at(header_end + 1))
}

fn client_nonce(bare: &str) -> Result<&str, ScramError> {
    if bare.starts_with("m=") {
        return Err(ScramError::UnsupportedExtension);
    }
    // The name is that of the StartupMessage; PostgreSQL ignores this one too.
    let (_, rest) = attribute(bare, 'n').ok_or(ScramError::Malformed(
        "Expected attribute \"n\" in client-first-message.",
    ))?;
    let (nonce, _extensions) = attribute(rest, 'r').ok_or(ScramError::Malformed(
        "Expected attribute \"r\" in client-first-message.",
    ))?;
    if is_printable(nonce) {
        Ok(nonce)
    } else {
        Err(ScramError::Malformed(
            "Non-printable characters in SCRAM nonce.",
        ))
    }
}
