//! Result tables and their encoding: columns with types, rows in text or binary format.

use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::data::{DataRow, FieldDescription, RowDescription};

/// A column's type, by what PgBouncer declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Int4,
    Int8,
    Float8,
    Numeric,
}

impl Kind {
    /// Type's object id and size.
    fn type_of(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int4 => (23, 4),
            Self::Int8 => (20, 8),
            Self::Float8 => (701, 8),
            Self::Numeric => (1700, -1),
        }
    }
}

/// A column's name and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
}

pub(super) const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: Kind::Text,
    }
}

pub(super) const fn int4(name: &'static str) -> Column {
    Column {
        name,
        kind: Kind::Int4,
    }
}

pub(super) const fn int8(name: &'static str) -> Column {
    Column {
        name,
        kind: Kind::Int8,
    }
}

pub(super) const fn float8(name: &'static str) -> Column {
    Column {
        name,
        kind: Kind::Float8,
    }
}

pub(super) const fn numeric(name: &'static str) -> Column {
    Column {
        name,
        kind: Kind::Numeric,
    }
}

/// A field's value; a number's width is its column's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Text(String),
    Number(u64),
    /// In milliseconds, as `pg_stat_statements` has them.
    Time(Duration),
}

impl Value {
    /// As a number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Null | Self::Text(_) => None,
            // Only compared: what does not fit 53 bits is as good as its neighbour.
            #[allow(clippy::cast_precision_loss, reason = "see above")]
            Self::Number(number) => Some(*number as f64),
            Self::Time(time) => Some(millis(*time)),
        }
    }

    /// As text.
    pub fn shown(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Time(time) => shown_millis(*time),
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// To the nanosecond, as it was counted.
fn shown_millis(time: Duration) -> String {
    let nanos = time.as_nanos();
    let (whole, part) = (nanos / 1_000_000, nanos % 1_000_000);
    if part == 0 {
        return whole.to_string();
    }
    format!("{whole}.{part:06}")
        .trim_end_matches('0')
        .to_owned()
}

impl From<Duration> for Value {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(u64::try_from(number).unwrap_or(u64::MAX))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Number(value.into())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A row, in the order of its columns.
pub type Row = Vec<Value>;

/// The formats a portal's columns were asked for in: none, one for all, or one each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats(Vec<i16>);

impl Formats {
    /// `None` unless there are none, one, or as many as `columns`, and all are 0 or 1.
    pub fn new(codes: Vec<i16>, columns: usize) -> Option<Self> {
        let fits = codes.len() <= 1 || codes.len() == columns;
        (fits && codes.iter().all(|code| matches!(code, 0 | 1))).then_some(Self(codes))
    }

    fn of(&self, column: usize) -> i16 {
        match self.0.as_slice() {
            [] => 0,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(0),
        }
    }
}

fn put_message(out: &mut Vec<u8>, message: &impl Message) -> io::Result<()> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes).map_err(io::Error::other)?;
    out.extend_from_slice(&bytes);
    Ok(())
}

/// Appends the `RowDescription`.
pub fn put_columns(out: &mut Vec<u8>, columns: &[Column], formats: &Formats) -> io::Result<()> {
    let field = |(place, column): (usize, &Column)| {
        let (type_id, size) = column.kind.type_of();
        FieldDescription::new(
            column.name.to_owned(),
            0,
            0,
            type_id,
            size,
            -1,
            formats.of(place),
        )
    };
    let fields = columns.iter().enumerate().map(field).collect();
    put_message(out, &RowDescription::new(fields))
}

/// Appends a `DataRow`.
pub fn put_row(
    out: &mut Vec<u8>,
    columns: &[Column],
    formats: &Formats,
    row: &[Value],
) -> io::Result<()> {
    let mut data = BytesMut::new();
    for (place, (column, value)) in columns.iter().zip(row).enumerate() {
        match encode(value, column.kind, formats.of(place) == 1) {
            None => data.put_i32(-1),
            Some(bytes) => {
                data.put_i32(i32::try_from(bytes.len()).map_err(io::Error::other)?);
                data.put_slice(&bytes);
            }
        }
    }
    let count = i16::try_from(columns.len()).map_err(io::Error::other)?;
    put_message(out, &DataRow::new(data, count))
}

