//! How this process reaches servers: TLS and socket options, replaced as a whole at reload.

use crate::config::model::{Config, Node, SslMode};
use crate::net::connect::{self, ConnectError, Encryption, SocketOptions};
use crate::net::stream::Stream;
use crate::net::tls::{ServerTlsContext, TlsConfigError};

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
        node: &Node,
        encryption: Encryption,
    ) -> Result<Stream, ConnectError> {
        connect::connect(node, &self.tls, encryption, &self.options).await
    }
}
