//! PgBouncer's values as TOML: seconds become durations, zeros that mean something else are named.

use std::path::Path;
use std::time::Duration;

use super::ini::resolve;
use crate::config::document::show_string;
use crate::config::units::{show_duration, show_size};

/// How a setting's value is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Text,
    Path,
    /// Names with commas between them.
    Names,
    Flag,
    Count,
    /// A pool's size, where zero is unlimited.
    PoolSize,
    /// Seconds, where zero is no limit, or no wait.
    Limit,
    /// Seconds, where zero is not possible here.
    Duration,
    /// Seconds, where zero closes a connection after one use.
    Lifetime,
    Milliseconds,
    Bytes,
    Mode,
    PoolMode,
    SslMode,
}

/// A value as TOML, and what is not the same about it.
#[derive(Debug, PartialEq)]
pub(super) struct Written {
    /// `None`: it can't be written, the default holds.
    pub(super) toml: Option<String>,
    pub(super) note: Option<String>,
}

impl Written {
    fn same(toml: String) -> Self {
        Self {
            toml: Some(toml),
            note: None,
        }
    }

    fn noted(toml: Option<String>, note: &str) -> Self {
        Self {
            toml,
            note: Some(note.to_owned()),
        }
    }
}

/// The largest pool that a configuration takes.
const UNLIMITED: u64 = 100_000;
/// The largest of the other numbers.
const LARGEST_COUNT: u64 = 10_000_000;
const SMALLEST_PACKET: u64 = 10_000;
const LARGEST_PACKET: u64 = 2_147_483_647;
const NOT_UNDERSTOOD: &str = "the value is not understood and left out";

/// Writes `value`, which stands in the file `from`.
pub(super) fn write(kind: Kind, value: &str, from: &Path) -> Written {
    match kind {
        Kind::Text => Written::same(text(value)),
        Kind::Path => path(value, from),
        Kind::Names => Written::same(names(value)),
        Kind::Flag => match flag(value) {
            Some(flag) => Written::same(flag.to_string()),
            None => Written::noted(None, NOT_UNDERSTOOD),
        },
        Kind::Count | Kind::PoolSize | Kind::Bytes | Kind::Mode => match number(value) {
            Some(number) => write_number(kind, number),
            None => Written::noted(None, NOT_UNDERSTOOD),
        },
        Kind::Limit | Kind::Duration | Kind::Lifetime | Kind::Milliseconds => {
            let unit = if matches!(kind, Kind::Milliseconds) {
                0.001
            } else {
                1.0
            };
            match seconds(value, unit) {
                Some(duration) => write_duration(kind, duration),
                None => Written::noted(None, NOT_UNDERSTOOD),
            }
        }
        Kind::PoolMode => word(value, &["session", "transaction", "statement"]),
        Kind::SslMode => word(
            value,
            &[
                "disable",
                "allow",
                "prefer",
                "require",
                "verify-ca",
                "verify-full",
            ],
        ),
    }
}

/// A string, in which nothing is taken for a variable.
pub(super) fn text(value: &str) -> String {
    show_string(&value.replace("${", "$${"))
}

pub(super) fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| text(item)).collect();
    format!("[{}]", items.join(", "))
}

fn path(value: &str, from: &Path) -> Written {
    let path = resolve(from, Path::new(value));
    let toml = text(&path.display().to_string());
    if value.is_empty() {
        Written {
            toml: None,
            note: None,
        }
    } else if value.starts_with('~') {
        Written::noted(Some(toml), "write the home folder out in the path")
    } else if path.is_relative() {
        Written::noted(Some(toml), "the path is relative to the new file's folder")
    } else {
        Written::same(toml)
    }
}

fn names(value: &str) -> String {
    let names = value
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    list(&names.map(str::to_owned).collect::<Vec<_>>())
}

fn word(value: &str, words: &[&str]) -> Written {
    match words.iter().find(|word| word.eq_ignore_ascii_case(value)) {
        Some(word) => Written::same(text(word)),
        None => Written::noted(None, NOT_UNDERSTOOD),
    }
}

pub(super) fn flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// A whole number as C reads one: decimal, `0` before octal, `0x` before hexadecimal.
pub(super) fn number(value: &str) -> Option<u64> {
    if let Some(digits) = value.strip_prefix("0x") {
        u64::from_str_radix(digits, 16).ok()
    } else if value.len() > 1 && value.starts_with('0') {
        u64::from_str_radix(value, 8).ok()
    } else {
        value.parse().ok()
    }
}