/// A number too large for its column is shown as the largest that fits.
fn encode(value: &Value, kind: Kind, binary: bool) -> Option<Vec<u8>> {
    let number = match value {
        Value::Null => return None,
        Value::Text(_) => return Some(value.shown().into_bytes()),
        Value::Time(time) if binary => return Some(millis(*time).to_be_bytes().to_vec()),
        Value::Time(_) => return Some(value.shown().into_bytes()),
        Value::Number(number) => *number,
    };
    let int4 = i32::try_from(number).unwrap_or(i32::MAX);
    let int8 = i64::try_from(number).unwrap_or(i64::MAX);
    Some(match (kind, binary) {
        (Kind::Int4, false) => int4.to_string().into_bytes(),
        (Kind::Int4, true) => int4.to_be_bytes().to_vec(),
        (Kind::Int8, false) => int8.to_string().into_bytes(),
        (Kind::Int8, true) => int8.to_be_bytes().to_vec(),
        (Kind::Numeric, true) => binary_numeric(number),
        // The tables' own numbers in such columns are times; a count would lose what exceeds 53 bits.
        #[allow(clippy::cast_precision_loss, reason = "see above")]
        (Kind::Float8, true) => (number as f64).to_be_bytes().to_vec(),
        (Kind::Numeric | Kind::Float8, false) | (Kind::Text, _) => number.to_string().into_bytes(),
    })
}

/// `numeric`'s binary form: digits to base 10,000 with the weight of the first.
fn binary_numeric(mut number: u64) -> Vec<u8> {
    let mut digits: Vec<u16> = Vec::new();
    while number > 0 {
        // A remainder of 10,000 fits.
        digits.push(u16::try_from(number % 10_000).unwrap_or(0));
        number /= 10_000;
    }
    digits.reverse();
    // At most five digits make up 64 bits.
    let count = i16::try_from(digits.len()).unwrap_or(0);
    let mut bytes = Vec::new();
    bytes.put_i16(count);
    bytes.put_i16((count - 1).max(0));
    bytes.put_i16(0);
    bytes.put_i16(0);
    for digit in digits {
        bytes.put_u16(digit);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_encoded_by_their_columns_type_and_format() {
        let number = Value::Number(5_000_000_000);
        assert_eq!(encode(&number, Kind::Int4, false).unwrap(), b"2147483647");
        assert_eq!(
            encode(&number, Kind::Int8, true).unwrap(),
            5_000_000_000_i64.to_be_bytes()
        );
        assert_eq!(encode(&Value::Null, Kind::Text, true), None);
        // As PostgreSQL's numeric_send writes 12345678: digits 1234 and 5678, weight 1.
        assert_eq!(
            encode(&Value::Number(12_345_678), Kind::Numeric, true).unwrap(),
            [0, 2, 0, 1, 0, 0, 0, 0, 0x04, 0xd2, 0x16, 0x2e]
        );
        assert_eq!(binary_numeric(0), [0; 8]);
        for (nanos, millis) in [
            (0, "0"),
            (1_234_567, "1.234567"),
            (5_000_000, "5"),
            (40, "0.00004"),
        ] {
            assert_eq!(Value::Time(Duration::from_nanos(nanos)).shown(), millis);
        }
    }

    #[test]
    fn formats_are_none_one_or_one_for_each_column() {
        assert!(Formats::new(vec![], 3).is_some());
        assert_eq!(Formats::new(vec![1], 3).unwrap().of(2), 1);
        assert_eq!(Formats::new(vec![0, 1, 0], 3).unwrap().of(1), 1);
        assert_eq!(Formats::new(vec![0, 1], 3), None);
        assert_eq!(Formats::new(vec![2], 3), None);
    }

    #[test]
    fn a_row_is_one_frame() {
        let columns = [text("a"), int4("b")];
        let mut out = Vec::new();
        put_columns(&mut out, &columns, &Formats::default()).unwrap();
        assert_eq!((out[0], out.len()), (b'T', 5 + 2 + 2 * (2 + 18)));
        out.clear();
        let row = [Value::Null, Value::Number(7)];
        put_row(&mut out, &columns, &Formats::default(), &row).unwrap();
        assert_eq!(out, b"D\0\0\0\x0f\0\x02\xff\xff\xff\xff\0\0\0\x017");
    }
}
