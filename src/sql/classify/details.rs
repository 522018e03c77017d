//! What a [`Class`](super::Class) leaves out because it differs between texts of one fingerprint: values and places.

use std::ops::Range;

use super::statement::Classifier;
use crate::sql::lexer::LexOptions;
use crate::sql::name::Name;

/// Values and places in a text; read with [`details`] when a class has effects that need them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details<'a> {
    /// One for each [`Effect::Setting`](crate::sql::state::Effect::Setting) and repetition of it, in order.
    pub assignments: Vec<Assignment<'a>>,
    /// Where SQL-level prepared statements are named, in order.
    pub prepared: Vec<PreparedRef<'a>>,
}

/// A setting and the value a statement gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment<'a> {
    pub name: Name,
    /// Until the end of the transaction only.
    pub local: bool,
    pub value: AssignedValue<'a>,
}

/// A value as the text has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignedValue<'a> {
    /// What stood behind `SET [SESSION | LOCAL]`, the name included: put `SET SESSION ` before it and it can be run
    /// again (`TIME ZONE 'UTC'`, `search_path TO a, b`).
    Statement(&'a [u8]),
    /// `SET LOCAL name TO DEFAULT`, or `set_config(…, NULL, …)`.
    Default,
    /// `SET name FROM CURRENT`: no change outside of functions.
    FromCurrent,
    /// The constant given to `set_config`, as spelled.
    Argument(&'a [u8]),
    /// The parameter given to `set_config`, such as `$2`.
    Parameter(&'a [u8]),
    /// Any other expression given to `set_config`: only the server knows its value.
    Expression(&'a [u8]),
}

/// An SQL-level prepared statement, where it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedRef<'a> {
    pub name: Name,
    /// The bytes of the name in the text: what a renaming replaces.
    pub range: Range<usize>,
    pub action: PreparedAction<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreparedAction<'a> {
    Prepare {
        /// `(int, text)`, or empty.
        types: &'a [u8],
        /// The statement behind AS.
        body: &'a [u8],
    },
    Execute,
    Deallocate,
}

/// What `SET` and `set_config` found, as ranges of the text.
#[derive(Clone, Debug)]
pub(super) struct RawAssignment {
    pub(super) name: Name,
    pub(super) local: bool,
    pub(super) value: RawValue,
    pub(super) range: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawValue {
    Statement,
    Default,
    FromCurrent,
    Argument,
    Parameter,
    Expression,
}

impl RawAssignment {
    fn resolve(self, text: &[u8]) -> Assignment<'_> {
        let spelled = text.get(self.range).unwrap_or_default();
        Assignment {
            name: self.name,
            local: self.local,
            value: match self.value {
                RawValue::Statement => AssignedValue::Statement(spelled),
                RawValue::Default => AssignedValue::Default,
                RawValue::FromCurrent => AssignedValue::FromCurrent,
                RawValue::Argument => AssignedValue::Argument(spelled),
                RawValue::Parameter => AssignedValue::Parameter(spelled),
                RawValue::Expression => AssignedValue::Expression(spelled),
            },
        }
    }

    /// Whether a `search_path` mentions the temporary schema: tables created later may then be temporary.
    pub(super) fn names_temp_schema(&self, text: &[u8]) -> bool {
        let spelled = text.get(self.range.clone()).unwrap_or_default();
        spelled
            .windows(7)
            .any(|window| window.eq_ignore_ascii_case(b"pg_temp"))
    }
}

/// The values and places of a text. Costs as much as `classify`; call it for texts whose class has a use for it.
pub fn details(text: &[u8], options: LexOptions) -> Details<'_> {
    if options.cannot_be_sure(text) {
        return Details::default();
    }
    let (_, assignments, prepared) = Classifier::new(text, options).run();
    Details {
        assignments: assignments
            .into_iter()
            .map(|assignment| assignment.resolve(text))
            .collect(),
        prepared,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(text: &str) -> Vec<Assignment<'_>> {
        details(text.as_bytes(), LexOptions::default()).assignments
    }

    fn assignment<'a>(name: &str, local: bool, value: AssignedValue<'a>) -> Assignment<'a> {
        Assignment {
            name: name.into(),
            local,
            value,
        }
    }

    #[test]
    fn set_can_be_run_again() {
        assert_eq!(
            assigned("SET LOCAL search_path TO a, \"B\" ; SET TIME ZONE 'UTC' -- now\n"),
            [
                assignment(
                    "search_path",
                    true,
                    AssignedValue::Statement(b"search_path TO a, \"B\"")
                ),
                assignment(
                    "timezone",
                    false,
                    AssignedValue::Statement(b"TIME ZONE 'UTC'")
                ),
            ]
        );
    }

    #[test]
    fn set_config_gives_constant_parameter_or_expression() {
        assert_eq!(
            assigned(
                "SELECT set_config('a.b', 'x', true), set_config('c', $2, false), set_config('d', lower('X' || 'y'), true)"
            ),
            [
                assignment("a.b", true, AssignedValue::Argument(b"'x'")),
                assignment("c", false, AssignedValue::Parameter(b"$2")),
                assignment("d", true, AssignedValue::Expression(b"lower('X' || 'y')")),
            ]
        );
    }

    #[test]
    fn prepared_statements_are_located() {
        let text = "PREPARE \"P\" (int) AS SELECT $1; EXECUTE \"P\"(1); DEALLOCATE p";
        let found = details(text.as_bytes(), LexOptions::default()).prepared;
        let names: Vec<_> = found
            .iter()
            .map(|prepared| (&text[prepared.range.clone()], prepared.action))
            .collect();
        assert_eq!(
            names,
            [
                (
                    "\"P\"",
                    PreparedAction::Prepare {
                        types: b"(int)",
                        body: b"SELECT $1"
                    }
                ),
                ("\"P\"", PreparedAction::Execute),
                ("p", PreparedAction::Deallocate),
            ]
        );
    }
}
