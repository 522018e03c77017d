use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;

use super::*;
use crate::config::model::{ClientTls, ServerTls};
use crate::net::tls::ClientTlsContext;
use crate::tasks;

/// What the scripted server does with one connection.
#[derive(Clone, Copy)]
enum Step {
    /// Reads the `SSLRequest` and answers with these bytes, then closes.
    Answer(&'static [u8]),
    /// Answers `S` and runs the handshake.
    Tls,
    /// Runs the handshake at once.
    Direct,
    /// Takes the connection and reads nothing.
    Plain,
}

fn client_tls() -> ClientTlsContext {
    let folder = tempfile::tempdir().unwrap();
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert_file, key_file) = (folder.path().join("crt"), folder.path().join("key"));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, signing_key.serialize_pem()).unwrap();
    let config = ClientTls {
        sslmode: SslMode::Require,
        cert_file: Some(cert_file),
        key_file: Some(key_file),
        ca_file: None,
    };
    ClientTlsContext::from_config(&config).unwrap().unwrap()
}

fn server_tls(sslmode: SslMode, direct: bool) -> ServerTlsContext {
    ServerTlsContext::from_config(&ServerTls {
        sslmode,
        ca_file: None,
        cert_file: None,
        key_file: None,
        direct,
    })
    .unwrap()
}

fn node(host: &str, port: u16) -> Node {
    Node::at(host, port)
}

fn to(node: &Node) -> Target<'_> {
    Target {
        node,
        at: None,
        until: Instant::now() + Duration::from_secs(30),
    }
}

async fn play(mut tcp: TcpStream, step: Step, tls: &ClientTlsContext) -> Option<Stream> {
    let mut request = [0; 8];
    if matches!(step, Step::Answer(_) | Step::Tls) {
        tcp.read_exact(&mut request).await.ok()?;
        assert_eq!(request, SSL_REQUEST);
    }
    match step {
        Step::Plain => Some(Stream::Tcp(tcp)),
        Step::Answer(bytes) => {
            tcp.write_all(bytes).await.ok()?;
            // The other end may still read; only its close ends this connection.
            let mut rest = Vec::new();
            let _ = tcp.read_to_end(&mut rest).await;
            None
        }
        Step::Tls => {
            tcp.write_all(b"S").await.ok()?;
            let how = Negotiation::SslRequest;
            tls.accept(Plain::Tcp(tcp), how).await.ok()
        }
        Step::Direct => tls.accept(Plain::Tcp(tcp), Negotiation::Direct).await.ok(),
    }
}

/// Serves one connection per step; returns the node to connect to.
async fn server(steps: &'static [Step]) -> (Node, JoinHandle<Vec<Stream>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tasks::spawn("scripted server", async move {
        let tls = client_tls();
        let mut open = Vec::new();
        for step in steps {
            let (tcp, _) = listener.accept().await.unwrap();
            open.extend(play(tcp, *step, &tls).await);
        }
        open
    });
    (node("localhost", port), serving)
}

async fn attempt(
    sslmode: SslMode,
    direct: bool,
    steps: &'static [Step],
) -> Result<Stream, ConnectError> {
    let (node, serving) = server(steps).await;
    let options = SocketOptions {
        keepalive: true,
        keepidle: Some(Duration::from_secs(60)),
        keepintvl: Some(Duration::from_secs(5)),
        keepcnt: Some(3),
        user_timeout: Some(Duration::from_secs(30)),
    };
    let tls = server_tls(sslmode, direct);
    let stream = connect(to(&node), &tls, Encryption::first(sslmode), &options).await;
    if stream.is_ok() {
        serving.await.unwrap();
    }
    stream
}

#[tokio::test]
async fn sslmode_decides_between_tls_and_plain() {
    let plain = |stream: Result<Stream, ConnectError>| matches!(stream, Ok(Stream::Tcp(_)));
    let tls = |stream: Result<Stream, ConnectError>| matches!(stream, Ok(Stream::TlsConnected(_)));
    assert!(plain(
        attempt(SslMode::Disable, false, &[Step::Plain]).await
    ));
    assert!(plain(attempt(SslMode::Allow, false, &[Step::Plain]).await));
    assert!(tls(attempt(SslMode::Prefer, false, &[Step::Tls]).await));
    assert!(tls(attempt(SslMode::Require, false, &[Step::Tls]).await));
    assert!(tls(attempt(SslMode::Require, true, &[Step::Direct]).await));
}

