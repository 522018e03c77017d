//! Who may read what: a pure function of a request's headers and the configuration.
//!
//! Invariants: without a token nothing is read that `http.without_token` does not open; a token is compared in
//! constant time; no web page of another origin reads anything, nor one whose name was made to point here.
//!
//! # Why
//! A browser on the operator's machine is the way in to a listener on loopback: any page it shows may send requests
//! there. It can't read replies of another origin, which `Sec-Fetch-Site` and `Origin` are checked for besides. But a
//! name of its own that resolves to 127.0.0.1 ("DNS rebinding") makes it the same origin, so the `Host` of requests
//! without a token must be an address, `localhost`, or a name the operator listed. Probes and, beyond loopback,
//! scrapers are let off that check: they ask by service names, and what they read is open on purpose.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, ORIGIN};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::model::{Http, HttpScope, Secret};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    Health,
    Metrics,
    /// The page itself, which other sites may link to.
    Page,
    /// What the page shows.
    Data,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Sees no texts of statements or errors, and no addresses of clients.
    Stats,
    Admin,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A token is needed.
    NoToken,
    /// A token is needed, and none is configured.
    Closed,
    WrongToken,
    /// Asked by a name that is not this server's.
    Host(String),
    /// Asked by a page of another origin.
    CrossOrigin,
}

/// Decides. `is_loopback` says where the listener is.
pub(super) fn admit(
    headers: &HeaderMap,
    area: Area,
    http: &Http,
    is_loopback: bool,
) -> Result<Role, Refusal> {
    if area == Area::Health {
        return Ok(Role::Stats);
    }
    if !is_same_origin(headers, area) {
        return Err(Refusal::CrossOrigin);
    }
    let has_token = http.admin_token.is_some() || http.stats_token.is_some();
    if has_token && let Some(token) = token(headers) {
        return by_token(&token, http).ok_or(Refusal::WrongToken);
    }
    if area != Area::Metrics || is_loopback {
        check_host(headers, &http.hosts)?;
    }
    let needed = match area {
        Area::Health => HttpScope::Health,
        Area::Metrics => HttpScope::Metrics,
        Area::Page | Area::Data => HttpScope::All,
    };
    if http.without_token >= HttpScope::All {
        Ok(Role::Admin)
    } else if http.without_token >= needed {
        // What is open to scrapers is open to all.
        Ok(Role::Stats)
    } else if has_token {
        Err(Refusal::NoToken)
    } else {
        Err(Refusal::Closed)
    }
}

/// Whether no page of another origin asks. What is not a browser sends neither header.
fn is_same_origin(headers: &HeaderMap, area: Area) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    // A link elsewhere may lead to the page: its reader is then the page's own.
    let is_link = area == Area::Page
        && text("sec-fetch-mode") == Some("navigate")
        && text("sec-fetch-dest") == Some("document");
    let by_site = matches!(text("sec-fetch-site"), None | Some("same-origin" | "none"));
    let by_origin = match (text(ORIGIN.as_str()), text(HOST.as_str())) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            let name = origin.split_once("://").map_or("", |(_, name)| name);
            name.eq_ignore_ascii_case(host)
        }
        (Some(_), None) => false,
    };
    (by_site || is_link) && by_origin
}

/// The token of `Authorization: Bearer TOKEN` or of `Basic USER:TOKEN`; an empty one if it can't be understood.
fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().unwrap_or_default();
    let (scheme, rest) = value.split_once(' ').unwrap_or_default();
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        Some(rest.trim().to_owned())
    } else if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(rest.trim()).unwrap_or_default();
        let pair = String::from_utf8(decoded).unwrap_or_default();
        pair.split_once(':').map(|(_, token)| token.to_owned())
    } else {
        None
    };
    Some(token.unwrap_or_default())
}

fn by_token(token: &str, http: &Http) -> Option<Role> {
    // Digests are of one length, so that not even that of the token is told by the time it takes.
    let digest = Sha256::digest(token);
    let is = |secret: &Option<Secret>| {
        secret
            .as_ref()
            .is_some_and(|secret| Sha256::digest(secret.expose()).ct_eq(&digest).into())
    };
    if is(&http.admin_token) {
        Some(Role::Admin)
    } else if is(&http.stats_token) {
        Some(Role::Stats)
    } else {
        None
    }
}

/// A request without `Host` comes from no browser.
fn check_host(headers: &HeaderMap, hosts: &[String]) -> Result<(), Refusal> {
    let Some(value) = headers.get(HOST) else {
        return Ok(());
    };
    let host = value.to_str().unwrap_or_default();
    let name = host_name(host).to_ascii_lowercase();
    let is_known = name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || hosts.contains(&name);
    if is_known {
        Ok(())
    } else {
        Err(Refusal::Host(name))
    }
}

/// `HOST` or `HOST:PORT` without the port, and an IPv6 address without its brackets.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(address, _)| address);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests;
