//! Who may read what over HTTP: nothing but health is left open where other machines can reach it, unless that is said.

use super::decode::{Reader, Setting};
use super::files::secret;
use super::model::{Http, HttpScope, Secret};
use super::raw;
use super::validate_auth::certificate;

/// Shorter ones can be guessed.
const TOKEN_CHARACTERS_MIN: usize = 16;

pub(super) fn http(raw: &raw::Http, general: &raw::General, reader: &mut Reader<'_>) -> Http {
    let admin_token = token(
        &raw.admin_token,
        "http.admin_token",
        secret(
            &raw.admin_token,
            "http.admin_token",
            &raw.admin_token_file,
            "http.admin_token_file",
            reader,
        ),
        reader,
    );
    let stats_token = token(
        &raw.stats_token,
        "http.stats_token",
        secret(
            &raw.stats_token,
            "http.stats_token",
            &raw.stats_token_file,
            "http.stats_token_file",
            reader,
        ),
        reader,
    );
    if admin_token.is_some() && admin_token == stats_token {
        let at = raw
            .stats_token
            .at
            .as_ref()
            .or(raw.stats_token_file.at.as_ref());
        reader.problem(at, "http.stats_token", "must differ from http.admin_token");
    }
    let has_token = admin_token.is_some() || stats_token.is_some();
    certificate(&raw.cert_file, &raw.key_file, "http", reader);
    Http {
        without_token: scope(raw, general, has_token, reader),
        hosts: hosts(&raw.hosts, reader),
        admin_token,
        stats_token,
        cert_file: raw.cert_file.value.clone(),
        key_file: raw.key_file.value.clone(),
    }
}

fn token(
    setting: &Setting<Option<Secret>>,
    key: &str,
    token: Option<Secret>,
    reader: &mut Reader<'_>,
) -> Option<Secret> {
    let token = token?;
    let text = token.expose();
    if text.chars().count() < TOKEN_CHARACTERS_MIN {
        let message = format!(
            "must have at least {TOKEN_CHARACTERS_MIN} characters, such as `openssl rand -hex 16` makes"
        );
        reader.problem(setting.at.as_ref(), key, message);
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = "must be of printable ASCII characters without spaces, as HTTP carries it";
        reader.problem(setting.at.as_ref(), key, message);
    }
    Some(token)
}

/// What is read without a token.
fn scope(
    raw: &raw::Http,
    general: &raw::General,
    has_token: bool,
    reader: &mut Reader<'_>,
) -> HttpScope {
    let address = general.http.value.0;
    let exposed = address.filter(|address| !address.ip().is_loopback());
    let at = general.http.at.as_ref();
    if let Some(exposed) = exposed
        && has_token
        && raw.cert_file.value.is_none()
    {
        let message = format!(
            "tokens come to {exposed} in clear text unless something in front of it speaks TLS; see http.cert_file"
        );
        reader.warning(at, "general.http", message);
    }
    if let Some(given) = raw.without_token.value {
        return given;
    }
    match exposed {
        Some(exposed) if !has_token => {
            let message = format!(
                "other machines can reach {exposed}: set http.admin_token or http.admin_token_file, or say in \
                 http.without_token what everyone may read: health, metrics (for probes and Prometheus), or all"
            );
            reader.problem(at, "general.http", message);
            HttpScope::Health
        }
        None if !has_token => HttpScope::All,
        _ => HttpScope::Health,
    }
}

/// Lower-case names without ports.
fn hosts(setting: &Setting<Vec<String>>, reader: &mut Reader<'_>) -> Vec<String> {
    let named = |host: &str| {
        !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    };
    for host in setting.value.iter().filter(|host| !named(host)) {
        let message = format!("{host:?} is no host name; leave out scheme and port");
        reader.problem(setting.at.as_ref(), "http.hosts", message);
    }
    setting
        .value
        .iter()
        .map(|host| host.to_ascii_lowercase())
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::config::model::{Http, HttpScope};
    use crate::config::{Overrides, load};

    fn config(settings: &[(&str, &str)]) -> Result<Http, Vec<String>> {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://db1");
        for (key, value) in settings {
            overrides.set("--set", key, value);
        }
        match load(None, &overrides, &|_| None) {
            Ok(loaded) => Ok(loaded.config.http),
            Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
        }
    }

    const TOKEN: &str = "0123456789abcdef";
    const EVERYWHERE: (&str, &str) = ("general.http", "0.0.0.0:9930");

    #[test]
    fn what_is_open_follows_address_and_tokens() {
        let open = |settings: &[(&str, &str)]| config(settings).unwrap().without_token;
        assert_eq!(open(&[]), HttpScope::All);
        assert_eq!(open(&[("general.http", "[::1]:0")]), HttpScope::All);
        assert_eq!(open(&[("general.http", "off")]), HttpScope::All);
        assert_eq!(open(&[("http.admin_token", TOKEN)]), HttpScope::Health);
        assert_eq!(
            open(&[EVERYWHERE, ("http.stats_token", TOKEN)]),
            HttpScope::Health
        );
        let metrics = ("http.without_token", "metrics");
        assert_eq!(open(&[EVERYWHERE, metrics]), HttpScope::Metrics);
        assert_eq!(
            open(&[EVERYWHERE, metrics, ("http.admin_token", TOKEN)]),
            HttpScope::Metrics
        );
    }

    #[test]
    fn an_open_door_to_other_machines_is_refused() {
        assert_eq!(
            config(&[EVERYWHERE]).unwrap_err(),
            [
                "--set: general.http: other machines can reach 0.0.0.0:9930: set http.admin_token or \
                 http.admin_token_file, or say in http.without_token what everyone may read: health, metrics (for \
                 probes and Prometheus), or all"
            ]
        );
    }

    #[test]
    fn bad_tokens_and_hosts_are_refused_without_showing_them() {
        let mut found = config(&[
            ("http.admin_token", "hunter2"),
            ("http.stats_token", "hunter2 hunter2 hunter2"),
            ("http.hosts", "https://page.example.com:443"),
        ])
        .unwrap_err();
        found.sort();
        assert_eq!(
            found,
            [
                "--set: http.admin_token: must have at least 16 characters, such as `openssl rand -hex 16` makes",
                "--set: http.hosts: \"https://page.example.com:443\" is no host name; leave out scheme and port",
                "--set: http.stats_token: must be of printable ASCII characters without spaces, as HTTP carries it",
            ]
        );
        let same = config(&[("http.admin_token", TOKEN), ("http.stats_token", TOKEN)]);
        assert_eq!(
            same.unwrap_err(),
            ["--set: http.stats_token: must differ from http.admin_token"]
        );
    }

    #[test]
    fn host_names_are_compared_in_lower_case() {
        let http = config(&[("http.hosts", "Page.Example.COM")]).unwrap();
        assert_eq!(http.hosts, ["page.example.com"]);
    }
}
