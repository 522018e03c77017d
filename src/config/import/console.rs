//! PgBouncer's names on the console: scripts that `SET` them or read them in `SHOW CONFIG` go on working.
//!
//! Only those that are one key of pgweir's, and whose values are numbers, times in seconds, flags or a pool's mode.

use std::path::Path;
use std::time::Duration;

use super::settings::{Carry, SETTINGS, carry};
use super::values::{Kind, write};
use crate::config::show::Setting;
use crate::config::units::parse_duration;

fn is_carried(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Flag
            | Kind::Count
            | Kind::PoolSize
            | Kind::Limit
            | Kind::Duration
            | Kind::Lifetime
            | Kind::PoolMode
    )
}

/// The key that PgBouncer calls `name`, and `value` as pgweir writes it; `None` if it is not one of these names.
pub fn translate(name: &str, value: &str) -> Option<(String, String)> {
    match carry(SETTINGS, name)? {
        Carry::Key(table, key, kind) if is_carried(kind) => {
            let written = write(kind, value, Path::new(""));
            // What is not understood is refused as the key's own value.
            let value = written.toml.unwrap_or_else(|| value.to_owned());
            Some((format!("{table}.{key}"), value.trim_matches('"').to_owned()))
        }
        _ => None,
    }
}

/// The settings that PgBouncer has as well, under its names and in its units.
pub fn shown(settings: &[Setting]) -> Vec<Setting> {
    let alias = |(name, carry): &(&str, Carry)| {
        let Carry::Key(table, key, kind) = *carry else {
            return None;
        };
        let own = format!("{table}.{key}");
        let setting = settings.iter().find(|setting| setting.key == own)?;
        Some(Setting {
            key: (*name).to_owned(),
            value: show(kind, &setting.value)?,
            default: show(kind, &setting.default).unwrap_or_default(),
            effect: setting.effect,
        })
    };
    SETTINGS.iter().filter_map(alias).collect()
}

/// A value as PgBouncer shows it; `None` for one it can't have.
fn show(kind: Kind, value: &str) -> Option<String> {
    match kind {
        Kind::Flag => Some(if value == "true" { "1" } else { "0" }.to_owned()),
        // What is not set is no limit, which is PgBouncer's zero.
        Kind::Count | Kind::Limit if value.is_empty() => Some("0".to_owned()),
        Kind::Count | Kind::PoolSize | Kind::PoolMode => Some(value.to_owned()),
        Kind::Limit | Kind::Duration | Kind::Lifetime => parse_duration(value).ok().map(seconds),
        _ => None,
    }
}

fn seconds(duration: Duration) -> String {
    duration.as_secs_f64().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_of_pgbouncer_are_understood() {
        let set = |name, value| translate(name, value);
        let pair = |key: &str, value: &str| Some((key.to_owned(), value.to_owned()));
        assert_eq!(set("default_pool_size", "20"), pair("pool.max_size", "20"));
        assert_eq!(
            set("query_timeout", "1.5"),
            pair("timeouts.query_timeout", "1500ms")
        );
        assert_eq!(
            set("log_connections", "1"),
            pair("log.log_connections", "true")
        );
        assert_eq!(
            set("pool_mode", "session"),
            pair("pool.pool_mode", "session")
        );
        assert_eq!(set("default_pool_size", "x"), pair("pool.max_size", "x"));
        assert_eq!(set("auth_query", "SELECT"), None);
        assert_eq!(set("pool.max_size", "20"), None);
    }

    #[test]
    fn values_are_shown_in_its_units() {
        let setting = |key: &str, value: &str| Setting {
            key: key.to_owned(),
            value: value.to_owned(),
            default: String::new(),
            effect: crate::config::Effect::Live,
        };
        let shown = shown(&[
            setting("general.max_client_conn", "500"),
            setting("pool.max_db_connections", ""),
            setting("timeouts.query_wait_timeout", "2min"),
            setting("log.log_connections", "true"),
            setting("auth.auth_query", "SELECT"),
        ]);
        let shown: Vec<_> = shown.iter().map(|it| (&*it.key, &*it.value)).collect();
        assert_eq!(
            shown,
            [
                ("max_client_conn", "500"),
                ("max_db_connections", "0"),
                ("log_connections", "1"),
                ("query_wait_timeout", "120"),
            ]
        );
    }
}
