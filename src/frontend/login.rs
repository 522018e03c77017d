//! Letting a client in: which method its connection falls under, the exchange, and what the proof is worth towards
//! the server.
//!
//! `passthrough` is the default: the client's password is tried on the server. What is kept of it is a SCRAM verifier
//! for the next client and the keys that log in to this one server; the password itself only where the server wants it
//! in clear text.

use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::time::Instant;

use super::authenticate::{self, AuthError, Proof};
use crate::auth::hba::{ConnectionFacts, HbaMethod, HbaRefusal};
use crate::auth::scram::ScramKeys;
use crate::auth::secrets::{LookupError, SecretSource, UserSecret};
use crate::backend::connection::Backend;
use crate::backend::login::{Credentials, LoginError, UpstreamAuth};
use crate::config::model::{AuthMethod, Secret};
use crate::error::{ErrorKind, Report, SqlState, UserFacing};
use crate::net::departure::unless_gone;
use crate::net::stream::Stream;
use crate::net::tls::ClientTlsContext;
use crate::pool::Pool;
use crate::pool::open::{OpenError, Opened};
use crate::pool::passthrough::Learnt;
use crate::shared::Shared;
use crate::wire::startup::StartupMessage;

/// Why a client was not let in.
#[derive(Debug, Error)]
pub enum Denied {
    #[error("{0}")]
    Auth(#[from] AuthError),
    #[error("{0}")]
    Hba(#[from] HbaRefusal),
    #[error("{0}")]
    Lookup(#[from] LookupError),
    /// The server's answer to the client's password, or why the server could not be asked.
    #[error("{0}")]
    Server(#[from] OpenError),
    #[error("authentication by password needs an encrypted connection")]
    Insecure,
}

impl UserFacing for Denied {
    fn report(&self) -> Report {
        match self {
            Self::Auth(error) => error.report(),
            Self::Hba(error) => error.report(),
            Self::Lookup(error) => error.report(),
            Self::Server(error) => error.report(),
            Self::Insecure => Report::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string()).hint(
                "auth.method = \"passthrough\" asks for the password in clear text: connect with TLS (tls.client.*), \
                 from the same host, or use auth.method = \"scram-sha-256\".",
            ),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Auth(error) => error.kind(),
            Self::Hba(error) => error.kind(),
            Self::Lookup(error) => error.kind(),
            Self::Server(error) => error.kind(),
            Self::Insecure => ErrorKind::Client,
        }
    }
}

/// Who wants in, and where to.
#[derive(Debug)]
pub struct Applicant<'a> {
    pub stream: &'a mut Stream,
    /// What the stream's TLS began with: another certificate may have been loaded since.
    pub tls: Option<&'a ClientTlsContext>,
    /// `None` on a Unix socket.
    pub address: Option<IpAddr>,
    pub message: &'a StartupMessage,
    pub user: &'a str,
    pub database: &'a str,
}

/// How one connection is to prove itself.
#[derive(Debug)]
struct Method {
    exchange: AuthMethod,
    map: Option<String>,
    /// A plain-text password checked against the userlist or `auth_query`.
    checks_cleartext: bool,
}

impl Applicant<'_> {
    /// The outcome of `work`, unless the client goes before it is done.
    async fn unless_gone<T>(&self, work: impl Future<Output = T>) -> Result<T, Denied> {
        let outcome = unless_gone(self.stream, work).await;
        outcome.map_err(|error| AuthError::from(error).into())
    }

    fn is_private(&self) -> bool {
        self.stream.is_tls() || self.address.is_none_or(|address| address.is_loopback())
    }

    /// Whether it asks for physical replication. To a server, and to rules, that is another database: what is found out
    /// about such a login says nothing about ordinary ones, nor the other way round.
    fn is_physical(&self) -> bool {
        let replication = self.message.replication.as_deref();
        replication.is_some_and(|value| value != b"database")
    }

    fn facts<'f>(&'f self, common_name: Option<&'f str>) -> ConnectionFacts<'f> {
        ConnectionFacts {
            tls: self.stream.is_tls(),
            peer: self.address,
            database: self.database,
            user: self.user,
            replication: self.is_physical(),
            verified_certificate: self.stream.peer_certificate().is_some(),
            common_name,
        }
    }
}

/// Runs the exchange. On return the client has proved itself and `pool` can log in to the server for it; a client that
/// asks for physical replication by what is returned, unless that is `None`.
///
/// What most connections do not come to is boxed, here and around: a login's future is moved several times, and would
/// be ten times as large.
pub async fn authenticate(
    mut applicant: Applicant<'_>,
    shared: &Shared,
    pool: Option<&Arc<Pool>>,
) -> Result<Option<Credentials>, Denied> {
    let how = method(&applicant, shared)?;
    if how.checks_cleartext {
        return Box::pin(check_cleartext(&mut applicant, shared, pool)).await;
    }
    match how.exchange {
        AuthMethod::Trust => Ok(None),
        AuthMethod::Cert => {
            let common_name = applicant.stream.peer_common_name();
            let presented = applicant.stream.peer_certificate().is_some();
            let maps = &shared.access.load().ident;
            authenticate::certificate(
                presented,
                common_name.as_deref(),
                applicant.user,
                how.map.as_deref(),
                maps,
            )?;
            Ok(None)
        }
        AuthMethod::Peer => {
            let uid = applicant.stream.peer_uid().map_err(AuthError::from)?;
            let access = shared.access.load_full();
            let (user, map) = (applicant.user, how.map.as_deref());
            Box::pin(authenticate::peer(uid, user, map, &access.ident)).await?;
            Ok(None)
        }
        AuthMethod::ScramSha256 | AuthMethod::Md5 => {
            Box::pin(by_secret(&mut applicant, how.exchange, shared, pool)).await
        }
        AuthMethod::Passthrough => match pool {
            Some(pool) if applicant.is_physical() => {
                Box::pin(pass_replication(&mut applicant, shared, pool)).await
            }
            Some(pool) => {
                Box::pin(passthrough(&mut applicant, shared, pool)).await?;
                Ok(None)
            }
            // The console has no server to ask.
            None => Box::pin(check_cleartext(&mut applicant, shared, None)).await,
        },
        // `method` has replaced it by the rule's own.
        AuthMethod::Hba => Err(Denied::Insecure),
    }
}

fn method(applicant: &Applicant<'_>, shared: &Shared) -> Result<Method, Denied> {
    let config = shared.config.load();
    let of = |exchange| Method {
        exchange,
        map: None,
        checks_cleartext: false,
    };
    if config.auth.method != AuthMethod::Hba {
        return Ok(of(config.auth.method));
    }
    let access = shared.access.load();
    let common_name = applicant.stream.peer_common_name();
    let rule = access
        .hba
        .admit(&applicant.facts(common_name.as_deref()), &access.ident)?;
    let map = rule.map.clone();
    Ok(match rule.method {
        HbaMethod::Trust | HbaMethod::Reject => of(AuthMethod::Trust),
        HbaMethod::Md5 => of(AuthMethod::Md5),
        HbaMethod::ScramSha256 => of(AuthMethod::ScramSha256),
        HbaMethod::Password => Method {
            checks_cleartext: true,
            ..of(AuthMethod::Trust)
        },
        HbaMethod::Peer => Method {
            map,
            ..of(AuthMethod::Peer)
        },
        HbaMethod::Cert => Method {
            map,
            ..of(AuthMethod::Cert)
        },
    })
}

/// The user's secret: from the userlist, else from `auth_query`.
async fn secret(applicant: &Applicant<'_>, shared: &Shared) -> Result<Option<UserSecret>, Denied> {
    if let Some(secret) = shared.access.load().userlist.get(applicant.user) {
        return Ok(Some(secret.clone()));
    }
    let lookup = shared.secrets.lookup(applicant.user, applicant.database);
    Ok(applicant.unless_gone(lookup).await??)
}

async fn by_secret(
    applicant: &mut Applicant<'_>,
    method: AuthMethod,
    shared: &Shared,
    pool: Option<&Arc<Pool>>,
) -> Result<Option<Credentials>, Denied> {
    let secret = secret(applicant, shared).await?;
    let tls = applicant.tls.filter(|_| applicant.stream.is_tls());
    let binding = tls.and_then(ClientTlsContext::channel_binding);
    let (stream, user) = (&mut *applicant.stream, applicant.user);
    let proof = if method == AuthMethod::Md5 {
        authenticate::md5(stream, user, secret.as_ref(), &shared.mock, binding).await
    } else {
        authenticate::scram(stream, user, secret.as_ref(), &shared.mock, binding)
            .await
            .map(Proof::ScramKeys)
    };
    let proof = proof.inspect_err(|_| shared.secrets.forget(user))?;
    let credentials = match (secret, proof) {
        // A password is good for whatever the server asks.
        (Some(UserSecret::Plain(plain)), _) => Credentials::Password(plain.password().clone()),
        (_, Proof::ScramKeys(keys)) => Credentials::ScramKeys(keys),
        (_, Proof::Md5(hash)) => Credentials::Md5(hash),
        (_, Proof::Password(password)) => Credentials::Password(password),
    };
    Ok(entrust(applicant, pool, credentials))
}

async fn check_cleartext(
    applicant: &mut Applicant<'_>,
    shared: &Shared,
    pool: Option<&Arc<Pool>>,
) -> Result<Option<Credentials>, Denied> {
    if !applicant.is_private() {
        return Err(Denied::Insecure);
    }
    let secret = secret(applicant, shared).await?;
    let password = authenticate::cleartext(applicant.stream, applicant.user).await?;
    authenticate::check_cleartext(applicant.user, &password, secret.as_ref(), &shared.mock)
        .await
        .inspect_err(|_| shared.secrets.forget(applicant.user))?;
    let credentials = Credentials::Password(password);
    Ok(entrust(applicant, pool, credentials))
}

/// Gives the pool what it logs in with, unless the configuration says that already. What is for physical replication is
/// returned instead.
fn entrust(
    applicant: &Applicant<'_>,
    pool: Option<&Arc<Pool>>,
    credentials: Credentials,
) -> Option<Credentials> {
    let pool = pool.filter(|pool| pool.effective.load().login_password.is_none())?;
    if applicant.is_physical() {
        return Some(credentials);
    }
    pool.set_credentials(credentials);
    None
}

/// [`passthrough`] for physical replication: the server is asked each time.
async fn pass_replication(
    applicant: &mut Applicant<'_>,
    shared: &Shared,
    pool: &Arc<Pool>,
) -> Result<Option<Credentials>, Denied> {
    {
        let _turn = applicant.unless_gone(pool.turn_to_try()).await?;
        let tried = try_login(shared, pool, applicant, &Credentials::None);
        match applicant.unless_gone(tried).await? {
            Ok(tried) => return Ok(tried.credentials()),
            Err(OpenError::Login(LoginError::PasswordNeeded { .. })) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let password = private_password(applicant).await?;
    let _turn = applicant.unless_gone(pool.turn_to_try()).await?;
    let credentials = Credentials::Password(password);
    let tried = try_login(shared, pool, applicant, &credentials);
    Ok(applicant.unless_gone(tried).await??.credentials())
}

/// The client's password in clear text, where nobody else can read it.
async fn private_password(applicant: &mut Applicant<'_>) -> Result<Secret, Denied> {
    if !applicant.is_private() {
        return Err(Denied::Insecure);
    }
    Ok(authenticate::cleartext(applicant.stream, applicant.user).await?)
}

/// Tries the client's password on the server, or without one where the server asks for none.
async fn passthrough(
    applicant: &mut Applicant<'_>,
    shared: &Shared,
    pool: &Arc<Pool>,
) -> Result<(), Denied> {
    if !needs_password(applicant, shared, pool).await? {
        return Ok(());
    }
    let password = private_password(applicant).await?;
    if fits_learnt(applicant.user, &password, shared, pool).await {
        return Ok(());
    }
    let _turn = applicant.unless_gone(pool.turn_to_try()).await?;
    // The client that had its turn before may have shown the same password.
    if fits_learnt(applicant.user, &password, shared, pool).await {
        return Ok(());
    }
    // A password that is wrong by what was learnt may have been changed since: the server is asked.
    let credentials = Credentials::Password(password.clone());
    let tried = try_login(shared, pool, applicant, &credentials);
    applicant.unless_gone(tried).await??.keep(pool);
    if let Some(verifier) = verifier_of(password).await {
        pool.learn(Learnt::Verifier(verifier), Instant::now());
    }
    Ok(())
}

/// Whether the server asks the user for a password, by what was learnt or by trying.
async fn needs_password(
    applicant: &Applicant<'_>,
    shared: &Shared,
    pool: &Arc<Pool>,
) -> Result<bool, Denied> {
    let ttl = shared.config.load().auth.cache_ttl;
    let known = || match pool.learnt(ttl) {
        None => None,
        Some(Learnt::NoPassword) => Some(false),
        Some(Learnt::Verifier(_)) => Some(true),
    };
    if let Some(needed) = known() {
        return Ok(needed);
    }
    let _turn = applicant.unless_gone(pool.turn_to_try()).await?;
    if let Some(needed) = known() {
        return Ok(needed);
    }
    let tried = try_login(shared, pool, applicant, &Credentials::None);
    match applicant.unless_gone(tried).await? {
        Ok(tried) => {
            tried.keep(pool);
            pool.learn(Learnt::NoPassword, Instant::now());
            Ok(false)
        }
        Err(OpenError::Login(LoginError::PasswordNeeded { .. })) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Whether the password is the one that was learnt.
async fn fits_learnt(user: &str, password: &Secret, shared: &Shared, pool: &Arc<Pool>) -> bool {
    let ttl = shared.config.load().auth.cache_ttl;
    let Some(Learnt::Verifier(verifier)) = pool.learnt(ttl) else {
        return false;
    };
    let secret = UserSecret::Scram(verifier);
    authenticate::check_cleartext(user, password, Some(&secret), &shared.mock)
        .await
        .is_ok()
}

async fn verifier_of(password: Secret) -> Option<Arc<crate::auth::scram::Verifier>> {
    let hashed =
        tokio::task::spawn_blocking(move || ScramKeys::fresh(password.expose()).verifier());
    // It can fail only while the runtime shuts down.
    hashed.await.ok().map(Arc::new)
}

/// A login that the server took.
struct Tried {
    backend: Backend,
    /// What logs in again; `None` where the pool logs in as somebody else.
    credentials: Option<Credentials>,
    is_replication: bool,
}

impl Tried {
    fn credentials(self) -> Option<Credentials> {
        self.credentials
    }

    /// Has the pool log in so. The connection goes to it, if it is one the pool would make itself.
    fn keep(self, pool: &Arc<Pool>) {
        let Some(credentials) = self.credentials else {
            return;
        };
        pool.set_credentials(credentials);
        let settings = &pool.effective.load().pool;
        if !self.is_replication
            && !pool.is_held()
            && pool.open() < settings.max_size
            && let Ok(slot) = pool.reserve(settings)
        {
            pool.adopt(self.backend, slot);
        }
    }
}

/// Logs in to the server as the client.
async fn try_login(
    shared: &Shared,
    pool: &Arc<Pool>,
    applicant: &Applicant<'_>,
    credentials: &Credentials,
) -> Result<Tried, OpenError> {
    let user = applicant.user;
    let (generation, effective) = pool.opens_with();
    let mut effective = effective.as_ref().clone();
    let is_forced = effective.login_user != user;
    user.clone_into(&mut effective.login_user);
    // Other rules may hold for replication, and its database need not exist.
    let replication = applicant.message.replication.as_deref();
    if let Some(value) = replication {
        let value = String::from_utf8_lossy(value).into_owned();
        effective.startup.push(("replication".to_owned(), value));
        effective.pool.connect_query = None;
    }
    let dialer = shared.pools.dialer.load_full();
    let opened = pool.open_in_turn(&effective, credentials, &dialer, generation);
    let Opened { backend, logged_in } = Box::pin(opened).await?;
    let again = match (logged_in.method, logged_in.learned, credentials) {
        (UpstreamAuth::Trust, ..) => Credentials::None,
        (UpstreamAuth::Scram, Some(keys), _) => Credentials::ScramKeys(keys),
        (UpstreamAuth::Md5, _, Credentials::Password(password)) => Credentials::Md5(
            crate::auth::md5::Md5Hash::new(password.expose(), user.as_bytes()),
        ),
        (_, _, credentials) => credentials.clone(),
    };
    Ok(Tried {
        backend,
        credentials: (!is_forced).then_some(again),
        is_replication: replication.is_some(),
    })
}