#[tokio::test]
async fn prefer_goes_on_without_tls() {
    let (node, serving) = server(&[Step::Answer(b"N")]).await;
    let tls = server_tls(SslMode::Prefer, false);
    let options = SocketOptions::default();
    let stream = connect(to(&node), &tls, Encryption::Preferred, &options)
        .await
        .unwrap();
    assert!(!stream.is_tls());
    drop(stream);
    serving.await.unwrap();
    for broken in [
        &[Step::Answer(b"E"), Step::Plain],
        &[Step::Answer(b"S\x45\0\0\0\x10FATAL"), Step::Plain],
    ] {
        let stream = attempt(SslMode::Prefer, false, broken).await.unwrap();
        assert!(!stream.is_tls());
    }
}

#[tokio::test]
async fn require_refuses_everything_but_tls() {
    let outcome = async |answer| {
        attempt(SslMode::Require, false, answer)
            .await
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        outcome(&[Step::Answer(b"N")]).await,
        "server does not support SSL, but SSL was required"
    );
    assert_eq!(
        outcome(&[Step::Answer(b"E\0\0\0\x20SFATAL")]).await,
        "server sent an error response during SSL exchange"
    );
    assert_eq!(
        outcome(&[Step::Answer(b"H")]).await,
        "received invalid response to SSL negotiation: 'H'"
    );
    // Plain text slipped in behind the S (CVE-2021-23222) breaks the handshake.
    let message = outcome(&[Step::Answer(b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")]).await;
    assert!(message.starts_with("SSL error: "), "{message}");
}

#[tokio::test]
async fn a_unix_socket_is_never_encrypted() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(".s.PGSQL.6000")).unwrap();
    let tls = server_tls(SslMode::Require, false);
    let node = node(folder.path().to_str().unwrap(), 6000);
    let options = SocketOptions::default();
    let stream = connect(to(&node), &tls, Encryption::Required, &options)
        .await
        .unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    assert!(matches!(stream, Stream::Unix(_)));
    assert_eq!(Encryption::second(SslMode::Prefer, &stream), None);
    let uid = Stream::Unix(accepted).peer_uid().unwrap();
    assert_eq!(uid, stream.peer_uid().unwrap());
    assert!(uid.is_some());
}

#[tokio::test]
async fn a_refused_port_and_an_unknown_host_are_told_apart() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let tls = ServerTlsContext::disabled();
    let options = SocketOptions::default();
    let reach = async |node: Node| connect(to(&node), &tls, Encryption::Plain, &options).await;
    let refused = reach(node("127.0.0.1", closed)).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Io(_)), "{refused}");
    assert_eq!(refused.report().code, SqlState::CONNECTION_FAILURE);
    let unknown = reach(node("no such host.invalid", 5432)).await.unwrap_err();
    assert!(matches!(unknown, ConnectError::Resolve(_)), "{unknown}");
}

#[tokio::test]
async fn a_name_leads_to_the_addresses_it_has() {
    let at = |host: &str| Node::at(host, 5432);
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    let other: IpAddr = "127.0.0.2".parse().unwrap();
    assert!(leads_to(&at("localhost"), local).await);
    assert!(!leads_to(&at("localhost"), other).await);
    // What can't be looked up has not moved.
    assert!(leads_to(&at("no-such-name.invalid"), local).await);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn connections_have_the_options_of_their_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let accept = async || {
        let _near = TcpStream::connect(listener.local_addr().unwrap()).await;
        listener.accept().await.unwrap().0
    };
    let usual = SockRef::from(&accept().await).tcp_keepalive_time().unwrap();
    let mut options = SocketOptions {
        keepalive: true,
        keepidle: Some(Duration::from_secs(77)),
        keepcnt: Some(3),
        user_timeout: Some(Duration::from_secs(9)),
        ..SocketOptions::default()
    };
    options.set_all(&listener).unwrap();
    let far = accept().await;
    let socket = SockRef::from(&far);
    assert!(far.nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 77);
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    assert_eq!(socket.tcp_user_timeout().unwrap(), options.user_timeout);
    // What is not given any more is what it was.
    (options.keepalive, options.keepidle, options.user_timeout) = (false, None, None);
    options.set_all(&listener).unwrap();
    let far = accept().await;
    let socket = SockRef::from(&far);
    assert!(!socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), usual);
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}

/// A listener that lets nobody in any more: what is sent to it is lost.
async fn full_listener() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let patience = Duration::from_millis(300);
    while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    (listener, waiting, address)
}

#[tokio::test]
async fn an_address_that_swallows_what_is_sent_leaves_time_for_the_next() {
    let (_listener, _waiting, silent) = full_listener().await;
    let answers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let answers = (answers.local_addr().unwrap(), answers);
    let began = Instant::now();
    let limit = Duration::from_secs(2);
    let addresses = [silent, answers.0];
    let dialed = tokio::time::timeout(limit, dial_one_of(&addresses, began + limit)).await;
    assert_eq!(dialed.unwrap().unwrap().peer_addr().unwrap(), answers.0);
    assert!(began.elapsed() >= limit / 2);
}
