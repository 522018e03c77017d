use hyper::header::{HeaderName, HeaderValue};

use super::*;

const ADMIN: &str = "admin-token-0123456789";
const STATS: &str = "stats-token-0123456789";

fn http(without_token: HttpScope, tokens: bool) -> Http {
    let token = |text: &str| tokens.then(|| Secret::new(text.to_owned()));
    Http {
        admin_token: token(ADMIN),
        stats_token: token(STATS),
        without_token,
        hosts: vec!["page.example.com".to_owned()],
        cert_file: None,
        key_file: None,
    }
}

fn headers(of: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in of {
        headers.insert(
            HeaderName::try_from(*name).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    headers
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

#[test]
fn health_is_open_to_everyone() {
    let probe = headers(&[
        ("host", "10.0.0.7.example:9930"),
        ("authorization", "Bearer x"),
    ]);
    for scope in [HttpScope::Health, HttpScope::Metrics, HttpScope::All] {
        assert!(admit(&probe, Area::Health, &http(scope, true), false).is_ok());
    }
}

#[test]
fn a_token_says_who_asks() {
    let closed = http(HttpScope::Health, true);
    let ask = |authorization: &str| {
        let headers = headers(&[("host", "pool.svc:9930"), ("authorization", authorization)]);
        admit(&headers, Area::Data, &closed, false)
    };
    assert_eq!(ask(&format!("Bearer {ADMIN}")), Ok(Role::Admin));
    assert_eq!(ask(&format!("bearer {STATS}")), Ok(Role::Stats));
    assert_eq!(ask(&basic(&format!("me:{ADMIN}"))), Ok(Role::Admin));
    assert_eq!(ask(&basic(&format!(":{STATS}"))), Ok(Role::Stats));
    let long = "x".repeat(4000);
    for wrong in [
        "Bearer",
        "Bearer ",
        "Bearer admin-token-012345678",
        "Basic !!!",
        &basic("no colon"),
        &basic(&format!("{ADMIN}:")),
        "Digest x",
        &long,
    ] {
        assert_eq!(ask(wrong), Err(Refusal::WrongToken), "{wrong}");
    }
}

#[test]
fn without_a_token_only_what_is_open_is_read() {
    let near = headers(&[("host", "127.0.0.1:9930")]);
    let ask = |area, scope, tokens| admit(&near, area, &http(scope, tokens), false);
    for area in [Area::Page, Area::Data] {
        assert_eq!(ask(area, HttpScope::All, false), Ok(Role::Admin));
        assert_eq!(ask(area, HttpScope::Metrics, true), Err(Refusal::NoToken));
        assert_eq!(ask(area, HttpScope::Metrics, false), Err(Refusal::Closed));
    }
    assert!(ask(Area::Metrics, HttpScope::Metrics, true).is_ok());
    assert_eq!(
        ask(Area::Metrics, HttpScope::Health, true),
        Err(Refusal::NoToken)
    );
    // A browser may still have a password that is none any more.
    let remembered = headers(&[("host", "127.0.0.1"), ("authorization", "Bearer old")]);
    let open = http(HttpScope::All, false);
    assert_eq!(admit(&remembered, Area::Data, &open, true), Ok(Role::Admin));
}

#[test]
fn a_name_that_was_made_to_point_here_is_refused() {
    let open = http(HttpScope::All, false);
    let ask =
        |host: &str, area, loopback| admit(&headers(&[("host", host)]), area, &open, loopback);
    for host in [
        "127.0.0.1:9930",
        "localhost",
        "LocalHost:80",
        "a.localhost:1",
        "[::1]:9930",
        "10.1.2.3:9930",
        "Page.Example.com",
    ] {
        assert_eq!(ask(host, Area::Data, true), Ok(Role::Admin), "{host}");
    }
    for host in [
        "evil.example",
        "127.0.0.1.evil.example:9930",
        "localhost.evil.example",
        "evillocalhost",
        "[evil]",
        "",
        ":9930",
    ] {
        for area in [Area::Page, Area::Data, Area::Metrics] {
            let refused = ask(host, area, true);
            assert!(matches!(refused, Err(Refusal::Host(_))), "{host}");
        }
    }
    assert!(ask("pool.svc:9930", Area::Metrics, false).is_ok());
    assert!(ask("pool.svc:9930", Area::Data, false).is_err());
    assert!(admit(&HeaderMap::new(), Area::Data, &open, true).is_ok());
}

#[test]
fn pages_of_other_origins_read_nothing() {
    let open = http(HttpScope::All, false);
    let ask = |area, more: &[(&str, &str)]| {
        let mut headers = headers(more);
        headers.insert(HOST, HeaderValue::from_static("127.0.0.1:9930"));
        admit(&headers, area, &open, true)
    };
    for site in ["cross-site", "same-site"] {
        for area in [Area::Page, Area::Data, Area::Metrics] {
            let asked = ask(
                area,
                &[("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")],
            );
            assert_eq!(asked, Err(Refusal::CrossOrigin));
        }
    }
    let link = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "document"),
    ];
    assert!(ask(Area::Page, &link).is_ok());
    assert!(ask(Area::Data, &link).is_err());
    let mut framed = link;
    framed[2].1 = "iframe";
    assert!(ask(Area::Page, &framed).is_err());
    assert!(ask(Area::Data, &[("sec-fetch-site", "same-origin")]).is_ok());
    assert!(ask(Area::Data, &[("sec-fetch-site", "none")]).is_ok());
    assert!(ask(Area::Data, &[("origin", "http://127.0.0.1:9930")]).is_ok());
    for origin in ["http://127.0.0.1:9931", "https://evil.example", "null"] {
        assert!(ask(Area::Data, &[("origin", origin)]).is_err(), "{origin}");
    }
    // A token does not help a page that may not read.
    let mut with_token = headers(&[("authorization", &format!("Bearer {ADMIN}"))]);
    with_token.insert("sec-fetch-site", HeaderValue::from_static("cross-site"));
    assert_eq!(
        admit(
            &with_token,
            Area::Data,
            &http(HttpScope::Health, true),
            true
        ),
        Err(Refusal::CrossOrigin)
    );
}
