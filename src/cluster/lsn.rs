//! Positions in the write-ahead log.

use std::fmt;

/// A byte position, as in PostgreSQL's type `pg_lsn`. Two of them mean something to each other on one timeline only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// The head of the first page of a segment, and that of any other page, in bytes.
const LONG_HEAD: u64 = 40;
const SHORT_HEAD: u64 = 24;

/// How a server cuts its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalShape {
    pub segment: u64,
    pub page: u64,
}

impl Default for WalShape {
    fn default() -> Self {
        Self {
            segment: 16 << 20,
            page: 8192,
        }
    }
}

impl Lsn {
    /// `16/B374D848`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (high, low) = std::str::from_utf8(text).ok()?.split_once('/')?;
        let part = |text: &str| match text.len() {
            1..=8 if text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u64::from_str_radix(text, 16).ok()
            }
            _ => None,
        };
        Some(Self(part(high)? << 32 | part(low)?))
    }

    /// The end of what is written, for the position where the next record will be inserted. At the beginning of a page
    /// the two differ by the page's head: a replica that has replayed everything reports the former, and would seem to
    /// lag until something else is written.
    #[must_use]
    pub fn end_of_written(self, shape: WalShape) -> Self {
        let Self(at) = self;
        if shape.segment == 0 || shape.page == 0 {
            return self;
        }
        if at % shape.segment == LONG_HEAD {
            Self(at - LONG_HEAD)
        } else if at % shape.page == SHORT_HEAD && at % shape.segment != SHORT_HEAD {
            Self(at - SHORT_HEAD)
        } else {
            self
        }
    }

    /// How many bytes `self` is ahead of `other`.
    pub fn ahead_of(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_and_written_as_the_server_does() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(Lsn::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        for text in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "+1/1",
            "1/123456789",
            "g/1",
            "1/1/1",
        ] {
            assert_eq!(Lsn::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_page_head_is_not_written_yet() {
        let shape = WalShape::default();
        let end = |at: u64| Lsn(at).end_of_written(shape).0;
        let segment = shape.segment * 3;
        assert_eq!(end(segment + 40), segment);
        assert_eq!(end(segment + 8192 + 24), segment + 8192);
        // The rest of a record that began on the page before.
        assert_eq!(end(segment + 8192 + 40), segment + 8192 + 40);
        assert_eq!(end(segment + 8192 + 32), segment + 8192 + 32);
        assert_eq!(end(segment + 24), segment + 24);
        assert_eq!(end(segment + 100), segment + 100);
    }
}
