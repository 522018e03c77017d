//! TLS of the HTTP listener: a certificate of its own, no client certificates, no ALPN but HTTP's.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::stream::{Plain, Stream};
use super::tls::{TlsConfigError, provider, read_pair};
use crate::config::model::Http;

/// The only protocol served: HTTP/2 would let one connection ask for many things at once.
const ALPN: &[u8] = b"http/1.1";

/// See the module.
#[derive(Clone)]
pub struct HttpsContext {
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for HttpsContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpsContext")
    }
}

impl HttpsContext {
    /// `None` if HTTP is spoken in clear text.
    pub fn from_config(config: &Http) -> Result<Option<Self>, TlsConfigError> {
        let Some(pair) = read_pair(config.cert_file.as_deref(), config.key_file.as_deref())? else {
            return Ok(None);
        };
        let path = pair.path;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsConfigError::Setup(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(pair.chain, pair.key)
            .map_err(|error| TlsConfigError::Unusable {
                path,
                reason: error.to_string(),
            })?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Some(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
        }))
    }

    /// Runs the handshake. Not cancel safe: the connection is lost.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Stream> {
        let tls = self.acceptor.accept(Plain::Tcp(tcp)).await?;
        Ok(Stream::TlsAccepted(Box::new(tls)))
    }
}
