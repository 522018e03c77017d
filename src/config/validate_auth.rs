//! Authentication and TLS: what a method or a mode can't do without.

use std::net::IpAddr;
use std::path::PathBuf;

use super::decode::{Reader, Setting};
use super::files::{readable, secret};
use super::model::{Auth, AuthMethod, ClientTls, Config, ServerTls, SslMode};
use super::raw;

pub(super) fn auth(raw: &raw::Auth, reader: &mut Reader<'_>) -> Auth {
    for (setting, key) in [
        (&raw.userlist, "auth.userlist"),
        (&raw.hba_file, "auth.hba_file"),
        (&raw.ident_file, "auth.ident_file"),
    ] {
        readable(setting, key, reader);
    }
    let query = raw.auth_query.value.trim();
    if !query.is_empty() && !query.contains("$1") {
        let message = "must contain $1, which stands for the user's name";
        reader.problem(raw.auth_query.at.as_ref(), "auth.auth_query", message);
    }
    let auth_password = secret(
        &raw.auth_password,
        "auth.auth_password",
        &raw.auth_password_file,
        "auth.auth_password_file",
        reader,
    );
    if auth_password.is_some() && raw.auth_user.value.is_none() {
        let at = raw
            .auth_password
            .at
            .as_ref()
            .or(raw.auth_password_file.at.as_ref());
        reader.problem(at, "auth.auth_password", "needs auth.auth_user");
    }
    Auth {
        method: raw.method.value,
        userlist: raw.userlist.value.clone(),
        auth_query: Some(query.to_owned()).filter(|query| !query.is_empty()),
        auth_user: raw.auth_user.value.clone(),
        auth_password,
        auth_dbname: raw.auth_dbname.value.clone(),
        hba_file: raw.hba_file.value.clone(),
        ident_file: raw.ident_file.value.clone(),
        cache_ttl: raw.cache_ttl.value,
    }
}

/// What the chosen method can't do without.
pub(super) fn auth_needs(raw: &raw::Auth, config: &Config, reader: &mut Reader<'_>) {
    let at = raw.method.at.as_ref();
    let mut need = |missing: bool, message: &str| {
        if missing {
            reader.problem(at, "auth.method", message);
        }
    };
    let auth = &config.auth;
    match auth.method {
        AuthMethod::ScramSha256 | AuthMethod::Md5 => {
            let has_user = auth.auth_user.is_some()
                || config
                    .databases
                    .values()
                    .any(|db| db.primary.user.is_some());
            need(
                auth.userlist.is_none() && !(auth.auth_query.is_some() && has_user),
                "needs verifiers: give auth.userlist, or auth.auth_user (or a user in the primary's URL) to run \
                 auth.auth_query",
            );
        }
        AuthMethod::Cert => {
            let tls = &config.client_tls;
            need(
                tls.sslmode == SslMode::Disable,
                "cert needs tls.client.cert_file",
            );
            need(tls.ca_file.is_none(), "cert needs tls.client.ca_file");
        }
        AuthMethod::Peer => need(
            config.general.unix_socket_dir.is_none(),
            "peer needs general.unix_socket_dir",
        ),
        AuthMethod::Hba => need(auth.hba_file.is_none(), "hba needs auth.hba_file"),
        AuthMethod::Passthrough | AuthMethod::Trust => {}
    }
    if auth.method == AuthMethod::Passthrough && config.server_tls.cert_file.is_some() {
        let message = "passthrough lets everyone in whom the server asks for no password: a user whom it admits by the \
                       certificate in tls.server.cert_file";
        reader.warning(at, "auth.method", message);
    }
    if auth.method != AuthMethod::Hba && raw.hba_file.is_given() {
        let message = "is not used: auth.method is not hba";
        reader.warning(raw.hba_file.at.as_ref(), "auth.hba_file", message);
    }
    let exposed = config
        .general
        .listen
        .iter()
        .find(|address| !is_loopback(address));
    if let (AuthMethod::Trust, Some(exposed)) = (auth.method, exposed) {
        let message = format!("trust lets everyone in who can reach {exposed}, under any name");
        reader.warning(at, "auth.method", message);
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn client_tls(raw: &raw::ClientTls, reader: &mut Reader<'_>) -> ClientTls {
    certificate(&raw.cert_file, &raw.key_file, "tls.client", reader);
    readable(&raw.ca_file, "tls.client.ca_file", reader);
    let has_certificate = raw.cert_file.value.is_some();
    let by_certificate = if has_certificate {
        SslMode::Prefer
    } else {
        SslMode::Disable
    };
    let sslmode = raw.sslmode.value.unwrap_or(by_certificate);
    let at = raw.sslmode.at.as_ref();
    if sslmode != SslMode::Disable && !has_certificate {
        reader.problem(
            at,
            "tls.client.sslmode",
            "needs tls.client.cert_file and tls.client.key_file",
        );
    }
    if sslmode >= SslMode::VerifyCa && raw.ca_file.value.is_none() {
        reader.problem(at, "tls.client.sslmode", "needs tls.client.ca_file");
    }
    ClientTls {
        sslmode,
        cert_file: raw.cert_file.value.clone(),
        key_file: raw.key_file.value.clone(),
        ca_file: raw.ca_file.value.clone(),
    }
}

pub(super) fn server_tls(raw: &raw::ServerTls, reader: &mut Reader<'_>) -> ServerTls {
    certificate(&raw.cert_file, &raw.key_file, "tls.server", reader);
    readable(&raw.ca_file, "tls.server.ca_file", reader);
    let sslmode = raw.sslmode.value;
    let at = raw.sslmode.at.as_ref();
    if sslmode >= SslMode::VerifyCa && raw.ca_file.value.is_none() {
        reader.problem(at, "tls.server.sslmode", "needs tls.server.ca_file");
    }
    if raw.direct.value && sslmode < SslMode::Require {
        let at = raw.direct.at.as_ref();
        reader.problem(
            at,
            "tls.server.direct",
            "needs tls.server.sslmode to be require or stronger",
        );
    }
    if sslmode == SslMode::Disable && (raw.cert_file.is_given() || raw.ca_file.is_given()) {
        reader.warning(
            at,
            "tls.server.sslmode",
            "disable leaves the certificate files unused",
        );
    }
    ServerTls {
        sslmode,
        ca_file: raw.ca_file.value.clone(),
        cert_file: raw.cert_file.value.clone(),
        key_file: raw.key_file.value.clone(),
        direct: raw.direct.value,
    }
}

/// Certificate and key come together.
pub(super) fn certificate(
    cert: &Setting<Option<PathBuf>>,
    key: &Setting<Option<PathBuf>>,
    path: &str,
    reader: &mut Reader<'_>,
) {
    let (cert_key, key_key) = (format!("{path}.cert_file"), format!("{path}.key_file"));
    readable(cert, &cert_key, reader);
    readable(key, &key_key, reader);
    match (&cert.value, &key.value) {
        (Some(_), None) => reader.problem(cert.at.as_ref(), &cert_key, format!("needs {key_key}")),
        (None, Some(_)) => reader.problem(key.at.as_ref(), &key_key, format!("needs {cert_key}")),
        _ => {}
    }
}
