//! The console's language: what a text asks for. Pure.
//!
//! Words are PgBouncer's, in any case. A name may stand bare (letters, digits, `_`, `$`, `.`, `-`, taken as they are,
//! without PostgreSQL's folding to lower case) or in double quotes; `--` and `/* */` begin comments.

use thiserror::Error;

use super::refine::{self, Refinement};
use super::show::Show;
use crate::config::model::Secret;
use crate::error::{Report, SqlState};

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Show(Show),
    /// Some of a table's rows, or in another order.
    Refined(Show, Box<Refinement>),
    Pause(Option<String>),
    Resume(Option<String>),
    Disable(String),
    Enable(String),
    Reconnect(Option<String>),
    Kill(Option<String>),
    KillClient(u32),
    /// A server by its address.
    Drain(String),
    Undrain(String),
    Suspend,
    Reload,
    Shutdown(Shutdown),
    WaitClose(Option<String>),
    /// The value may be a password, and a command is written to the log.
    Set {
        key: String,
        value: Secret,
    },
    /// What drivers send on their own and what means nothing here; the tag of its answer.
    Nothing(&'static str),
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Clients are cut off.
    Now,
    /// Transactions may finish.
    WaitForServers,
    /// Clients may stay until they leave.
    WaitForClients,
}

/// A text that is not the console's language.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    #[error("unterminated quoted string")]
    Unterminated,
    #[error("syntax error at or near \"{0}\"")]
    Near(String),
    #[error("syntax error at end of input")]
    End,
    #[error("invalid client id \"{0}\"")]
    ClientId(String),
    #[error("column \"{0}\" does not exist in this table")]
    NoColumn(String),
}

impl ParseError {
    pub fn report(&self) -> Report {
        let code = match self {
            Self::ClientId(_) => SqlState::INVALID_PARAMETER_VALUE,
            Self::NoColumn(_) => SqlState(*b"42703"),
            Self::Unterminated | Self::Near(_) | Self::End => SqlState::SYNTAX_ERROR,
        };
        Report::error(code, self.to_string()).hint("SHOW HELP lists the commands.")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    /// In double quotes.
    Name(String),
    /// In single quotes.
    Text(String),
    Symbol(char),
}

impl Token {
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Word(text) | Self::Name(text) | Self::Text(text) => {
                text.chars().take(60).collect()
            }
            Self::Symbol(symbol) => symbol.to_string(),
        }
    }

    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(own) if own.eq_ignore_ascii_case(word))
    }
}

/// Reads all statements of a text; empty ones are left out.
pub fn parse(text: &str) -> Result<Vec<Command>, ParseError> {
    let tokens = tokens(text)?;
    tokens
        .split(|token| *token == Token::Symbol(';'))
        .filter(|statement| !statement.is_empty())
        .map(statement)
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '.')
}

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, ParseError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = skip_blanks(rest)?;
        let Some(first) = rest.chars().next() else {
            return Ok(tokens);
        };
        if first == '"' || first == '\'' {
            let (content, after) = quoted(&rest[1..], first)?;
            tokens.push(if first == '"' {
                Token::Name(content)
            } else {
                Token::Text(content)
            });
            rest = after;
        } else if is_word(first) {
            let end = word_end(rest);
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else {
            tokens.push(Token::Symbol(first));
            rest = &rest[first.len_utf8()..];
        }
    }
}

/// Where a word ends; a `-` is part of it unless it begins a comment.
fn word_end(text: &str) -> usize {
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        let is_dash = c == '-' && characters.peek().is_some_and(|(_, next)| *next != '-');
        if !is_word(c) && !is_dash {
            return at;
        }
    }
    text.len()
}

fn skip_blanks(mut text: &str) -> Result<&str, ParseError> {
    loop {
        text = text.trim_start();
        if let Some(comment) = text.strip_prefix("--") {
            text = comment.find('\n').map_or("", |end| &comment[end..]);
        } else if let Some(comment) = text.strip_prefix("/*") {
            let end = comment.find("*/").ok_or(ParseError::Unterminated)?;
            text = &comment[end + 2..];
        } else {
            return Ok(text);
        }
    }
}

/// The content up to the closing quote, doubled ones undone, and what follows it.
fn quoted(text: &str, quote: char) -> Result<(String, &str), ParseError> {
    let mut content = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        if c != quote {
            content.push(c);
        } else if characters.peek().is_some_and(|(_, next)| *next == quote) {
            characters.next();
            content.push(quote);
        } else {
            return Ok((content, &text[at + 1..]));
        }
    }
    Err(ParseError::Unterminated)
}

