//! Messages from the backend: borrowed views of those the relay looks into, and builders for those pgweir sends to
//! its own clients.

use super::frame::{put, put_cstr, take_cstr};
use crate::error::{Report, SqlState};

pub const AUTHENTICATION: u8 = b'R';
pub const BACKEND_KEY_DATA: u8 = b'K';
pub const BIND_COMPLETE: u8 = b'2';
pub const CLOSE_COMPLETE: u8 = b'3';
pub const COMMAND_COMPLETE: u8 = b'C';
pub const COPY_BOTH_RESPONSE: u8 = b'W';
pub const COPY_DATA: u8 = b'd';
pub const COPY_DONE: u8 = b'c';
pub const COPY_IN_RESPONSE: u8 = b'G';
pub const COPY_OUT_RESPONSE: u8 = b'H';
pub const DATA_ROW: u8 = b'D';
pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
pub const ERROR_RESPONSE: u8 = b'E';
pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
pub const NO_DATA: u8 = b'n';
pub const NOTICE_RESPONSE: u8 = b'N';
pub const NOTIFICATION_RESPONSE: u8 = b'A';
pub const PARAMETER_DESCRIPTION: u8 = b't';
pub const PARAMETER_STATUS: u8 = b'S';
pub const PARSE_COMPLETE: u8 = b'1';
pub const PORTAL_SUSPENDED: u8 = b's';
pub const READY_FOR_QUERY: u8 = b'Z';
pub const ROW_DESCRIPTION: u8 = b'T';

/// Whole messages that never vary.
pub const CLOSE_COMPLETE_FRAME: [u8; 5] = *b"3\0\0\0\x04";
pub const PARSE_COMPLETE_FRAME: [u8; 5] = *b"1\0\0\0\x04";
pub const BIND_COMPLETE_FRAME: [u8; 5] = *b"2\0\0\0\x04";
pub const NO_DATA_FRAME: [u8; 5] = *b"n\0\0\0\x04";

/// The transaction status that `ReadyForQuery` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TransactionStatus {
    #[default]
    Idle,
    InTransaction,
    Failed,
}

impl TransactionStatus {
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    pub fn as_byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}

/// Reads a `ParameterStatus` payload: name and value.
pub fn parameter_status(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = payload;
    let name = take_cstr(&mut rest)?;
    let value = take_cstr(&mut rest)?;
    rest.is_empty().then_some((name, value))
}

/// The channel of a `NotificationResponse`.
pub fn notification_channel(payload: &[u8]) -> Option<&[u8]> {
    let mut rest = payload.get(4..)?;
    take_cstr(&mut rest)
}

/// The rows a `CommandComplete` tag counts: its last word, if that is a number.
pub fn rows(payload: &[u8]) -> u64 {
    let tag = payload.strip_suffix(&[0]).unwrap_or(payload);
    let digits = tag.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    digits
        .iter()
        .fold(0, |rows, digit| rows * 10 + u64::from(digit - b'0'))
}

/// The value of one field of an `ErrorResponse` or `NoticeResponse`.
pub fn error_field(payload: &[u8], field: u8) -> Option<&[u8]> {
    let mut rest = payload;
    loop {
        let (&kind, tail) = rest.split_first()?;
        rest = tail;
        if kind == 0 {
            return None;
        }
        let value = take_cstr(&mut rest)?;
        if kind == field {
            return Some(value);
        }
    }
}

/// The SQLSTATE of an `ErrorResponse`.
pub fn sqlstate(payload: &[u8]) -> Option<SqlState> {
    error_field(payload, b'C')?.try_into().ok().map(SqlState)
}

/// Whether an `ErrorResponse` announces that the server closes the connection. The non-localised severity (`V`,
/// PostgreSQL 9.6 and later) is preferred.
pub fn is_fatal(payload: &[u8]) -> bool {
    let severity = error_field(payload, b'V').or_else(|| error_field(payload, b'S'));
    matches!(severity, Some(b"FATAL" | b"PANIC"))
}

/// The columns of a `DataRow` in text form; `None` for NULL. Only for replies to pgweir's own statements.
pub fn columns(payload: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = payload.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let Ok(len) = usize::try_from(i32::from_be_bytes(*len)) else {
            columns.push(None);
            rest = tail;
            continue;
        };
        columns.push(Some(tail.get(..len)?));
        rest = &tail[len..];
    }
    rest.is_empty().then_some(columns)
}

/// Appends a `ParameterStatus`.
pub fn put_parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, PARAMETER_STATUS, |out| {
        put_cstr(out, name);
        put_cstr(out, value);
    });
}

/// Appends `ReadyForQuery`.
pub fn put_command_complete(out: &mut Vec<u8>, tag: &[u8]) {
    put(out, COMMAND_COMPLETE, |out| put_cstr(out, tag));
}

pub fn put_ready_for_query(out: &mut Vec<u8>, status: TransactionStatus) {
    put(out, READY_FOR_QUERY, |out| out.push(status.as_byte()));
}

