//! Durations and sizes with units: `"500ms"`, `"30s"`, `"5min"`, `"1h"`, `"1d"`; `"64KiB"`, `"16MiB"`.
//!
//! A number without a unit is refused, because PgBouncer counts seconds, PostgreSQL milliseconds or kilobytes, and
//! nobody remembers which. Only `"0"` needs no unit.

use std::time::Duration;

const DURATIONS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("min", 60_000),
    ("s", 1000),
    ("ms", 1),
];
const SIZES: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A hundred years: far enough for everybody, and adding it to a clock can't overflow.
const LONGEST: u64 = 36_500 * 86_400_000;

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    if number == "0" && unit.is_empty() {
        return Ok(Duration::ZERO);
    }
    let amount = amount(
        number,
        "a duration such as \"500ms\", \"30s\", \"5min\", \"1h\" or \"1d\"",
    )?;
    if unit.is_empty() {
        return Err(missing_duration_unit(number));
    }
    let Some((_, factor)) = DURATIONS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "unknown unit {unit:?} of a duration: write ms, s, min, h or d"
        ));
    };
    match amount.checked_mul(*factor) {
        Some(millis) if millis <= LONGEST => Ok(Duration::from_millis(millis)),
        _ => Err("longer than a hundred years".to_owned()),
    }
}

/// What to write instead of a bare number.
pub(super) fn missing_duration_unit(number: &str) -> String {
    format!("a duration needs a unit: write \"{number}s\" or \"{number}ms\"")
}

pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let amount = amount(number, "a size such as \"64KiB\" or \"16MiB\"")?;
    if unit.is_empty() {
        return Err(missing_size_unit(number));
    }
    let Some((_, factor)) = SIZES.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "unknown unit {unit:?} of a size: write B, KiB, MiB or GiB"
        ));
    };
    amount
        .checked_mul(*factor)
        .ok_or_else(|| "too large".to_owned())
}

/// What to write instead of a bare number.
pub(super) fn missing_size_unit(number: &str) -> String {
    format!("a size needs a unit: write \"{number}KiB\" or \"{number}B\"")
}

/// The shortest text that [`parse_duration`] reads back as the same whole milliseconds.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(LONGEST);
    show(millis, &DURATIONS)
}

/// The shortest text that [`parse_size`] reads back as the same size.
pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, &SIZES)
}

fn show(amount: u64, units: &[(&str, u64)]) -> String {
    let whole = |(_, factor): &&(&str, u64)| amount != 0 && amount.is_multiple_of(*factor);
    match units.iter().find(whole) {
        Some((unit, factor)) => format!("{}{unit}", amount / factor),
        None => "0".to_owned(),
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

fn amount(number: &str, wanted: &str) -> Result<u64, String> {
    if number.is_empty() {
        return Err(format!("expected {wanted}"));
    }
    number.parse().map_err(|_| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_with_their_units() {
        let rows = [
            ("0", Ok(0)),
            ("0s", Ok(0)),
            ("500ms", Ok(500)),
            ("30s", Ok(30_000)),
            (" 5 min ", Ok(300_000)),
            ("1h", Ok(3_600_000)),
            ("1d", Ok(86_400_000)),
            (
                "30",
                Err("a duration needs a unit: write \"30s\" or \"30ms\""),
            ),
            (
                "30sec",
                Err("unknown unit \"sec\" of a duration: write ms, s, min, h or d"),
            ),
            (
                "5m",
                Err("unknown unit \"m\" of a duration: write ms, s, min, h or d"),
            ),
            (
                "1.5s",
                Err("unknown unit \".5s\" of a duration: write ms, s, min, h or d"),
            ),
            (
                "soon",
                Err("expected a duration such as \"500ms\", \"30s\", \"5min\", \"1h\" or \"1d\""),
            ),
            (
                "-1s",
                Err("expected a duration such as \"500ms\", \"30s\", \"5min\", \"1h\" or \"1d\""),
            ),
            ("99999999999999999999s", Err("too large")),
            ("36501d", Err("longer than a hundred years")),
            ("18446744073709551615d", Err("longer than a hundred years")),
        ];
        for (text, expected) in rows {
            let expected = expected.map(Duration::from_millis).map_err(str::to_owned);
            assert_eq!(parse_duration(text), expected, "{text}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        let rows = [
            ("64KiB", Ok(65_536)),
            ("16MiB", Ok(16_777_216)),
            ("1GiB", Ok(1_073_741_824)),
            ("2147483647B", Ok(2_147_483_647)),
            ("64", Err("a size needs a unit: write \"64KiB\" or \"64B\"")),
            (
                "64kB",
                Err("unknown unit \"kB\" of a size: write B, KiB, MiB or GiB"),
            ),
            ("", Err("expected a size such as \"64KiB\" or \"16MiB\"")),
            ("18446744073709551615GiB", Err("too large")),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_size(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(millis in 0..=LONGEST, bytes in 1_u64..u64::MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}
