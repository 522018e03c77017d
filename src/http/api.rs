//! What can be asked for below `/api/`.

use crate::meter::QueryId;

/// A question, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Everything the page shows of this moment.
    Now,
    /// The points of the last 15 minutes: of the whole, or of one pool.
    History(Option<PoolName>),
    Pools,
    Nodes,
    Pins,
    /// What waits for locks.
    Waits,
    Errors,
    Slow,
    Advice,
    /// Statements whose text or number contains this.
    Queries(String),
    /// One statement and how it fared over the last 15 minutes.
    Query(QueryId),
}

/// A pool, as clients name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolName {
    pub(super) database: String,
    pub(super) user: String,
}

impl Question {
    /// From what follows `/api/` and what follows `?`.
    pub(super) fn of(path: &str, query: &str) -> Option<Self> {
        Some(match path {
            "now" => Self::Now,
            "pools" => Self::Pools,
            "nodes" => Self::Nodes,
            "pins" => Self::Pins,
            "waits" => Self::Waits,
            "errors" => Self::Errors,
            "slow" => Self::Slow,
            "advice" => Self::Advice,
            "queries" => Self::Queries(parameter(query, "search").unwrap_or_default()),
            "history" => Self::History(pool_name(query)),
            _ => Self::Query(query_id(path.strip_prefix("query/")?)?),
        })
    }
}

/// 16 hexadecimal digits, as they are shown everywhere.
fn query_id(text: &str) -> Option<QueryId> {
    let is_number = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number
        .then(|| u64::from_str_radix(text, 16).ok().map(QueryId))
        .flatten()
}

fn pool_name(query: &str) -> Option<PoolName> {
    Some(PoolName {
        database: parameter(query, "database")?,
        user: parameter(query, "user")?,
    })
}

/// The first value of `name` in a query string; what is no UTF-8 is replaced.
fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| decode(value))
    })
}

/// Undoes percent-encoding; a percent sign that begins none stands for itself.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        let hex = |place: usize| {
            let digit = char::from(*tail.get(place)?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        rest = tail;
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(high << 4 | low);
                rest = &tail[2..];
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions_are_understood() {
        assert_eq!(Question::of("now", ""), Some(Question::Now));
        let of_pool = Question::of("history", "user=a%26b+c&database=%C3%BC%zz%4");
        let pool = PoolName {
            database: "ü%zz%4".into(),
            user: "a&b c".into(),
        };
        assert_eq!(of_pool, Some(Question::History(Some(pool))));
        assert_eq!(
            Question::of("history", "user=a"),
            Some(Question::History(None))
        );
        let one = Question::of("query/00000000000000fF", "");
        assert_eq!(one, Some(Question::Query(QueryId(255))));
        let search = Question::of("queries", "search=a%20b");
        assert_eq!(search, Some(Question::Queries("a b".into())));
        for unknown in [
            "query/",
            "query/ff",
            "query/+0000000000000ff",
            "query/zz",
            "",
            "Now",
            "now/",
            "../now",
            "pools/x",
        ] {
            assert_eq!(Question::of(unknown, ""), None, "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_decoded(text in ".*") {
            decode(&text);
        }

        #[test]
        fn what_was_encoded_comes_back(text in ".*") {
            let encoded: Vec<String> = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&encoded.concat()), text);
        }
    }
}