fn statement(tokens: &[Token]) -> Result<Command, ParseError> {
    let (first, rest) = tokens.split_first().ok_or(ParseError::End)?;
    let Token::Word(verb) = first else {
        return Err(ParseError::Near(first.shown()));
    };
    match verb.to_ascii_lowercase().as_str() {
        "show" => show(rest),
        "select" => select(rest),
        "set" => set(rest),
        "pause" => Ok(Command::Pause(optional(rest)?)),
        "resume" => Ok(Command::Resume(optional(rest)?)),
        "disable" => Ok(Command::Disable(required(rest)?)),
        "enable" => Ok(Command::Enable(required(rest)?)),
        "reconnect" => Ok(Command::Reconnect(optional(rest)?)),
        "kill" => Ok(Command::Kill(optional(rest)?)),
        "kill_client" => {
            let id = required(rest)?;
            id.parse()
                .map(Command::KillClient)
                .map_err(|_| ParseError::ClientId(id))
        }
        "drain" => Ok(Command::Drain(server(rest)?)),
        "undrain" => Ok(Command::Undrain(server(rest)?)),
        "suspend" => end(rest, Command::Suspend),
        "reload" => end(rest, Command::Reload),
        "shutdown" => shutdown(rest),
        "wait_close" => Ok(Command::WaitClose(optional(rest)?)),
        "begin" | "start" => Ok(Command::Nothing("BEGIN")),
        "commit" | "end" => Ok(Command::Nothing("COMMIT")),
        "rollback" | "abort" => Ok(Command::Nothing("ROLLBACK")),
        "reset" => Ok(Command::Nothing("RESET")),
        "discard" => Ok(Command::Nothing("DISCARD ALL")),
        "deallocate" => Ok(Command::Nothing("DEALLOCATE ALL")),
        "close" => Ok(Command::Nothing("CLOSE CURSOR ALL")),
        "unlisten" => Ok(Command::Nothing("UNLISTEN")),
        _ => Err(ParseError::Near(first.shown())),
    }
}

/// A server's address: `HOST:PORT`, or in quotes where it is more than words.
fn server(rest: &[Token]) -> Result<String, ParseError> {
    match rest {
        [Token::Word(host), Token::Symbol(':'), Token::Word(port)] => Ok(format!("{host}:{port}")),
        [Token::Text(address)] => Ok(address.clone()),
        _ => required(rest),
    }
}

fn end(rest: &[Token], command: Command) -> Result<Command, ParseError> {
    match rest.first() {
        None => Ok(command),
        Some(token) => Err(ParseError::Near(token.shown())),
    }
}

fn optional(tokens: &[Token]) -> Result<Option<String>, ParseError> {
    match tokens {
        [] => Ok(None),
        [Token::Word(name) | Token::Name(name)] => Ok(Some(name.clone())),
        [Token::Word(_) | Token::Name(_), more, ..] => Err(ParseError::Near(more.shown())),
        [other, ..] => Err(ParseError::Near(other.shown())),
    }
}

fn required(tokens: &[Token]) -> Result<String, ParseError> {
    optional(tokens)?.ok_or(ParseError::End)
}

fn show(tokens: &[Token]) -> Result<Command, ParseError> {
    let (first, rest) = tokens.split_first().ok_or(ParseError::End)?;
    let (Token::Word(name) | Token::Name(name)) = first else {
        return Err(ParseError::Near(first.shown()));
    };
    let show = Show::named(name).ok_or_else(|| ParseError::Near(first.shown()))?;
    let refinement = refine::read(rest, show.columns())?;
    if refinement == Refinement::default() {
        return Ok(Command::Show(show));
    }
    Ok(Command::Refined(show, Box::new(refinement)))
}

/// PgBouncer reads `SELECT word` as `SHOW word`; the probes of drivers and monitors are understood as well.
fn select(tokens: &[Token]) -> Result<Command, ParseError> {
    match tokens {
        [Token::Word(one)] if one == "1" => Ok(Command::Show(Show::One)),
        [version, Token::Symbol('('), Token::Symbol(')')] if version.is("version") => {
            Ok(Command::Show(Show::Version))
        }
        [called, Token::Symbol('('), ..] => Err(ParseError::Near(called.shown())),
        _ => show(tokens),
    }
}

