//! What a prepared statement takes and returns: its parameters' types and its columns, as the server described them when
//! it was parsed.
//!
//! # Why
//! The same text means something else once DDL has replaced a table or a type. PostgreSQL refuses to run a statement
//! whose result would differ from what its client was told (0A000). A statement that several sessions share on several
//! backends was parsed on each of them at another time, so the server alone can't tell whose it is: each Parse is
//! followed by a Describe, and what came of it belongs to the session's name and to the backend's statement.
//!
//! Only what clients decode by counts: a column's name, type and modifier. The table it came from may be made anew, as
//! PostgreSQL allows too.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, LazyLock, OnceLock};

use crate::wire::backend as b;

static HASHER: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

/// A statement's shape, empty until the server has told it. Shared by the name and the backend it was parsed for.
#[derive(Debug, Default)]
pub struct Shape(OnceLock<u64>);

impl Shape {
    /// Whether a client that was told this one may be given rows of `other`; `None` where one of them is not known.
    pub fn agrees(&self, other: &Self) -> Option<bool> {
        Some(self.0.get()? == other.0.get()?)
    }

    pub fn is_known(&self) -> bool {
        self.0.get().is_some()
    }
}

/// Shapes that a backend still has to tell, in the order it was asked.
#[derive(Debug, Default)]
pub struct Awaited {
    shapes: VecDeque<Arc<Shape>>,
    /// Of the parameters, until the columns have come.
    parameters: u64,
}

impl Awaited {
    pub fn push(&mut self, shape: Arc<Shape>) {
        self.shapes.push_back(shape);
    }

    pub fn contains(&self, shape: &Arc<Shape>) -> bool {
        self.shapes
            .iter()
            .any(|awaited| Arc::ptr_eq(awaited, shape))
    }

    /// The answer to the oldest Describe will not come.
    pub fn skip(&mut self) {
        self.shapes.pop_front();
    }

    /// A part of the answer to the oldest Describe.
    pub fn receive(&mut self, tag: u8, payload: &[u8]) {
        if tag == b::PARAMETER_DESCRIPTION {
            self.parameters = HASHER.hash_one(payload);
            return;
        }
        let Some(shape) = self.shapes.pop_front() else {
            return;
        };
        let mut hasher = HASHER.build_hasher();
        hasher.write_u64(self.parameters);
        if tag != b::ROW_DESCRIPTION || hash_columns(payload, &mut hasher) {
            // Set once: each answer has a shape of its own.
            let _ = shape.0.set(hasher.finish());
        }
        if self.shapes.is_empty() {
            // A backend at rest holds no buffer.
            self.shapes = VecDeque::new();
        }
    }
}

/// Takes in a `RowDescription` without what tells tables and formats. False if it is longer than what is looked at
/// whole: such a shape is never known.
fn hash_columns(payload: &[u8], hasher: &mut impl Hasher) -> bool {
    /// Table, column number, type, size, modifier, format.
    const FIXED: usize = 4 + 2 + 4 + 2 + 4 + 2;
    let Some((count, mut rest)) = payload.split_first_chunk::<2>() else {
        return false;
    };
    let mut left = u16::from_be_bytes(*count);
    while left > 0
        && let Some(end) = memchr::memchr(0, rest)
        && let Some(fixed) = rest.get(end + 1..end + 1 + FIXED)
    {
        hasher.write(&rest[..=end]);
        hasher.write(&fixed[6..16]);
        rest = &rest[end + 1 + FIXED..];
        left -= 1;
    }
    hasher.write(count);
    left == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, table: u32, r#type: u32, format: u8) -> Vec<u8> {
        let mut column = [name.as_bytes(), &[0]].concat();
        column.extend(table.to_be_bytes());
        column.extend([0, 1]);
        column.extend(r#type.to_be_bytes());
        column.extend([0, 4, 255, 255, 255, 255, 0, format]);
        column
    }

    fn shape(parameters: &[u8], columns: Option<&[Vec<u8>]>) -> Shape {
        let mut awaited = Awaited::default();
        let shape = Arc::new(Shape::default());
        awaited.push(Arc::clone(&shape));
        awaited.receive(b::PARAMETER_DESCRIPTION, parameters);
        assert!(!shape.is_known() && awaited.contains(&shape));
        match columns {
            None => awaited.receive(b::NO_DATA, b""),
            Some(columns) => {
                let count = u16::try_from(columns.len()).unwrap().to_be_bytes();
                let payload = [&count[..], &columns.concat()].concat();
                awaited.receive(b::ROW_DESCRIPTION, &payload);
            }
        }
        assert!(!awaited.contains(&shape));
        Arc::into_inner(shape).unwrap()
    }

    #[test]
    fn tables_and_formats_may_differ_and_nothing_else() {
        let one = shape(b"\0\0", Some(&[column("a", 1, 23, 0)]));
        let agrees =
            |parameters: &[u8], columns: &[Vec<u8>]| one.agrees(&shape(parameters, Some(columns)));
        assert_eq!(agrees(b"\0\0", &[column("a", 2, 23, 1)]), Some(true));
        assert_eq!(agrees(b"\0\0", &[column("b", 1, 23, 0)]), Some(false));
        assert_eq!(agrees(b"\0\0", &[column("a", 1, 25, 0)]), Some(false));
        assert_eq!(
            agrees(b"\0\x01\0\0\0\x17", &[column("a", 1, 23, 0)]),
            Some(false)
        );
        assert_eq!(one.agrees(&shape(b"\0\0", None)), Some(false));
        assert_eq!(agrees(b"\0\0", &[]), Some(false));
        let two = [column("a", 1, 23, 0), column("b", 1, 23, 0)];
        assert_eq!(agrees(b"\0\0", &two), Some(false));
    }

    #[test]
    fn what_is_not_told_agrees_with_nothing_and_contradicts_nothing() {
        let told = shape(b"\0\0", None);
        let mut awaited = Awaited::default();
        let untold = Arc::new(Shape::default());
        awaited.push(Arc::clone(&untold));
        awaited.skip();
        assert!(!awaited.contains(&untold));
        assert_eq!(told.agrees(&untold), None);
        assert_eq!(untold.agrees(&told), None);
        awaited.receive(b::NO_DATA, b"");
    }
}
