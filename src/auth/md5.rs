//! PostgreSQL's md5 authentication, both sides: `md5(md5(password || user) || salt)`.
//!
//! Kept for old servers and drivers: whoever has the stored hash can log in with it.

use std::fmt;
use std::fmt::Write as _;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

const HEX_LEN: usize = 32;

/// What PostgreSQL stores as `md5<32 hex digits>`: the hash of password and user, in hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Md5Hash([u8; HEX_LEN]);

impl Md5Hash {
    pub fn new(password: &str, user: &[u8]) -> Self {
        Self(hex_md5(&[password.as_bytes(), user]))
    }

    /// Reads PostgreSQL's form; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let hex: [u8; HEX_LEN] = text.strip_prefix("md5")?.as_bytes().try_into().ok()?;
        let lower_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        hex.iter().all(lower_hex).then_some(Self(hex))
    }

    /// The password field of a `PasswordMessage` that answers `AuthenticationMD5Password` with this salt.
    pub fn response(&self, salt: [u8; 4]) -> String {
        let hash = hex_md5(&[&self.0, &salt]);
        let mut response = String::with_capacity(3 + HEX_LEN);
        response.push_str("md5");
        response.extend(hash.map(char::from));
        response
    }

    /// Whether `response` answers `salt`; takes as long for a wrong answer as for the right one.
    pub fn verify(&self, salt: [u8; 4], response: &[u8]) -> bool {
        bool::from(self.response(salt).as_bytes().ct_eq(response))
    }

    /// Whether this is the hash of `password`.
    pub fn accepts(&self, password: &str, user: &[u8]) -> bool {
        bool::from(Self::new(password, user).0.ct_eq(&self.0))
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash(********)")
    }
}

fn hex_md5(parts: &[&[u8]]) -> [u8; HEX_LEN] {
    let mut hasher = Md5::new();
    for part in parts {
        hasher.update(part);
    }
    let mut hex = String::with_capacity(HEX_LEN);
    for byte in hasher.finalize() {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    let mut out = [0; HEX_LEN];
    out.copy_from_slice(hex.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_hash_is_postgresqls() {
        // SELECT md5('secret' || 'app')
        let hash = Md5Hash::parse("md56a422f785c9e20873908ce25d1736ae2").unwrap();
        assert!(hash.accepts("secret", b"app"));
        assert!(!hash.accepts("secret", b"other"));
    }

    #[test]
    fn a_response_is_accepted_for_its_own_salt_only() {
        let hash = Md5Hash::new("secret", b"app");
        let response = hash.response(*b"salt");
        assert_eq!(
            response,
            postgres_protocol::authentication::md5_hash(b"app", b"secret", *b"salt")
        );
        assert!(hash.verify(*b"salt", response.as_bytes()));
        assert!(!hash.verify(*b"sal7", response.as_bytes()));
        assert!(!hash.verify(*b"salt", b""));
        assert!(!hash.verify(*b"salt", &response.as_bytes()[..34]));
    }

    #[test]
    fn only_lower_case_hex_of_full_length_is_a_hash() {
        assert!(Md5Hash::parse("md50123456789abcdef0123456789abcdef").is_some());
        for bad in [
            "md5",
            "md50123456789ABCDEF0123456789abcdef",
            "md50123456789abcdef0123456789abcde",
            "md50123456789abcdef0123456789abcdefa",
            "md6",
        ] {
            assert!(Md5Hash::parse(bad).is_none(), "{bad}");
        }
    }
}