fn write_number(kind: Kind, number: u64) -> Written {
    match kind {
        Kind::PoolSize if number == 0 => Written::noted(
            Some(UNLIMITED.to_string()),
            "0 is unlimited in PgBouncer: the largest size stands in its place",
        ),
        Kind::PoolSize => clamped(number, 1, UNLIMITED, &|number| number.to_string()),
        Kind::Bytes => clamped(number, SMALLEST_PACKET, LARGEST_PACKET, &|bytes| {
            text(&show_size(bytes))
        }),
        Kind::Mode => clamped(number, 0, 0o777, &|mode| format!("\"{mode:04o}\"")),
        _ => clamped(number, 0, LARGEST_COUNT, &|number| number.to_string()),
    }
}

fn clamped(number: u64, least: u64, most: u64, show: &dyn Fn(u64) -> String) -> Written {
    let toml = show(number.clamp(least, most));
    if (least..=most).contains(&number) {
        Written::same(toml)
    } else {
        Written::noted(Some(toml), "the nearest possible value is written")
    }
}

/// A number of seconds, with or without a fraction.
fn seconds(value: &str, unit: f64) -> Option<Duration> {
    const MOST: f64 = 86_400.0 * 36_500.0;
    let seconds = value.parse::<f64>().ok()? * unit;
    if !(0.0..=MOST).contains(&seconds) {
        return None;
    }
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    // Less than can be written is still more than nothing.
    let rounded = Duration::from_millis(u64::try_from(duration.as_millis()).ok()?);
    Some(if rounded.is_zero() && !duration.is_zero() {
        Duration::from_millis(1)
    } else {
        rounded
    })
}

fn write_duration(kind: Kind, duration: Duration) -> Written {
    match kind {
        Kind::Duration if duration.is_zero() => Written::noted(
            None,
            "0 is no limit in PgBouncer; here there always is one, and the default holds",
        ),
        Kind::Lifetime if duration.is_zero() => Written::noted(
            Some(text("1s")),
            "0 closes a connection after one use in PgBouncer: a lifetime of 1s is the nearest",
        ),
        _ => Written::same(text(&show_duration(duration))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_with_units_and_bounds() {
        let none = |kind, value| write(kind, value, Path::new("x.ini"));
        let rows: [(Kind, &str, Option<&str>, bool); 33] = [
            (Kind::Limit, "30", Some("\"30s\""), false),
            (Kind::Limit, "0.5", Some("\"500ms\""), false),
            (Kind::Limit, "0.0001", Some("\"1ms\""), false),
            (Kind::Limit, "3600", Some("\"1h\""), false),
            (Kind::Limit, "0", Some("\"0\""), false),
            (Kind::Limit, "soon", None, true),
            (Kind::Limit, "-1", None, true),
            (Kind::Limit, "1e300", None, true),
            (Kind::Limit, "nan", None, true),
            (Kind::Duration, "15", Some("\"15s\""), false),
            (Kind::Duration, "0", None, true),
            (Kind::Lifetime, "0", Some("\"1s\""), true),
            (Kind::Lifetime, "7200", Some("\"2h\""), false),
            (Kind::Milliseconds, "1500", Some("\"1500ms\""), false),
            (Kind::Count, "100", Some("100"), false),
            (Kind::Count, "0x10", Some("16"), false),
            (Kind::Count, "many", None, true),
            (Kind::Count, "4294967295", Some("10000000"), true),
            (Kind::PoolSize, "0", Some("100000"), true),
            (Kind::PoolSize, "5", Some("5"), false),
            (Kind::Bytes, "2147483647", Some("\"2147483647B\""), false),
            (Kind::Bytes, "16", Some("\"10000B\""), true),
            (Kind::Mode, "0770", Some("\"0770\""), false),
            (Kind::Mode, "511", Some("\"0777\""), false),
            (Kind::Flag, "1", Some("true"), false),
            (Kind::Flag, "Off", Some("false"), false),
            (Kind::Flag, "maybe", None, true),
            (
                Kind::Names,
                "a, b,,c ",
                Some("[\"a\", \"b\", \"c\"]"),
                false,
            ),
            (Kind::Text, "a${B}\"", Some("\"a$${B}\\\"\""), false),
            (Kind::Path, "/etc/x", Some("\"/etc/x\""), false),
            (Kind::Path, "not/there", Some("\"not/there\""), true),
            (
                Kind::PoolMode,
                "Transaction",
                Some("\"transaction\""),
                false,
            ),
            (Kind::SslMode, "verify-none", None, true),
        ];
        for (kind, value, toml, noted) in rows {
            let written = none(kind, value);
            assert_eq!(written.toml.as_deref(), toml, "{kind:?} {value}");
            assert_eq!(written.note.is_some(), noted, "{kind:?} {value}");
        }
    }
}
