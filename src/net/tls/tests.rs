use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Certificates in a folder: `ca.crt`, `db.crt` (for localhost), `cn.crt` (common name only), `self.crt`
/// (self-signed as PostgreSQL's manual does it), `other.crt` (another authority) and `app.crt` (a client).
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let ca = CertifiedIssuer::self_signed(ca_parameters("test CA"), key()).unwrap();
        folder.write("ca.crt", &ca.pem());
        for (file, name, alternatives) in [
            ("db", "db", vec!["localhost".to_owned()]),
            ("cn", "localhost", vec![]),
            ("app", "app", vec![]),
        ] {
            let key = key();
            let certificate = parameters(name, alternatives).signed_by(&key, &ca).unwrap();
            folder.write(&format!("{file}.crt"), &certificate.pem());
            folder.write(&format!("{file}.key"), &key.serialize_pem());
        }
        for file in ["self", "other"] {
            let key = key();
            let certificate = ca_parameters("localhost").self_signed(&key).unwrap();
            folder.write(&format!("{file}.crt"), &certificate.pem());
            folder.write(&format!("{file}.key"), &key.serialize_pem());
        }
        folder
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// pgweir's TLS towards clients, with this certificate and, if given, an authority for theirs.
    fn accepting(&self, name: &str, sslmode: SslMode, ca: Option<&str>) -> ClientTlsContext {
        let config = ClientTls {
            sslmode,
            cert_file: Some(self.path(&format!("{name}.crt"))),
            key_file: Some(self.path(&format!("{name}.key"))),
            ca_file: ca.map(|ca| self.path(ca)),
        };
        ClientTlsContext::from_config(&config).unwrap().unwrap()
    }

    fn connecting(&self, sslmode: SslMode, ca: Option<&str>, own: Option<&str>) -> ServerTls {
        ServerTls {
            sslmode,
            ca_file: ca.map(|ca| self.path(ca)),
            cert_file: own.map(|own| self.path(&format!("{own}.crt"))),
            key_file: own.map(|own| self.path(&format!("{own}.key"))),
            direct: false,
        }
    }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn parameters(common_name: &str, alternatives: Vec<String>) -> CertificateParams {
    let mut parameters = CertificateParams::new(alternatives).unwrap();
    parameters
        .distinguished_name
        .push(DnType::CommonName, common_name);
    parameters
}

fn ca_parameters(common_name: &str) -> CertificateParams {
    let mut parameters = parameters(common_name, vec![]);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters
}

/// Both ends of a TLS session over loopback, after a byte has gone each way.
async fn meet(
    server: &ClientTlsContext,
    client: &ServerTlsContext,
    host: &str,
    how: Negotiation,
) -> Result<(Stream, Stream), TlsError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async {
        let (tcp, _) = listener.accept().await?;
        let mut stream = server.accept(Plain::Tcp(tcp), how).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        let mut stream = client.handshake(Plain::Tcp(tcp), host).await?;
        stream.read_u8().await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok(stream)
    };
    let (accepted, connected) = tokio::join!(accept, connect);
    match (accepted, connected) {
        (Ok(accepted), Ok(connected)) => Ok((accepted, connected)),
        (_, Err(error)) | (Err(error), _) => Err(error),
    }
}

async fn trusts(folder: &Folder, server: &str, sslmode: SslMode, ca: &str, host: &str) -> bool {
    let server = folder.accepting(server, SslMode::Prefer, None);
    let ca = Some(ca).filter(|ca| !ca.is_empty());
    let client = ServerTlsContext::from_config(&folder.connecting(sslmode, ca, None)).unwrap();
    meet(&server, &client, host, Negotiation::SslRequest)
        .await
        .is_ok()
}

#[tokio::test]
async fn every_sslmode_trusts_what_libpq_trusts() {
    let folder = Folder::new();
    let golden = [
        // certificate, mode, root file, host, trusted
        ("db", SslMode::Prefer, "", "127.0.0.1", true),
        ("db", SslMode::Require, "", "127.0.0.1", true),
        ("other", SslMode::Require, "", "localhost", true),
        ("db", SslMode::Require, "ca.crt", "127.0.0.1", true),
        ("other", SslMode::Require, "ca.crt", "localhost", false),
        ("other", SslMode::Prefer, "ca.crt", "localhost", false),
        ("db", SslMode::VerifyCa, "ca.crt", "elsewhere", true),
        ("other", SslMode::VerifyCa, "ca.crt", "localhost", false),
        ("db", SslMode::VerifyFull, "ca.crt", "localhost", true),
        ("db", SslMode::VerifyFull, "ca.crt", "db", false),
        ("db", SslMode::VerifyFull, "ca.crt", "127.0.0.1", false),
        ("cn", SslMode::VerifyFull, "ca.crt", "localhost", true),
        ("cn", SslMode::VerifyFull, "ca.crt", "elsewhere", false),
        ("self", SslMode::VerifyCa, "self.crt", "elsewhere", true),
        ("self", SslMode::VerifyFull, "self.crt", "localhost", true),
        ("self", SslMode::VerifyFull, "self.crt", "elsewhere", false),
        ("other", SslMode::VerifyCa, "self.crt", "localhost", false),
    ];
    for (server, sslmode, ca, host, expected) in golden {
        let trusted = trusts(&folder, server, sslmode, ca, host).await;
        assert_eq!(trusted, expected, "{server} {sslmode:?} {ca} {host}");
    }
}

