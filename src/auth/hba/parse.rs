//! Text to rules. The lexical rules (quotes, lists, comments, continued lines) are those of PostgreSQL's `hba.c`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::{
    AddressMatch, ClientCert, ConnectionType, DatabaseMatch, HbaMethod, HbaProblem, Rule, UserMatch,
};

/// How deep `@file` may nest, as in PostgreSQL.
const MAX_FILE_DEPTH: usize = 10;

/// One name of a field. A quoted name is never a keyword.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) quoted: bool,
}

impl Token {
    pub(crate) fn is_keyword(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }

    /// The rest of an unquoted token after its marker `@`, `+` or `/`.
    fn marked(&self, marker: char) -> Option<&str> {
        if self.quoted {
            None
        } else {
            self.text
                .strip_prefix(marker)
                .filter(|rest| !rest.is_empty())
        }
    }
}

type Fields = Vec<Vec<Token>>;

/// Reads all lines. `folder` is where `@file` looks; without it `@file` is a problem.
pub(super) fn parse(text: &str, folder: Option<&Path>) -> Result<Vec<Rule>, Vec<HbaProblem>> {
    let mut rules = Vec::new();
    let mut problems = Vec::new();
    for (line, text) in logical_lines(text) {
        match tokenize(&text).and_then(|fields| parse_rule(line, fields, folder)) {
            Ok(rule) => rules.extend(rule),
            Err(message) => problems.push(HbaProblem { line, message }),
        }
    }
    if problems.is_empty() {
        Ok(rules)
    } else {
        Err(problems)
    }
}

/// The lines with those ended by a backslash joined to the next, and the number each begins at.
pub(crate) fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    for (index, line) in text.lines().enumerate() {
        let (line, continues) = match line.strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        match lines.last_mut() {
            Some((_, last)) if continued => last.push_str(line),
            _ => lines.push((index + 1, line.to_owned())),
        }
        continued = continues;
    }
    lines
}

/// Splits a line into fields, each a comma-separated list of names.
pub(crate) fn tokenize(line: &str) -> Result<Fields, String> {
    let mut fields: Fields = Vec::new();
    let mut rest = line;
    // A comma right after a name joins the next one to its field; stray commas are skipped, as PostgreSQL does.
    let mut joins = false;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if rest.is_empty() || rest.starts_with('#') {
            return Ok(fields);
        }
        let (token, comma, after) = next_token(rest)?;
        rest = after;
        match fields.last_mut() {
            Some(field) if joins => field.push(token),
            _ => fields.push(vec![token]),
        }
        joins = comma;
    }
}

/// One name, whether a comma follows it, and what is left.
fn next_token(text: &str) -> Result<(Token, bool, &str), String> {
    let mut token = Token {
        text: String::new(),
        quoted: false,
    };
    let mut in_quotes = false;
    let mut end = text.len();
    let mut comma = false;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if in_quotes && chars.peek().is_some_and(|(_, next)| *next == '"') => {
                token.text.push('"');
                chars.next();
            }
            '"' => {
                in_quotes = !in_quotes;
                // As in PostgreSQL, only a quote at the beginning takes the meaning from a keyword.
                token.quoted |= at == 0;
            }
            ',' if !in_quotes => {
                comma = true;
                end = at + 1;
                break;
            }
            c if !in_quotes && (c.is_whitespace() || c == '#') => {
                end = at;
                break;
            }
            c => token.text.push(c),
        }
    }
    if in_quotes {
        return Err("a double quote is not closed".to_owned());
    }
    Ok((token, comma, &text[end..]))
}

