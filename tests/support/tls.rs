//! Certificates made on the spot, and TLS from the test's side.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::client::{Client, Login};
use super::messages::{self, ServerError};
use super::wait::within_limit;

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// An authority that signs whatever a test needs.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        name(&mut params, "pgweir test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// Its own certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A server's identity for these names and addresses.
    pub fn server(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        name(&mut params, "pgweir test server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    /// A client's identity: `user` is the common name.
    pub fn client(&self, user: &str) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        name(&mut params, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        Identity {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// What a client needs to trust this authority, and to prove who it is if `identity` is given.
    pub fn client_config(&self, identity: Option<&Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.certificate)).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
        match identity {
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(vec![certificate(&identity.certificate)], key)
                    .unwrap()
            }
            None => builder.with_no_client_auth(),
        }
    }
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key` into `folder` and returns their paths.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        (
            write_private(folder, &format!("{name}.crt"), &self.certificate),
            write_private(folder, &format!("{name}.key"), &self.key),
        )
    }
}

/// Writes a file that only its owner can read.
pub fn write_private(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&path).unwrap();
    std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
    path
}

/// Connects with TLS after an SSLRequest, as `host`, and logs in.
pub async fn connect(
    address: SocketAddr,
    config: ClientConfig,
    host: &str,
    login: &Login,
) -> Result<Client, ServerError> {
    let mut client = encrypt(address, config, host).await;
    client.log_in(login).await?;
    Ok(client)
}

/// Connects with TLS after an SSLRequest, as `host`.
pub async fn encrypt(address: SocketAddr, config: ClientConfig, host: &str) -> Client {
    let mut client = Client::open(address).await;
    client.send(&messages::ssl_request()).await;
    assert_eq!(client.read_exact(1).await, b"S", "TLS was refused");
    handshake(client, config, host).await
}

/// Connects with direct TLS (`sslnegotiation=direct`) and logs in.
pub async fn connect_directly(
    address: SocketAddr,
    mut config: ClientConfig,
    host: &str,
    login: &Login,
) -> Result<Client, ServerError> {
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let mut client = handshake(Client::open(address).await, config, host).await;
    client.log_in(login).await?;
    Ok(client)
}

async fn handshake(client: Client, config: ClientConfig, host: &str) -> Client {
    let connector = TlsConnector::from(Arc::new(config));
    let host = ServerName::try_from(host.to_owned()).unwrap();
    let handshake = connector.connect(host, client.into_transport());
    let stream = within_limit("a TLS handshake", handshake).await;
    Client::over(stream.expect("a TLS handshake"))
}

fn name(params: &mut CertificateParams, common_name: &str) {
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}