#[tokio::test]
async fn client_certificates_are_verified_and_their_name_read() {
    let folder = Folder::new();
    let present = async |sslmode, own| {
        let server = folder.accepting("db", sslmode, Some("ca.crt"));
        let client = folder.connecting(SslMode::Require, None, own);
        let client = ServerTlsContext::from_config(&client).unwrap();
        meet(&server, &client, "localhost", Negotiation::SslRequest)
            .await
            .map(|(accepted, _)| accepted.peer_common_name())
            .ok()
    };
    let app = Some("app".to_owned());
    assert_eq!(
        present(SslMode::VerifyFull, Some("app")).await,
        Some(app.clone())
    );
    assert_eq!(present(SslMode::VerifyCa, None).await, None);
    assert_eq!(present(SslMode::Require, None).await, Some(None));
    assert_eq!(present(SslMode::Require, Some("app")).await, Some(app));
    assert_eq!(present(SslMode::Require, Some("other")).await, None);
}

#[tokio::test]
async fn both_ends_bind_to_the_same_hash() {
    let folder = Folder::new();
    let server = folder.accepting("db", SslMode::Require, None);
    let client = folder.connecting(SslMode::Require, None, None);
    let client = ServerTlsContext::from_config(&client).unwrap();
    let (accepted, connected) = meet(&server, &client, "localhost", Negotiation::SslRequest)
        .await
        .unwrap();
    let hash = connected.server_end_point_hash();
    assert_eq!(hash.as_ref().map(Vec::len), Some(32));
    assert_eq!(hash.as_deref(), server.channel_binding());
    assert_eq!(accepted.server_end_point_hash(), None);
    assert!(accepted.is_tls() && connected.is_tls());
}

#[tokio::test]
async fn direct_tls_insists_on_alpn() {
    let folder = Folder::new();
    let server = folder.accepting("db", SslMode::Require, None);
    let mut config = folder.connecting(SslMode::Require, None, None);
    config.direct = true;
    let client = ServerTlsContext::from_config(&config).unwrap();
    let met = meet(&server, &client, "localhost", Negotiation::Direct).await;
    assert!(met.is_ok());

    let silent = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(LibpqVerifier {
            trust: Trust::Anything,
            algorithms: provider().signature_verification_algorithms,
        }))
        .with_no_client_auth();
    let client = ServerTlsContext {
        connector: Some(TlsConnector::from(Arc::new(silent))),
        ..client
    };
    let met = meet(&server, &client, "localhost", Negotiation::Direct).await;
    assert!(matches!(met, Err(TlsError::NoAlpn)));
}

#[test]
fn configurations_that_cannot_work_are_named() {
    let folder = Folder::new();
    let server = |config: ServerTls| {
        ServerTlsContext::from_config(&config)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        server(folder.connecting(SslMode::VerifyFull, None, None)),
        "sslmode verify-full requires ca_file"
    );
    let half = ServerTls {
        key_file: None,
        ..folder.connecting(SslMode::Require, None, Some("app"))
    };
    assert_eq!(
        server(half),
        "cert_file and key_file must be given together"
    );
    let weak = ServerTls {
        direct: true,
        ..folder.connecting(SslMode::Prefer, None, None)
    };
    assert_eq!(
        server(weak),
        "direct TLS requires sslmode require, verify-ca or verify-full"
    );
    folder.write("empty.crt", "");
    let message = server(folder.connecting(SslMode::VerifyCa, Some("empty.crt"), None));
    assert!(message.starts_with("no certificate found in "), "{message}");
    let message = server(folder.connecting(SslMode::VerifyCa, Some("none.crt"), None));
    assert!(message.starts_with("could not read "), "{message}");

    let client = |sslmode, cert: Option<&str>| {
        ClientTlsContext::from_config(&ClientTls {
            sslmode,
            cert_file: cert.map(|cert| folder.path(cert)),
            key_file: cert.map(|_| folder.path("app.key")),
            ca_file: None,
        })
    };
    assert!(client(SslMode::Disable, None).unwrap().is_none());
    assert!(client(SslMode::Prefer, None).unwrap().is_none());
    assert_eq!(
        client(SslMode::Require, None).unwrap_err().to_string(),
        "sslmode require requires cert_file and key_file"
    );
    assert_eq!(
        client(SslMode::VerifyCa, Some("app.crt"))
            .unwrap_err()
            .to_string(),
        "sslmode verify-ca requires ca_file"
    );
    let mismatched = client(SslMode::Require, Some("db.crt")).unwrap_err();
    assert!(
        matches!(mismatched, TlsConfigError::Unusable { .. }),
        "{mismatched}"
    );
}