fn set(tokens: &[Token]) -> Result<Command, ParseError> {
    let (key, rest) = match tokens {
        [Token::Word(key) | Token::Name(key), rest @ ..] => (key, rest),
        [other, ..] => return Err(ParseError::Near(other.shown())),
        [] => return Err(ParseError::End),
    };
    // A key's path may have quoted parts: `databases."my.db".max_size`.
    let mut key = key.clone();
    let mut rest = rest;
    while let [Token::Name(part), more @ ..] = rest {
        if !key.ends_with('.') {
            return Err(ParseError::Near(part.clone()));
        }
        key = format!("{key}\"{part}\"");
        rest = more;
        if let [Token::Word(part), more @ ..] = rest
            && part.starts_with('.')
        {
            key.push_str(part);
            rest = more;
        }
    }
    let value = match rest {
        [Token::Symbol('='), value @ ..] => value,
        [to, value @ ..] if to.is("to") => value,
        [other, ..] => return Err(ParseError::Near(other.shown())),
        [] => return Err(ParseError::End),
    };
    match value {
        [Token::Word(value) | Token::Name(value) | Token::Text(value)] => Ok(Command::Set {
            key,
            value: Secret::new(value.clone()),
        }),
        [_, other, ..] | [other] => Err(ParseError::Near(other.shown())),
        [] => Err(ParseError::End),
    }
}

fn shutdown(tokens: &[Token]) -> Result<Command, ParseError> {
    let how = match tokens {
        [] => Shutdown::Now,
        [word] if word.is("wait_for_servers") => Shutdown::WaitForServers,
        [word] if word.is("wait_for_clients") => Shutdown::WaitForClients,
        [other, ..] => return Err(ParseError::Near(other.shown())),
    };
    Ok(Command::Shutdown(how))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> Command {
        let mut commands = parse(text).unwrap();
        assert_eq!(commands.len(), 1, "{text}");
        commands.remove(0)
    }

    fn pause(name: &str) -> Command {
        Command::Pause(Some(name.to_owned()))
    }

    #[test]
    fn commands_are_read_in_any_case_with_or_without_a_name() {
        assert_eq!(one("show Pools;"), Command::Show(Show::Pools));
        assert_eq!(one("SELECT version()"), Command::Show(Show::Version));
        assert_eq!(one("select pools"), Command::Show(Show::Pools));
        assert_eq!(one(" PAUSE "), Command::Pause(None));
        assert_eq!(one("pause App-1 -- now"), pause("App-1"));
        assert_eq!(
            one("kill \"my \"\"db\""),
            Command::Kill(Some("my \"db".to_owned()))
        );
        assert_eq!(one("KILL_CLIENT 17"), Command::KillClient(17));
        assert_eq!(
            one("shutdown wait_for_clients"),
            Command::Shutdown(Shutdown::WaitForClients)
        );
    }

    #[test]
    fn several_statements_stand_in_one_text() {
        assert_eq!(
            parse("/* a; */ pause a; ;resume;"),
            Ok(vec![pause("a"), Command::Resume(None)])
        );
        assert_eq!(parse(" ; -- nothing"), Ok(vec![]));
    }

    #[test]
    fn a_setting_takes_a_word_a_number_or_a_string() {
        let set = |key: &str, value: &str| Command::Set {
            key: key.to_owned(),
            value: Secret::new(value.to_owned()),
        };
        assert_eq!(one("SET pool.max_size=5"), set("pool.max_size", "5"));
        assert_eq!(
            one("set timeouts.query_timeout TO '30s'"),
            set("timeouts.query_timeout", "30s")
        );
        assert_eq!(
            one("SET databases.\"my.db\".max_size = 5"),
            set("databases.\"my.db\".max_size", "5")
        );
    }

    #[test]
    fn a_command_says_what_is_set_and_not_to_what() {
        for text in [
            "SET http.admin_token='secret'",
            "SET cluster.primary TO 'postgres://u:secret@h'",
            "SET databases.\"a\".password = secret",
        ] {
            let shown = format!("{:?}", one(text));
            assert!(!shown.contains("secret"), "{shown}");
        }
        let shown = format!("{:?}", one("SET http.admin_token=x"));
        assert!(shown.contains("http.admin_token"), "{shown}");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = |text| parse(text).unwrap_err().to_string();
        assert_eq!(error("SHOW"), "syntax error at end of input");
        assert_eq!(error("SHOW nothing"), "syntax error at or near \"nothing\"");
        assert_eq!(error("FOO bar"), "syntax error at or near \"FOO\"");
        assert_eq!(error("PAUSE a b"), "syntax error at or near \"b\"");
        assert_eq!(error("DISABLE"), "syntax error at end of input");
        assert_eq!(error("KILL 'x"), "unterminated quoted string");
        assert_eq!(error("KILL_CLIENT x"), "invalid client id \"x\"");
        assert_eq!(error("SELECT now()"), "syntax error at or near \"now\"");
        assert_eq!(error("SET a"), "syntax error at end of input");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-zA-Z0-9_ \t\n;'\"*/=.()äß€-]{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_quoted_name_reads_back(given in "\\PC{1,20}") {
            let text = format!("PAUSE \"{}\"", given.replace('"', "\"\""));
            prop_assert_eq!(parse(&text), Ok(vec![Command::Pause(Some(given))]));
        }
    }
}
