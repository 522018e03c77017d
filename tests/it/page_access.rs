//! Who reads what over HTTP, over the wire: tokens, names, origins, TLS, and readers that stall.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use tempfile::TempDir;

use crate::shared;
use crate::support::http::{self, Events};
use crate::support::pgweir::{Options, Pgweir, command};
use crate::support::tls::{Authority, write_private};
use crate::support::wait::{LIMIT, wait_until};

const ADMIN: &str = "admin-token-0123456789";
const STATS: &str = "stats-token-0123456789";

fn start() -> Pgweir {
    Options::new(shared::server()).start()
}

fn with_tokens() -> Options {
    Options::new(shared::server())
        .set("http.admin_token", ADMIN)
        .set("http.stats_token", STATS)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[test]
fn on_loopback_everything_is_read_without_a_token() {
    let pgweir = start();
    for path in [
        "/",
        "/metrics",
        "/live",
        "/ready",
        "/api/now",
        "/api/history",
        "/api/pools",
    ] {
        assert_eq!(http::get(pgweir.http, path, &[]).status, 200, "{path}");
    }
    let now = http::get(pgweir.http, "/api/now", &[]).json();
    assert_eq!(
        (&now["role"], &now["state"]),
        (&"admin".into(), &"serving".into())
    );
}

#[test]
fn with_tokens_only_health_is_read_without_one() {
    let pgweir = with_tokens().start();
    for path in ["/live", "/ready"] {
        assert_eq!(http::get(pgweir.http, path, &[]).status, 200, "{path}");
    }
    for path in ["/", "/metrics", "/events", "/api/now"] {
        let reply = http::get(pgweir.http, path, &[]);
        assert_eq!(reply.status, 401, "{path}");
        assert!(
            reply
                .header("www-authenticate")
                .unwrap()
                .starts_with("Basic realm=")
        );
        let wrong = http::get(pgweir.http, path, &[("Authorization", &bearer("wrong"))]);
        assert_eq!(wrong.status, 401, "{path}");
        for token in [ADMIN, STATS] {
            let authorization = bearer(token);
            let headers = [("Authorization", &*authorization)];
            if path == "/events" {
                Events::open(pgweir.http, &headers).next_of("now");
            } else {
                assert_eq!(http::get(pgweir.http, path, &headers).status, 200, "{path}");
            }
        }
    }
    let role = |token| {
        let authorization = bearer(token);
        let headers = [("Authorization", &*authorization)];
        http::get(pgweir.http, "/api/now", &headers).json()["role"].clone()
    };
    assert_eq!((role(ADMIN), role(STATS)), ("admin".into(), "stats".into()));
    assert!(!pgweir.log().contains(ADMIN));
}

#[test]
fn metrics_can_be_left_open_beside_a_closed_page() {
    let pgweir = Options::new(shared::server())
        .set("http.without_token", "metrics")
        .start();
    assert_eq!(http::get(pgweir.http, "/metrics", &[]).status, 200);
    let page = http::get(pgweir.http, "/", &[]);
    assert_eq!(page.status, 403);
    assert!(page.body.contains("http.admin_token"), "{}", page.body);
}

#[test]
fn names_and_origins_that_are_not_its_own_are_refused() {
    let pgweir = start();
    for path in ["/", "/events", "/metrics", "/api/now"] {
        let reply = http::get(pgweir.http, path, &[("Host", "evil.example:9930")]);
        assert_eq!(reply.status, 421, "{path}");
        assert!(reply.body.contains("http.hosts"), "{}", reply.body);
        let reply = http::get(pgweir.http, path, &[("Sec-Fetch-Site", "cross-site")]);
        assert_eq!(reply.status, 403, "{path}");
        let reply = http::get(pgweir.http, path, &[("Origin", "https://evil.example")]);
        assert_eq!(reply.status, 403, "{path}");
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
    assert_eq!(
        http::get(pgweir.http, "/ready", &[("Host", "pod-7:9930")]).status,
        200
    );
    let listed = Options::new(shared::server())
        .set("http.hosts", "page.example")
        .start();
    let reply = http::get(listed.http, "/api/now", &[("Host", "page.example")]);
    assert_eq!(reply.status, 200);
}

#[test]
fn every_reply_forbids_what_a_browser_might_do_with_it() {
    let pgweir = start();
    for path in ["/", "/metrics", "/api/now", "/live", "/nothing"] {
        let reply = http::get(pgweir.http, path, &[]);
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert_eq!(
            reply.header("cross-origin-resource-policy"),
            Some("same-origin")
        );
    }
}

#[test]
fn an_address_for_others_needs_a_token_or_a_word_on_what_is_open() {
    let check = |more: &[&str]| {
        let mut arguments = vec![
            "check",
            "--primary",
            "postgres://db1",
            "--http",
            "0.0.0.0:9930",
        ];
        arguments.extend(more);
        command(&arguments)
    };
    let (status, _, errors) = check(&[]);
    assert!(!status.success());
    assert!(
        errors.contains(
            "--http: general.http: other machines can reach 0.0.0.0:9930: set http.admin_token"
        ),
        "{errors}"
    );
    let token = format!("http.admin_token={ADMIN}");
    for setting in [
        &*token,
        "http.without_token=metrics",
        "http.without_token=all",
    ] {
        let (status, _, errors) = check(&["--set", setting]);
        assert!(status.success(), "{setting}: {errors}");
        let warned = errors.contains("clear text");
        assert_eq!(warned, setting == token, "{errors}");
        assert!(!errors.contains(ADMIN));
    }
}

#[test]
fn a_changed_token_ends_the_streams_of_the_old_one() {
    let folder = TempDir::new().unwrap();
    let file = write_private(folder.path(), "token", ADMIN);
    let pgweir = Options::new(shared::server())
        .set("http.admin_token_file", file.to_str().unwrap())
        .start();
    let authorization = bearer(ADMIN);
    let mut events = Events::open(pgweir.http, &[("Authorization", &authorization)]);
    events.next_of("now");
    write_private(folder.path(), "token", STATS);
    pgweir.reload();
    while events.next().is_some() {}
    let ask = |token: &str| {
        let authorization = bearer(token);
        http::get(
            pgweir.http,
            "/api/now",
            &[("Authorization", &authorization)],
        )
        .status
    };
    assert_eq!((ask(ADMIN), ask(STATS)), (401, 200));
}

#[test]
fn streams_are_bounded_and_a_place_is_free_once_a_reader_goes() {
    let pgweir = start();
    let mut readers: Vec<Events> = (0..32).map(|_| Events::open(pgweir.http, &[])).collect();
    let refused = http::get(pgweir.http, "/events", &[]);
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("10"))
    );
    assert_eq!(http::get(pgweir.http, "/ready", &[]).status, 200);
    let frames: Vec<u64> = readers
        .iter_mut()
        .map(|reader| reader.next_of("now")["point"].as_u64().unwrap())
        .collect();
    let next = readers[0].next_of("now")["point"].as_u64().unwrap();
    assert!(next > frames[0], "{next} after {}", frames[0]);
    readers.pop();
    wait_until("a place for one more reader", || {
        status_of_events(pgweir.http) == 200
    });
}