/// Appends `AuthenticationOk`.
pub fn put_authentication_ok(out: &mut Vec<u8>) {
    put(out, AUTHENTICATION, |out| out.extend_from_slice(&[0; 4]));
}

/// Appends `BackendKeyData`.
pub fn put_backend_key_data(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    put(out, BACKEND_KEY_DATA, |out| {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(key);
    });
}

/// Appends an `ErrorResponse`, or a `NoticeResponse` where the report is a warning or notice.
pub fn put_report(out: &mut Vec<u8>, report: &Report) {
    use crate::error::Severity;
    let tag = match report.severity {
        Severity::Error | Severity::Fatal => ERROR_RESPONSE,
        Severity::Warning | Severity::Notice => NOTICE_RESPONSE,
    };
    put(out, tag, |out| {
        let severity = report.severity.as_str().as_bytes();
        let mut field = |kind: u8, value: &[u8]| {
            out.push(kind);
            put_cstr(out, value);
        };
        field(b'S', severity);
        field(b'V', severity);
        field(b'C', report.code.as_str().as_bytes());
        field(b'M', report.message.as_bytes());
        if let Some(detail) = &report.detail {
            field(b'D', detail.as_bytes());
        }
        if let Some(hint) = &report.hint {
            field(b'H', hint.as_bytes());
        }
        out.push(0);
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_are_the_last_number_of_the_tag() {
        assert_eq!(rows(b"SELECT 12\0"), 12);
        assert_eq!(rows(b"INSERT 0 3\0"), 3);
        assert_eq!(rows(b"BEGIN\0"), 0);
        assert_eq!(rows(b"\0"), 0);
        assert_eq!(rows(b"COPY 99999999999999999999\0"), 0);
    }

    #[test]
    fn error_fields_are_found_and_a_cut_message_is_not_read_past() {
        let payload = b"SERROR\0VERROR\0C40P01\0Mdeadlock detected\0\0";
        assert_eq!(sqlstate(payload), Some(SqlState::DEADLOCK_DETECTED));
        assert_eq!(error_field(payload, b'D'), None);
        assert_eq!(error_field(b"SERROR\0C40", b'C'), None);
        assert!(!is_fatal(payload));
        assert!(is_fatal(b"SFATAL\0VFATAL\0C57P01\0\0"));
    }

    #[test]
    fn a_report_reads_back_as_it_was_written() {
        let mut out = Vec::new();
        put_report(
            &mut out,
            &Report::error(SqlState::QUERY_CANCELED, "canceling").hint("raise it"),
        );
        assert_eq!(out[0], b'E');
        assert_eq!(error_field(&out[5..], b'H'), Some(&b"raise it"[..]));
        assert_eq!(sqlstate(&out[5..]), Some(SqlState::QUERY_CANCELED));
    }

    #[test]
    fn columns_of_a_row_are_checked_against_its_length() {
        assert_eq!(
            columns(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff"),
            Some(vec![Some(&b"a"[..]), None])
        );
        assert_eq!(columns(b"\0\x01\0\0\0\x05a"), None);
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), field in any::<u8>()) {
            let _ = (parameter_status(&bytes), rows(&bytes), error_field(&bytes, field));
            let _ = (sqlstate(&bytes), is_fatal(&bytes), columns(&bytes));
        }

        #[test]
        fn a_status_is_read_back_and_nothing_shorter_is(
            name in prop::collection::vec(1..=255_u8, 0..12),
            value in prop::collection::vec(1..=255_u8, 0..12),
        ) {
            let mut out = Vec::new();
            put_parameter_status(&mut out, &name, &value);
            let payload = &out[5..];
            prop_assert_eq!(parameter_status(payload), Some((&name[..], &value[..])));
            for cut in 0..payload.len() {
                prop_assert_eq!(parameter_status(&payload[..cut]), None);
            }
        }

        #[test]
        fn columns_are_read_back_and_nothing_shorter_is(
            values in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..9)), 0..6),
        ) {
            let mut payload = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
            for value in &values {
                let len = value.as_ref().map_or(-1, |value| i32::try_from(value.len()).unwrap());
                payload.extend(len.to_be_bytes());
                payload.extend(value.iter().flatten());
            }
            let read = columns(&payload).unwrap();
            prop_assert!(read.iter().copied().eq(values.iter().map(Option::as_deref)));
            for cut in 0..payload.len() {
                prop_assert_eq!(columns(&payload[..cut]), None);
            }
        }

        #[test]
        fn the_count_of_a_tag_is_its_last_word(rows_sent in any::<u64>(), word in "[A-Z]{1,9}( [A-Z0]{1,9})?") {
            let expected = if rows_sent.to_string().len() > 19 { 0 } else { rows_sent };
            prop_assert_eq!(rows(format!("{word} {rows_sent}\0").as_bytes()), expected);
        }
    }
}
