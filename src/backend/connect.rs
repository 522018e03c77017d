//! Reaching a server: dial, TLS, login. Replaced as a whole at reload.

pub use crate::net::connect::{ConnectError, Encryption, Target, leads_to};

use std::sync::atomic::AtomicBool;

use thiserror::Error;
use tokio::time::Instant;

use super::connection::{Backend, Identity};
use super::login::{self, Credentials, LoggedIn, LoginError, ProtocolVersion};
use crate::config::model::{Config, Node, SslMode};
use crate::error::SqlState;
use crate::net::connect::{self, SocketOptions};
use crate::net::stream::Stream;
use crate::net::tls::{ServerTlsContext, TlsConfigError};
use crate::session::mirror::{Mirror, Reported};

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ReachError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Login(#[from] LoginError),
}

/// How a connection is to begin.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    pub node: &'a Node,
    /// The parameters of the startup packet, `user` and `database` among them.
    pub startup: &'a [(&'a [u8], &'a [u8])],
    pub credentials: &'a Credentials,
    /// Prepared statements the connection may hold.
    pub max_prepared: usize,
    pub generation: u64,
    /// Set once the server has said something.
    pub heard: &'a AtomicBool,
    /// When the caller gives up.
    pub until: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Dialer {
    tls: ServerTlsContext,
    options: SocketOptions,
}

impl Dialer {
    pub fn from_config(config: &Config) -> Result<Self, TlsConfigError> {
        let tls = ServerTlsContext::from_config(&config.server_tls)?;
        Ok(Self {
            tls,
            options: SocketOptions::from_config(&config.general),
        })
    }

    /// Without TLS and with the system's own options.
    pub fn plain() -> Self {
        Self {
            tls: ServerTlsContext::disabled(),
            options: SocketOptions::default(),
        }
    }

    pub fn sslmode(&self) -> SslMode {
        self.tls.sslmode()
    }

    /// The encryption to begin with.
    pub fn first(&self) -> Encryption {
        Encryption::first(self.tls.sslmode())
    }

    /// Cancel safe: a connection under way is closed.
    pub async fn connect(
        &self,
        target: Target<'_>,
        encryption: Encryption,
    ) -> Result<Stream, ConnectError> {
        connect::connect(target, &self.tls, encryption, &self.options).await
    }

    /// Connects and logs in; where `sslmode` knows a second way and the server refused the first, the second.
    /// Cancel safe: a connection under way is closed.
    pub async fn log_in(&self, login: Login<'_>) -> Result<(Backend, LoggedIn), ReachError> {
        let mut encryption = self.first();
        let target = Target {
            node: login.node,
            at: None,
            until: login.until,
        };
        loop {
            let mut stream = self.connect(target, encryption).await?;
            match login::login(
                &mut stream,
                ProtocolVersion::V3_0,
                login.startup,
                login.credentials,
                login.heard,
            )
            .await
            {
                Ok(logged_in) => return Ok((backend(stream, login, &logged_in), logged_in)),
                Err(LoginError::Server(error)) => match Encryption::second(self.sslmode(), &stream)
                {
                    Some(second)
                        if second != encryption
                            && error.code == SqlState::INVALID_AUTHORIZATION =>
                    {
                        encryption = second;
                    }
                    _ => return Err(LoginError::Server(error).into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn backend(stream: Stream, login: Login<'_>, logged_in: &LoggedIn) -> Backend {
    let mut reported = Reported::default();
    for (name, value) in &logged_in.parameters {
        reported.set(name, value);
    }
    let mirror = Mirror::new(reported.into(), login.max_prepared);
    let encryption = Encryption::same_as(&stream);
    let mut identity = Identity::new(
        login.node.clone(),
        logged_in.pid,
        logged_in.cancel_key.clone(),
        encryption,
    );
    identity.peer = stream.peer_addr();
    Backend::new(stream, identity, mirror, login.generation)
}
