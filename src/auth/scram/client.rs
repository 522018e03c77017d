//! The client's role, towards PostgreSQL. Each step consumes the exchange and returns the next.
//!
//! Deriving keys from a password is the caller's step between [`ClientExchange::server_first`] and
//! [`Challenge::respond`]: it takes milliseconds of CPU and belongs on a blocking thread.

use base64::Engine;
use subtle::ConstantTimeEq;

use super::{
    BASE64, Key, MAX_ITERATIONS, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, ScramKeys,
    attribute, decode_key, hmac, is_printable, nonce, parse_iterations, xor,
};

/// What the client says of channel binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// `n`: it can't bind (no TLS, or a certificate whose hash is undefined).
    Unsupported,
    /// `y`: it could, but the server did not offer it; a server that did offer it then knows of a downgrade.
    NotOffered,
    /// `p=tls-server-end-point`: the hash of the server's certificate.
    ServerEndPoint(Vec<u8>),
}

impl Binding {
    /// What to say on a connection whose certificate hash is `hash` (`None` without TLS) to a server that offered
    /// -PLUS or did not.
    pub fn choose(hash: Option<&[u8]>, plus_offered: bool) -> Self {
        match hash {
            None => Self::Unsupported,
            Some(_) if !plus_offered => Self::NotOffered,
            Some(hash) => Self::ServerEndPoint(hash.to_vec()),
        }
    }

    /// The mechanism that goes with it.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::ServerEndPoint(_) => SCRAM_SHA_256_PLUS,
            Self::Unsupported | Self::NotOffered => SCRAM_SHA_256,
        }
    }

    fn gs2_header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::NotOffered => "y,,",
            Self::ServerEndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    fn attribute(&self) -> String {
        let mut raw = self.gs2_header().as_bytes().to_vec();
        if let Self::ServerEndPoint(hash) = self {
            raw.extend_from_slice(hash);
        }
        BASE64.encode(raw)
    }
}

/// An exchange whose client-first-message is on its way.
#[derive(Debug)]
pub struct ClientExchange {
    nonce: String,
    binding: Binding,
}

/// What the server asks.
#[derive(Debug)]
pub struct Challenge {
    salt: Vec<u8>,
    iterations: u32,
    /// `client-first-message-bare,server-first-message,`
    transcript: String,
    without_proof: String,
}

/// An exchange that waits for the server's own proof.
#[derive(Debug)]
pub struct AwaitingSignature {
    signature: Key,
}

impl ClientExchange {
    /// Starts an exchange; also returns the client-first-message.
    pub fn start(binding: Binding) -> (Self, String) {
        Self::with_nonce(binding, nonce())
    }

    pub(super) fn with_nonce(binding: Binding, nonce: String) -> (Self, String) {
        // PostgreSQL takes the user from the StartupMessage; libpq leaves it empty here too.
        let message = format!("{}n=,r={nonce}", binding.gs2_header());
        (Self { nonce, binding }, message)
    }

    /// Takes the server-first-message.
    pub fn server_first(self, message: &[u8]) -> Result<Challenge, ScramError> {
        let bare = format!("n=,r={}", self.nonce);
        self.challenge(&bare, message)
    }

    pub(super) fn challenge(self, bare: &str, message: &[u8]) -> Result<Challenge, ScramError> {
        let malformed = ScramError::Malformed("The server-first-message does not parse.");
        let text = std::str::from_utf8(message).map_err(|_| malformed.clone())?;
        if text.starts_with("m=") {
            return Err(ScramError::Malformed(
                "The server requires an unsupported SCRAM extension.",
            ));
        }
        let (nonce, rest) = attribute(text, 'r').ok_or_else(|| malformed.clone())?;
        let (salt, rest) = attribute(rest, 's').ok_or_else(|| malformed.clone())?;
        let (iterations, _extensions) = attribute(rest, 'i').ok_or_else(|| malformed.clone())?;
        let salt = BASE64.decode(salt).map_err(|_| malformed.clone())?;
        let iterations = parse_iterations(iterations).ok_or(malformed)?;
        if iterations > MAX_ITERATIONS {
            return Err(ScramError::TooManyIterations(iterations));
        }
        // A nonce without the server's part would let an old exchange be replayed.
        let fresh = nonce.strip_prefix(self.nonce.as_str());
        if !is_printable(nonce) || fresh.is_none_or(str::is_empty) {
            return Err(ScramError::Invalid("Nonce does not match."));
        }
        Ok(Challenge {
            salt,
            iterations,
            transcript: format!("{bare},{text},"),
            without_proof: format!("c={},r={nonce}", self.binding.attribute()),
        })
    }
}

impl Challenge {
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Makes the client-final-message. The keys must [`ScramKeys::fit`] this challenge, else the server refuses.
    pub fn respond(self, keys: &ScramKeys) -> (AwaitingSignature, String) {
        let auth_message = [self.transcript.as_bytes(), self.without_proof.as_bytes()];
        let mut proof = hmac(&keys.stored_key(), &auth_message);
        xor(&mut proof, &keys.client_key);
        let awaiting = AwaitingSignature {
            signature: hmac(&keys.server_key, &auth_message),
        };
        let message = format!("{},p={}", self.without_proof, BASE64.encode(proof));
        (awaiting, message)
    }
}

impl AwaitingSignature {
    /// Takes the server-final-message: does the server know the secret too?
    pub fn server_final(self, message: &[u8]) -> Result<(), ScramError> {
        let malformed = ScramError::Malformed("The server-final-message does not parse.");
        let text = std::str::from_utf8(message).map_err(|_| malformed.clone())?;
        if let Some((error, _)) = attribute(text, 'e') {
            let error = error.chars().filter(|c| !c.is_control()).take(200);
            return Err(ScramError::ServerError(error.collect()));
        }
        let (signature, _extensions) = attribute(text, 'v').ok_or_else(|| malformed.clone())?;
        let signature = decode_key(signature).ok_or(malformed)?;
        if bool::from(signature.ct_eq(&self.signature)) {
            Ok(())
        } else {
            Err(ScramError::WrongServerSignature)
        }
    }
}
