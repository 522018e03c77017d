//! TLS on both sides (rustls with ring), from the configuration's files.
//!
//! Contexts are immutable and cheap to build: a reload makes new ones, connections keep what they have.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificate;
use super::stream::{Plain, Stream};
use super::verify::{LibpqVerifier, Roots, Trust};
use crate::config::model::{ClientTls, ServerTls, SslMode};

/// The ALPN name registered for PostgreSQL; direct TLS requires it.
pub const ALPN: &[u8] = b"postgresql";

/// How a TLS session comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Negotiation {
    /// `SSLRequest` answered `S`.
    SslRequest,
    /// TLS from the first byte.
    Direct,
}

/// Why a configuration can't be used. For the operator, never for clients: it names files.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    #[error("could not read {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("could not read {}: {reason}", .path.display())]
    Pem { path: PathBuf, reason: String },
    #[error("no certificate found in {}", .path.display())]
    NoCertificate { path: PathBuf },
    #[error("sslmode {mode} requires {setting}")]
    Missing {
        mode: &'static str,
        setting: &'static str,
    },
    #[error("cert_file and key_file must be given together")]
    HalfAPair,
    #[error("direct TLS requires sslmode require, verify-ca or verify-full")]
    WeakDirect,
    #[error("certificates of {}: {reason}", .path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("TLS setup: {0}")]
    Setup(String),
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0}")]
    Handshake(#[from] io::Error),
    #[error("direct SSL connection was established without ALPN protocol negotiation extension")]
    NoAlpn,
    #[error("\"{0}\" can't be the name of a TLS server")]
    ServerName(String),
    #[error("SSL is disabled by sslmode")]
    Disabled,
}

/// TLS towards clients.
#[derive(Clone)]
pub struct ClientTlsContext {
    acceptor: TlsAcceptor,
    channel_binding: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for ClientTlsContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTlsContext")
    }
}

impl ClientTlsContext {
    /// `None` if TLS is not offered: `disable`, or `allow` and `prefer` without a certificate.
    pub fn from_config(config: &ClientTls) -> Result<Option<Self>, TlsConfigError> {
        if config.sslmode == SslMode::Disable {
            return Ok(None);
        }
        let pair = match read_pair(config.cert_file.as_deref(), config.key_file.as_deref())? {
            Some(pair) => pair,
            None if config.sslmode < SslMode::Require => return Ok(None),
            None => {
                return Err(TlsConfigError::Missing {
                    mode: mode_name(config.sslmode),
                    setting: "cert_file and key_file",
                });
            }
        };
        let verifier = client_verifier(config)?;
        let channel_binding = pair
            .chain
            .first()
            .and_then(|der| certificate::end_point_hash(der));
        let path = pair.path;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsConfigError::Setup(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(pair.chain, pair.key)
            .map_err(|error| TlsConfigError::Unusable {
                path,
                reason: error.to_string(),
            })?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Some(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            channel_binding: channel_binding.map(Arc::from),
        }))
    }

    /// The `tls-server-end-point` hash of the certificate clients see; with it SCRAM-SHA-256-PLUS can be offered.
    pub fn channel_binding(&self) -> Option<&[u8]> {
        self.channel_binding.as_deref()
    }

    /// Runs the handshake. Nothing of what the client sent after its `SSLRequest` may have been read yet.
    ///
    /// Not cancel safe: the transport is lost.
    pub async fn accept(&self, plain: Plain, how: Negotiation) -> Result<Stream, TlsError> {
        let tls = self.acceptor.accept(plain).await?;
        if how == Negotiation::Direct && tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(TlsError::NoAlpn);
        }
        Ok(Stream::TlsAccepted(Box::new(tls)))
    }
}

/// TLS towards servers.
#[derive(Clone)]
pub struct ServerTlsContext {
    sslmode: SslMode,
    negotiation: Negotiation,
    /// `None` with `disable`.
    connector: Option<TlsConnector>,
}

impl std::fmt::Debug for ServerTlsContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTlsContext")
            .field("sslmode", &self.sslmode)
            .field("negotiation", &self.negotiation)
            .finish_non_exhaustive()
    }
}

impl ServerTlsContext {
    /// No TLS.
    pub fn disabled() -> Self {
        Self {
            sslmode: SslMode::Disable,
            negotiation: Negotiation::SslRequest,
            connector: None,
        }
    }

