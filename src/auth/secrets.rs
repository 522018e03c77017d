//! What pgweir knows of a user's password, and where it asks for it.
//!
//! # Why
//!
//! [`SecretSource`] lives here and is implemented above (`pool::auth_query`), so that authentication does not depend
//! on the pool it guards.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use subtle::ConstantTimeEq;

use super::md5::Md5Hash;
use super::scram::{ScramKeys, Verifier};
use crate::config::model::Secret;
use crate::error::{ErrorKind, Report, UserFacing};

/// What is stored of a user's password.
#[derive(Clone, Debug)]
pub enum UserSecret {
    Plain(PlainSecret),
    Md5(Md5Hash),
    Scram(Arc<Verifier>),
}

/// A password in clear text, with the SCRAM keys made of it at first use.
#[derive(Clone, Debug)]
pub struct PlainSecret {
    password: Secret,
    keys: Arc<OnceLock<Arc<ScramKeys>>>,
}

impl PlainSecret {
    pub fn new(password: Secret) -> Self {
        Self {
            password,
            keys: Arc::default(),
        }
    }

    pub fn password(&self) -> &Secret {
        &self.password
    }

    /// Keys under a salt of this process. The first call costs about 2 ms of CPU.
    pub fn scram_keys(&self) -> &Arc<ScramKeys> {
        self.keys
            .get_or_init(|| Arc::new(ScramKeys::fresh(self.password.expose())))
    }
}

impl UserSecret {
    /// Reads a stored password as PostgreSQL's `pg_authid.rolpassword` and PgBouncer's userlist have it.
    pub fn parse(text: &str) -> Self {
        if let Some(hash) = Md5Hash::parse(text) {
            Self::Md5(hash)
        } else if let Some(verifier) = Verifier::parse(text) {
            Self::Scram(Arc::new(verifier))
        } else {
            Self::Plain(PlainSecret::new(Secret::new(text.to_owned())))
        }
    }

    /// The verifier for a SCRAM login; `None` if only an md5 hash is known.
    /// For a password in clear text the first call costs about 2 ms of CPU.
    pub fn verifier(&self) -> Option<Arc<Verifier>> {
        match self {
            Self::Plain(secret) => Some(Arc::new(secret.scram_keys().verifier())),
            Self::Md5(_) => None,
            Self::Scram(verifier) => Some(Arc::clone(verifier)),
        }
    }

    /// Whether `password` is the one. For a SCRAM verifier it costs about 2 ms of CPU.
    pub fn accepts(&self, user: &str, password: &Secret) -> bool {
        match self {
            Self::Plain(secret) => {
                let expected = secret.password.expose().as_bytes();
                bool::from(expected.ct_eq(password.expose().as_bytes()))
            }
            Self::Md5(hash) => hash.accepts(password.expose(), user.as_bytes()),
            Self::Scram(verifier) => verifier.accepts(password.expose()),
        }
    }
}

/// The answer of a [`SecretSource`], boxed so that the trait can be used as an object.
pub type Lookup<'a> =
    Pin<Box<dyn Future<Output = Result<Option<UserSecret>, LookupError>> + Send + 'a>>;

/// Where stored passwords come from.
pub trait SecretSource: Send + Sync {
    /// The secret of `user` for a login to `database`; `None` if the user is unknown or may not log in.
    fn lookup<'a>(&'a self, user: &'a str, database: &'a str) -> Lookup<'a>;
}

/// The source itself failed, which says nothing about the user.
#[derive(Clone, Debug, thiserror::Error)]
#[error("could not look up the user's secret: {}", .report.message)]
pub struct LookupError {
    /// What the client is told.
    pub report: Report,
    pub kind: ErrorKind,
}

impl UserFacing for LookupError {
    fn report(&self) -> Report {
        self.report.clone()
    }

    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn each_stored_form_is_recognised_and_accepts_its_password_only() {
        let keys = ScramKeys::derive("secret", b"salt", 2);
        let forms = [
            "secret".to_owned(),
            "md56a422f785c9e20873908ce25d1736ae2".to_owned(),
            keys.verifier().to_text(),
        ];
        let kinds = forms.map(|form| {
            let parsed = UserSecret::parse(&form);
            assert!(parsed.accepts("app", &secret("secret")));
            assert!(!parsed.accepts("app", &secret("secre")));
            assert!(!parsed.accepts("app", &secret("")));
            match parsed {
                UserSecret::Plain(_) => "plain",
                UserSecret::Md5(_) => "md5",
                UserSecret::Scram(_) => "scram",
            }
        });
        assert_eq!(kinds, ["plain", "md5", "scram"]);
    }

    #[test]
    fn clear_text_keeps_one_verifier_for_the_life_of_the_process() {
        let plain = UserSecret::parse("secret");
        let (first, second) = (plain.verifier().unwrap(), plain.clone().verifier().unwrap());
        assert_eq!(first, second);
        assert!(first.accepts("secret"));
    }

    #[test]
    fn a_secret_does_not_print() {
        for form in ["hunter2", "md56a422f785c9e20873908ce25d1736ae2"] {
            let printed = format!("{:?}", UserSecret::parse(form));
            assert!(!printed.contains(form), "{printed}");
            assert!(!printed.contains("6a422"), "{printed}");
        }
    }
}
