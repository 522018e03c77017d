//! Times of day as text, by the civil-calendar arithmetic of eras of 400 years.

use std::time::{Duration, SystemTime};

/// `2025-12-31 23:59:59` and what is left of the second.
fn civil(at: SystemTime) -> (String, String, Duration) {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 0000-03-01, so that a leap day ends its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    (
        format!("{year:04}-{month:02}-{day:02}"),
        format!("{hour:02}:{minute:02}:{second:02}"),
        Duration::from_nanos(since.subsec_nanos().into()),
    )
}

/// As PgBouncer writes it: `2025-12-31 23:59:59 UTC`.
pub fn utc(at: SystemTime) -> String {
    let (day, time, _) = civil(at);
    format!("{day} {time} UTC")
}

/// `2025-12-31T23:59:59.999Z`.
pub fn rfc3339(at: SystemTime) -> String {
    let (day, time, rest) = civil(at);
    format!("{day}T{time}.{:03}Z", rest.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59 UTC");
        let exact = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_599_007);
        assert_eq!(rfc3339(exact), "2025-12-31T23:59:59.007Z");
    }
}