fn parse_rule(line: usize, fields: Fields, folder: Option<&Path>) -> Result<Option<Rule>, String> {
    let mut fields = fields.into_iter();
    let Some(first) = fields.next() else {
        return Ok(None);
    };
    let connection = connection_type(&single(first, "connection type")?)?;
    let databases = expand(
        fields.next().ok_or("the database is missing")?,
        folder,
        MAX_FILE_DEPTH,
    )?
    .into_iter()
    .map(database_match)
    .collect::<Result<Vec<_>, _>>()?;
    let users = expand(
        fields.next().ok_or("the user is missing")?,
        folder,
        MAX_FILE_DEPTH,
    )?
    .into_iter()
    .map(user_match)
    .collect::<Result<Vec<_>, _>>()?;
    let address = if connection == ConnectionType::Local {
        AddressMatch::All
    } else {
        let address = single(fields.next().ok_or("the address is missing")?, "address")?;
        parse_address(&address, &mut fields)?
    };
    let method = single(fields.next().ok_or("the method is missing")?, "method")?;
    let mut rule = Rule {
        line,
        connection,
        databases,
        users,
        address,
        method: parse_method(&method.text, connection)?,
        clientcert: None,
        map: None,
    };
    for option in fields.flatten() {
        parse_option(&mut rule, &option.text)?;
    }
    Ok(Some(rule))
}

fn single(field: Vec<Token>, what: &str) -> Result<Token, String> {
    let [token] = <[Token; 1]>::try_from(field)
        .map_err(|_| format!("the {what} must be one word, not a list"))?;
    Ok(token)
}

fn connection_type(token: &Token) -> Result<ConnectionType, String> {
    Ok(match token.text.as_str() {
        "local" => ConnectionType::Local,
        "host" => ConnectionType::Host,
        "hostssl" => ConnectionType::HostSsl,
        "hostnossl" => ConnectionType::HostNoSsl,
        "hostgssenc" => ConnectionType::HostGssEnc,
        "hostnogssenc" => ConnectionType::HostNoGssEnc,
        "include" | "include_if_exists" | "include_dir" => {
            return Err(format!("{} is not supported", token.text));
        }
        other => return Err(format!("invalid connection type \"{other}\"")),
    })
}

/// Replaces `@file` by the names in that file.
fn expand(tokens: Vec<Token>, folder: Option<&Path>, depth: usize) -> Result<Vec<Token>, String> {
    let mut expanded = Vec::with_capacity(tokens.len());
    for token in tokens {
        let Some(file) = token.marked('@') else {
            expanded.push(token);
            continue;
        };
        let folder = folder.ok_or_else(|| format!("@{file}: files can't be included here"))?;
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| format!("@{file}: files include each other too deeply"))?;
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path).map_err(|error| format!("@{file}: {error}"))?;
        let folder = path.parent();
        for (line, text) in logical_lines(&text) {
            let names = tokenize(&text)
                .and_then(|fields| expand(fields.into_iter().flatten().collect(), folder, depth))
                .map_err(|message| format!("@{file}:{line}: {message}"))?;
            expanded.extend(names);
        }
    }
    Ok(expanded)
}

fn database_match(token: Token) -> Result<DatabaseMatch, String> {
    if token.marked('/').is_some() {
        return Err(format!(
            "regular expressions are not supported: {}",
            token.text
        ));
    }
    if token.marked('+').is_some() || token.is_keyword("samerole") || token.is_keyword("samegroup")
    {
        return Err(format!(
            "groups are not supported, pgweir does not know the members of roles: {}",
            token.text
        ));
    }
    Ok(if token.is_keyword("all") {
        DatabaseMatch::All
    } else if token.is_keyword("sameuser") {
        DatabaseMatch::SameUser
    } else if token.is_keyword("replication") {
        DatabaseMatch::Replication
    } else {
        DatabaseMatch::Name(token.text)
    })
}

fn user_match(token: Token) -> Result<UserMatch, String> {
    if token.marked('/').is_some() {
        return Err(format!(
            "regular expressions are not supported: {}",
            token.text
        ));
    }
    if token.marked('+').is_some() {
        return Err(format!(
            "groups are not supported, pgweir does not know the members of roles: {}",
            token.text
        ));
    }
    Ok(if token.is_keyword("all") {
        UserMatch::All
    } else {
        UserMatch::Name(token.text)
    })
}