/// Opens `/events` and goes at once.
fn status_of_events(address: SocketAddr) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    String::from_utf8_lossy(&start[9..]).parse().unwrap()
}

#[test]
fn https_is_spoken_with_a_certificate_of_its_own() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority
        .server(&["localhost"])
        .write(folder.path(), "http");
    let ca = write_private(folder.path(), "ca.crt", authority.certificate());
    let pgweir = {
        // `/ready` is awaited in clear text, which would never be answered.
        let options = with_tokens()
            .set("http.cert_file", certificate.to_str().unwrap())
            .set("http.key_file", key.to_str().unwrap());
        options.start_without_waiting()
    };
    let url = format!("https://localhost:{}/api/now", pgweir.http.port());
    let curl = |more: &[&str]| {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--cacert"])
            .arg(&ca)
            .args(more)
            .arg(&url)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let user = format!("me:{STATS}");
    let reply = curl(&["-u", &user]);
    assert!(reply.contains("\"role\":\"stats\""), "{reply}");
    assert!(curl(&["-i"]).starts_with("HTTP/1.1 401"));
    // Whoever speaks clear text learns nothing and keeps nobody waiting.
    let mut plain = TcpStream::connect(pgweir.http).unwrap();
    plain.set_read_timeout(Some(LIMIT)).unwrap();
    plain.write_all(b"GET /live HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}
