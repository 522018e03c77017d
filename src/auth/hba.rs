//! `pg_hba.conf` rules: who may connect from where, and how they must prove who they are.
//!
//! The first rule that fits a connection decides, as in PostgreSQL; nothing falls through to a later one. What
//! PostgreSQL knows and pgweir does not is a problem at load, never a rule that silently fits nobody.

mod parse;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::cert;
use super::ident::IdentMaps;
use crate::error::{ErrorKind, Report, SqlState, UserFacing};

pub(crate) use parse::{Token, logical_lines, tokenize};

/// The rules of a file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hba {
    rules: Vec<Rule>,
}

/// What is wrong with a line of `pg_hba.conf` or `pg_ident.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HbaProblem {
    pub line: usize,
    pub message: String,
}

impl fmt::Display for HbaProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.message)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where the rule begins in its file.
    pub line: usize,
    pub connection: ConnectionType,
    pub databases: Vec<DatabaseMatch>,
    pub users: Vec<UserMatch>,
    /// What `local` rules do not have.
    pub address: AddressMatch,
    pub method: HbaMethod,
    pub clientcert: Option<ClientCert>,
    /// Name of an ident map, for `peer` and `cert`.
    pub map: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionType {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
    /// Fits nobody: pgweir does not speak GSSAPI encryption.
    HostGssEnc,
    /// Fits every TCP connection, for the same reason.
    HostNoGssEnc,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseMatch {
    All,
    SameUser,
    Replication,
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserMatch {
    All,
    Name(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressMatch {
    All,
    Network { address: IpAddr, mask: IpAddr },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HbaMethod {
    Trust,
    Reject,
    Md5,
    ScramSha256,
    Password,
    Peer,
    Cert,
}

/// What `clientcert=` asks beside the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert {
    VerifyCa,
    VerifyFull,
}

/// What is known of a connection when its `StartupMessage` has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionFacts<'a> {
    pub tls: bool,
    /// `None` on a Unix socket.
    pub peer: Option<IpAddr>,
    pub database: &'a str,
    pub user: &'a str,
    /// A physical replication connection (`replication=true`). A logical one names a database and is an ordinary
    /// connection here.
    pub replication: bool,
    /// Whether the client sent a certificate that TLS has verified.
    pub verified_certificate: bool,
    pub common_name: Option<&'a str>,
}

impl Hba {
    /// Reads the whole text; all problems at once. `@file` is a problem here: see [`Hba::load`].
    pub fn parse(text: &str) -> Result<Self, Vec<HbaProblem>> {
        parse::parse(text, None).map(|rules| Self { rules })
    }

    /// Reads a file, and the files its `@file` names refer to, relative to its folder.
    /// The inner result is [`Hba::parse`]'s.
    pub fn load(path: &Path) -> io::Result<Result<Self, Vec<HbaProblem>>> {
        let text = std::fs::read_to_string(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(parse::parse(&text, Some(folder)).map(|rules| Self { rules }))
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule that decides, if any fits.
    pub fn decide(&self, facts: &ConnectionFacts<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.fits(facts))
    }

    /// The rule that decides, unless it refuses already: no rule, `reject`, or a missing or wrong certificate.
    /// What remains is the exchange its method asks; `cert` asks none.
    pub fn admit(
        &self,
        facts: &ConnectionFacts<'_>,
        maps: &IdentMaps,
    ) -> Result<&Rule, HbaRefusal> {
        let rule = self
            .decide(facts)
            .ok_or_else(|| HbaRefusal::NoEntry(Description::of(facts)))?;
        if rule.method == HbaMethod::Reject {
            return Err(HbaRefusal::Rejected(Description::of(facts)));
        }
        let needs_name =
            rule.method == HbaMethod::Cert || rule.clientcert == Some(ClientCert::VerifyFull);
        if (needs_name || rule.clientcert.is_some()) && !facts.verified_certificate {
            return Err(HbaRefusal::CertificateMissing);
        }
        let map = rule.map.as_deref();
        if needs_name && !cert::permits(facts.common_name, facts.user, map, maps) {
            return Err(HbaRefusal::CertificateName(facts.user.to_owned()));
        }
        Ok(rule)
    }
}

impl Rule {
    fn fits(&self, facts: &ConnectionFacts<'_>) -> bool {
        self.fits_connection(facts)
            && self.databases.iter().any(|database| database.fits(facts))
            && self.users.iter().any(|user| user.fits(facts.user))
    }

    fn fits_connection(&self, facts: &ConnectionFacts<'_>) -> bool {
        let Some(peer) = facts.peer else {
            return self.connection == ConnectionType::Local;
        };
        let fits = match self.connection {
            ConnectionType::Local | ConnectionType::HostGssEnc => false,
            ConnectionType::Host | ConnectionType::HostNoGssEnc => true,
            ConnectionType::HostSsl => facts.tls,
            ConnectionType::HostNoSsl => !facts.tls,
        };
        fits && self.address.fits(peer)
    }
}

impl DatabaseMatch {
    fn fits(&self, facts: &ConnectionFacts<'_>) -> bool {
        match self {
            Self::Replication => facts.replication,
            _ if facts.replication => false,
            Self::All => true,
            Self::SameUser => facts.database == facts.user,
            Self::Name(name) => name == facts.database,
        }
    }
}

impl UserMatch {
    fn fits(&self, user: &str) -> bool {
        match self {
            Self::All => true,
            Self::Name(name) => name == user,
        }
    }
}

impl AddressMatch {
    /// An IPv4 peer of a dual-stack socket (`::ffff:a.b.c.d`) counts as IPv4.
    fn fits(&self, peer: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Network { address, mask } => match (peer.to_canonical(), address, mask) {
                (IpAddr::V4(peer), IpAddr::V4(address), IpAddr::V4(mask)) => {
                    peer.to_bits() & mask.to_bits() == address.to_bits() & mask.to_bits()
                }
                (IpAddr::V6(peer), IpAddr::V6(address), IpAddr::V6(mask)) => {
                    peer.to_bits() & mask.to_bits() == address.to_bits() & mask.to_bits()
                }
                _ => false,
            },
        }
    }
}

/// A connection as PostgreSQL's messages describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description(String);

impl Description {
    fn of(facts: &ConnectionFacts<'_>) -> Self {
        let host = facts
            .peer
            .map_or_else(|| "[local]".to_owned(), |ip| ip.to_canonical().to_string());
        let encryption = if facts.tls {
            "SSL encryption"
        } else {
            "no encryption"
        };
        let (user, database) = (facts.user, facts.database);
        Self(if facts.replication {
            format!("replication connection from host \"{host}\", user \"{user}\", {encryption}")
        } else {
            format!("host \"{host}\", user \"{user}\", database \"{database}\", {encryption}")
        })
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a connection is refused before any exchange, in PostgreSQL's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HbaRefusal {
    #[error("no pg_hba.conf entry for {0}")]
    NoEntry(Description),
    #[error("pg_hba.conf rejects connection for {0}")]
    Rejected(Description),
    #[error("connection requires a valid client certificate")]
    CertificateMissing,
    #[error("certificate authentication failed for user \"{0}\"")]
    CertificateName(String),
}

impl UserFacing for HbaRefusal {
    fn report(&self) -> Report {
        match self {
            Self::NoEntry(_)
            | Self::Rejected(_)
            | Self::CertificateMissing
            | Self::CertificateName(_) => {
                Report::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string())
            }
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Client
    }
}

#[cfg(test)]
mod tests;