fn parse_address(
    token: &Token,
    fields: &mut impl Iterator<Item = Vec<Token>>,
) -> Result<AddressMatch, String> {
    if token.is_keyword("all") {
        return Ok(AddressMatch::All);
    }
    if token.is_keyword("samehost") || token.is_keyword("samenet") {
        return Err(format!(
            "{} is not supported, write the network",
            token.text
        ));
    }
    let (address, length) = match token.text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (token.text.as_str(), None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!(
            "\"{}\" is not an IP address; host names are not supported",
            token.text
        ));
    };
    let mask = if let Some(length) = length {
        length
            .parse()
            .ok()
            .and_then(|length| prefix_mask(address, length))
            .ok_or_else(|| format!("invalid CIDR mask in address \"{}\"", token.text))?
    } else {
        let mask = single(
            fields.next().ok_or("the address has no mask")?,
            "network mask",
        )?;
        mask.text
            .parse()
            .map_err(|_| format!("invalid IP mask \"{}\"", mask.text))?
    };
    if address.is_ipv4() != mask.is_ipv4() {
        return Err("IP address and mask do not match".to_owned());
    }
    Ok(AddressMatch::Network { address, mask })
}

fn prefix_mask(address: IpAddr, length: u32) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => {
            let host_bits = 32u32.checked_sub(length)?;
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            Some(Ipv4Addr::from_bits(mask).into())
        }
        IpAddr::V6(_) => {
            let host_bits = 128u32.checked_sub(length)?;
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            Some(Ipv6Addr::from_bits(mask).into())
        }
    }
}

fn parse_method(text: &str, connection: ConnectionType) -> Result<HbaMethod, String> {
    let local = connection == ConnectionType::Local;
    let method = match text {
        "trust" => HbaMethod::Trust,
        "reject" => HbaMethod::Reject,
        "md5" => HbaMethod::Md5,
        "scram-sha-256" => HbaMethod::ScramSha256,
        "password" => HbaMethod::Password,
        "peer" => HbaMethod::Peer,
        // PostgreSQL means peer too where ident stands in a local line.
        "ident" if local => HbaMethod::Peer,
        "cert" => HbaMethod::Cert,
        "ident" | "gss" | "sspi" | "ldap" | "radius" | "pam" | "bsd" | "oauth" => {
            return Err(format!("authentication method \"{text}\" is not supported"));
        }
        other => return Err(format!("invalid authentication method \"{other}\"")),
    };
    if method == HbaMethod::Peer && !local {
        return Err("peer authentication is only supported on local sockets".to_owned());
    }
    if method == HbaMethod::Cert && connection != ConnectionType::HostSsl {
        return Err("cert authentication is only supported on hostssl connections".to_owned());
    }
    Ok(method)
}

fn parse_option(rule: &mut Rule, text: &str) -> Result<(), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("authentication option not in name=value format: {text}"))?;
    match name {
        "clientcert" => {
            if rule.connection != ConnectionType::HostSsl {
                return Err("clientcert can only be configured for \"hostssl\" rows".to_owned());
            }
            rule.clientcert = Some(match value {
                "verify-full" => ClientCert::VerifyFull,
                "verify-ca" if rule.method == HbaMethod::Cert => {
                    return Err(
                        "clientcert only accepts \"verify-full\" when using \"cert\" authentication"
                            .to_owned(),
                    );
                }
                "verify-ca" => ClientCert::VerifyCa,
                other => return Err(format!("invalid value for clientcert: \"{other}\"")),
            });
        }
        "map" => {
            if !matches!(rule.method, HbaMethod::Peer | HbaMethod::Cert) {
                return Err(
                    "authentication option \"map\" is only valid for authentication methods peer and cert"
                        .to_owned(),
                );
            }
            rule.map = Some(value.to_owned());
        }
        other => {
            return Err(format!(
                "authentication option \"{other}\" is not supported"
            ));
        }
    }
    Ok(())
}