    pub fn from_config(config: &ServerTls) -> Result<Self, TlsConfigError> {
        if config.sslmode == SslMode::Disable {
            return Ok(Self::disabled());
        }
        if config.direct && config.sslmode < SslMode::Require {
            return Err(TlsConfigError::WeakDirect);
        }
        let provider = provider();
        let verifier = LibpqVerifier {
            trust: server_trust(config, &provider)?,
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsConfigError::Setup(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut client = match read_pair(config.cert_file.as_deref(), config.key_file.as_deref())? {
            None => builder.with_no_client_auth(),
            Some(pair) => builder
                .with_client_auth_cert(pair.chain, pair.key)
                .map_err(|error| TlsConfigError::Unusable {
                    path: pair.path,
                    reason: error.to_string(),
                })?,
        };
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self {
            sslmode: config.sslmode,
            negotiation: if config.direct {
                Negotiation::Direct
            } else {
                Negotiation::SslRequest
            },
            connector: Some(TlsConnector::from(Arc::new(client))),
        })
    }

    pub fn sslmode(&self) -> SslMode {
        self.sslmode
    }

    pub fn negotiation(&self) -> Negotiation {
        self.negotiation
    }

    /// Runs the handshake with the server called `host`.
    ///
    /// Not cancel safe: the transport is lost.
    pub async fn handshake(&self, plain: Plain, host: &str) -> Result<Stream, TlsError> {
        let connector = self.connector.as_ref().ok_or(TlsError::Disabled)?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| TlsError::ServerName(host.to_owned()))?;
        let tls = connector.connect(name, plain).await?;
        if self.negotiation == Negotiation::Direct && tls.get_ref().1.alpn_protocol() != Some(ALPN)
        {
            return Err(TlsError::NoAlpn);
        }
        Ok(Stream::TlsConnected(Box::new(tls)))
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn mode_name(mode: SslMode) -> &'static str {
    match mode {
        SslMode::Disable => "disable",
        SslMode::Allow => "allow",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    }
}

/// Client certificates: demanded by `verify-ca` and `verify-full`, else asked for and verified if sent.
fn client_verifier(config: &ClientTls) -> Result<Arc<dyn ClientCertVerifier>, TlsConfigError> {
    let demanded = config.sslmode >= SslMode::VerifyCa;
    let Some(path) = config.ca_file.as_deref() else {
        return if demanded {
            Err(TlsConfigError::Missing {
                mode: mode_name(config.sslmode),
                setting: "ca_file",
            })
        } else {
            Ok(WebPkiClientVerifier::no_client_auth())
        };
    };
    let store = root_store(path, &read_certificates(path)?)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider());
    let builder = if demanded {
        builder
    } else {
        builder.allow_unauthenticated()
    };
    builder.build().map_err(|error| TlsConfigError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// libpq checks the chain in every mode once it has a root file, and the name in `verify-full` only.
fn server_trust(
    config: &ServerTls,
    provider: &Arc<CryptoProvider>,
) -> Result<Trust, TlsConfigError> {
    let Some(path) = config.ca_file.as_deref() else {
        return if config.sslmode < SslMode::VerifyCa {
            Ok(Trust::Anything)
        } else {
            Err(TlsConfigError::Missing {
                mode: mode_name(config.sslmode),
                setting: "ca_file",
            })
        };
    };
    let certificates = read_certificates(path)?;
    let store = Arc::new(root_store(path, &certificates)?);
    let webpki = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider))
        .build()
        .map_err(|error| TlsConfigError::Unusable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    let roots = Roots {
        certificates,
        webpki,
    };
    Ok(if config.sslmode == SslMode::VerifyFull {
        Trust::ChainAndName(roots)
    } else {
        Trust::Chain(roots)
    })
}

pub(super) struct Pair {
    pub(super) path: PathBuf,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

pub(super) fn read_pair(
    cert: Option<&Path>,
    key: Option<&Path>,
) -> Result<Option<Pair>, TlsConfigError> {
    match (cert, key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(Pair {
            path: cert.to_owned(),
            chain: read_certificates(cert)?,
            key: read_key(key)?,
        })),
        _ => Err(TlsConfigError::HalfAPair),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsConfigError> {
    std::fs::read(path).map_err(|source| TlsConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem_error(path, &error))?;
    if certificates.is_empty() {
        return Err(TlsConfigError::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsConfigError> {
    let bytes = zeroize::Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| pem_error(path, &error))
}

fn pem_error(path: &Path, error: &pem::Error) -> TlsConfigError {
    let reason = match error {
        pem::Error::NoItemsFound => "no unencrypted PEM item of the expected kind found".to_owned(),
        other => other.to_string(),
    };
    TlsConfigError::Pem {
        path: path.to_owned(),
        reason,
    }
}

fn root_store(
    path: &Path,
    certificates: &[CertificateDer<'static>],
) -> Result<RootCertStore, TlsConfigError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store
            .add(certificate.clone())
            .map_err(|error| TlsConfigError::Unusable {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
    }
    Ok(store)
}

#[cfg(test)]
mod tests;
