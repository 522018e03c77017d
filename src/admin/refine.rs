//! What may follow the name of a `SHOW`: which rows, in what order, how many. Pure.
//!
//! ```text
//! SHOW table [LIKE 'pattern'] [WHERE column operator value [AND ...]] [ORDER BY column [ASC|DESC], ...] [LIMIT n]
//! ```
//! Operators are `=`, `<>`, `!=`, `<`, `<=`, `>`, `>=`, `LIKE`, `ILIKE`, `NOT LIKE`, `NOT ILIKE`, `IS NULL` and
//! `IS NOT NULL`, and mean what they mean in SQL; a bare `LIKE` asks whether any of a row's texts fits. Patterns are
//! those of SQL, with `%` and `_`.

use std::cmp::Ordering;

use super::parse::{ParseError, Token};
use super::table::{Column, Row, Value};

/// Conditions, and columns to order by, in one statement.
const PARTS_MAX: usize = 32;

/// Longest pattern: what fitting costs grows with pattern and text.
const PATTERN_MAX: usize = 1_000;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refinement {
    conditions: Vec<Condition>,
    order: Vec<(usize, bool)>,
    limit: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    /// None for any text.
    column: Option<usize>,
    operator: Operator,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
    Like { negated: bool, any_case: bool },
    Null { negated: bool },
}

/// Reads what follows the name of a table with these columns.
pub(super) fn read(
    mut tokens: &[Token],
    columns: &'static [Column],
) -> Result<Refinement, ParseError> {
    let mut refinement = Refinement::default();
    let take = |word: &str, tokens: &mut &[Token]| match tokens.split_first() {
        Some((first, rest)) if first.is(word) => {
            *tokens = rest;
            true
        }
        _ => false,
    };
    if take("like", &mut tokens) {
        refinement.conditions.push(Condition {
            column: None,
            operator: Operator::Like {
                negated: false,
                any_case: false,
            },
            value: value(&mut tokens)?,
        });
    }
    if take("where", &mut tokens) {
        loop {
            let condition = condition(&mut tokens, columns)?;
            refinement.conditions.push(condition);
            if !take("and", &mut tokens) {
                break;
            }
        }
    }
    if take("order", &mut tokens) {
        if !take("by", &mut tokens) {
            return Err(near(tokens));
        }
        loop {
            let column = column(&mut tokens, columns)?;
            let descends = take("desc", &mut tokens);
            if !descends {
                take("asc", &mut tokens);
            }
            refinement.order.push((column, descends));
            if !symbol(&mut tokens, ',') {
                break;
            }
        }
    }
    if take("limit", &mut tokens) {
        let before = tokens;
        let limit = value(&mut tokens)?.parse().map_err(|_| near(before))?;
        refinement.limit = Some(limit);
    }
    let parts = refinement.conditions.len() + refinement.order.len();
    if !tokens.is_empty() || parts > PARTS_MAX {
        return Err(near(tokens));
    }
    Ok(refinement)
}

fn near(tokens: &[Token]) -> ParseError {
    tokens
        .first()
        .map_or(ParseError::End, |token| ParseError::Near(token.shown()))
}

fn symbol(tokens: &mut &[Token], wanted: char) -> bool {
    match tokens.split_first() {
        Some((Token::Symbol(symbol), rest)) if *symbol == wanted => {
            *tokens = rest;
            true
        }
        _ => false,
    }
}

fn column(tokens: &mut &[Token], columns: &[Column]) -> Result<usize, ParseError> {
    let (first, rest) = tokens.split_first().ok_or(ParseError::End)?;
    let (Token::Word(name) | Token::Name(name)) = first else {
        return Err(near(tokens));
    };
    *tokens = rest;
    columns
        .iter()
        .position(|column| column.name.eq_ignore_ascii_case(name))
        .ok_or_else(|| ParseError::NoColumn(first.shown()))
}

fn value(tokens: &mut &[Token]) -> Result<String, ParseError> {
    let is_negative = symbol(tokens, '-');
    let (first, rest) = tokens.split_first().ok_or(ParseError::End)?;
    let value = match first {
        Token::Word(value) if is_negative => format!("-{value}"),
        Token::Word(value) | Token::Text(value) if !is_negative => value.clone(),
        _ => return Err(near(tokens)),
    };
    if value.len() > PATTERN_MAX {
        return Err(near(tokens));
    }
    *tokens = rest;
    Ok(value)
}

fn condition(tokens: &mut &[Token], columns: &[Column]) -> Result<Condition, ParseError> {
    let column = Some(column(tokens, columns)?);
    let operator = operator(tokens)?;
    let value = match operator {
        Operator::Null { .. } => String::new(),
        _ => value(tokens)?,
    };
    Ok(Condition {
        column,
        operator,
        value,
    })
}

fn operator(tokens: &mut &[Token]) -> Result<Operator, ParseError> {
    let like = |any_case, negated| Operator::Like { negated, any_case };
    let (operator, rest) = match tokens {
        [Token::Symbol('<'), Token::Symbol('>'), rest @ ..]
        | [Token::Symbol('!'), Token::Symbol('='), rest @ ..] => (Operator::Unequal, rest),
        [Token::Symbol('<'), Token::Symbol('='), rest @ ..] => (Operator::AtMost, rest),
        [Token::Symbol('>'), Token::Symbol('='), rest @ ..] => (Operator::AtLeast, rest),
        [Token::Symbol('='), rest @ ..] => (Operator::Equal, rest),
        [Token::Symbol('<'), rest @ ..] => (Operator::Less, rest),
        [Token::Symbol('>'), rest @ ..] => (Operator::More, rest),
        [a, b, c, rest @ ..] if a.is("is") && b.is("not") && c.is("null") => {
            (Operator::Null { negated: true }, rest)
        }
        [a, b, rest @ ..] if a.is("is") && b.is("null") => {
            (Operator::Null { negated: false }, rest)
        }
        [a, b, rest @ ..] if a.is("not") && b.is("like") => (like(false, true), rest),
        [a, b, rest @ ..] if a.is("not") && b.is("ilike") => (like(true, true), rest),
        [a, rest @ ..] if a.is("like") => (like(false, false), rest),
        [a, rest @ ..] if a.is("ilike") => (like(true, false), rest),
        _ => return Err(near(tokens)),
    };
    *tokens = rest;
    Ok(operator)
}

impl Refinement {
    /// The rows that fit, in order.
    pub fn apply(&self, mut rows: Vec<Row>) -> Vec<Row> {
        rows.retain(|row| self.conditions.iter().all(|condition| condition.fits(row)));
        if !self.order.is_empty() {
            rows.sort_by(|a, b| self.compare(a, b));
        }
        rows.truncate(self.limit.unwrap_or(usize::MAX));
        rows
    }

    fn compare(&self, a: &Row, b: &Row) -> Ordering {
        let mut orders = self.order.iter().map(|(column, descends)| {
            let order = compare(a.get(*column), b.get(*column));
            if *descends { order.reverse() } else { order }
        });
        orders
            .find(|order| *order != Ordering::Equal)
            .unwrap_or(Ordering::Equal)
    }
}

/// Nulls come last when ascending, as in PostgreSQL.
fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Text(a)), Some(Value::Text(b))) => a.cmp(b),
        (Some(a), Some(b)) => match (a.number(), b.number()) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => (*a == Value::Null).cmp(&(*b == Value::Null)),
        },
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

impl Condition {
    fn fits(&self, row: &Row) -> bool {
        match self.column {
            Some(column) => row.get(column).is_some_and(|value| self.fits_value(value)),
            None => row
                .iter()
                .any(|value| matches!(value, Value::Text(_)) && self.fits_value(value)),
        }
    }

    fn fits_value(&self, value: &Value) -> bool {
        match self.operator {
            Operator::Null { negated } => (*value == Value::Null) != negated,
            _ if *value == Value::Null => false,
            Operator::Like { negated, any_case } => {
                like(&value.shown(), &self.value, any_case) != negated
            }
            Operator::Equal => self.order(value) == Some(Ordering::Equal),
            Operator::Unequal => self.order(value) != Some(Ordering::Equal),
            Operator::Less => self.order(value) == Some(Ordering::Less),
            Operator::AtMost => self.order(value).is_some_and(Ordering::is_le),
            Operator::More => self.order(value) == Some(Ordering::Greater),
            Operator::AtLeast => self.order(value).is_some_and(Ordering::is_ge),
        }
    }

    /// How `value` compares with what it is asked to; `None` if a number is compared with what is none.
    fn order(&self, value: &Value) -> Option<Ordering> {
        match value.number() {
            Some(number) => number.partial_cmp(&self.value.parse().ok()?),
            None => Some(value.shown().as_str().cmp(&self.value)),
        }
    }
}

/// SQL's `LIKE`. Time: at most the product of the two lengths.
fn like(text: &str, pattern: &str, any_case: bool) -> bool {
    let fold = |text: &str| -> Vec<char> {
        if any_case {
            text.to_lowercase().chars().collect()
        } else {
            text.chars().collect()
        }
    };
    let text = fold(text);
    let pattern = pieces(&fold(pattern));
    let (mut at, mut piece) = (0, 0);
    // Where to go on if what follows the last `%` does not fit here.
    let mut again: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(piece) {
            Some(Piece::Any) => {
                again = Some((at, piece));
                piece += 1;
                continue;
            }
            Some(Piece::One) => {
                at += 1;
                piece += 1;
                continue;
            }
            Some(Piece::Char(c)) if *c == text[at] => {
                at += 1;
                piece += 1;
                continue;
            }
            _ => {}
        }
        let Some((from, any)) = again else {
            return false;
        };
        again = Some((from + 1, any));
        at = from + 1;
        piece = any + 1;
    }
    pattern[piece..].iter().all(|piece| *piece == Piece::Any)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Char(char),
    One,
    Any,
}

fn pieces(pattern: &[char]) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(pattern.len());
    let mut characters = pattern.iter().copied();
    while let Some(c) = characters.next() {
        pieces.push(match c {
            '%' => Piece::Any,
            '_' => Piece::One,
            '\\' => Piece::Char(characters.next().unwrap_or('\\')),
            c => Piece::Char(c),
        });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::table::{int8, text};
    use super::*;

    const COLUMNS: [Column; 3] = [text("name"), int8("calls"), text("note")];

    fn rows() -> Vec<Row> {
        [
            ("b", Some(2), "x"),
            ("a", Some(10), "y_z"),
            ("c", None, "x"),
        ]
        .into_iter()
        .map(|(name, calls, note): (_, Option<u64>, _)| {
            vec![name.into(), calls.into(), note.into()]
        })
        .collect()
    }

    #[track_caller]
    fn names(clauses: &str) -> String {
        let tokens = super::super::parse::tokens(clauses).unwrap();
        let refinement = read(&tokens, &COLUMNS).unwrap();
        let rows = refinement.apply(rows());
        rows.iter().map(|row| row[0].shown()).collect()
    }

    #[test]
    fn rows_are_chosen_ordered_and_limited() {
        for (clauses, expected) in [
            ("", "bac"),
            ("ORDER BY name", "abc"),
            ("order by calls desc", "cab"),
            ("ORDER BY calls ASC", "bac"),
            ("ORDER BY note, name DESC LIMIT 2", "cb"),
            ("LIMIT 0", ""),
            ("WHERE calls = 10", "a"),
            ("WHERE calls >= 2 AND calls < 10.5", "ba"),
            ("WHERE calls <> 2", "a"),
            ("WHERE calls != 2", "a"),
            ("WHERE calls > -1", "ba"),
            ("WHERE calls IS NULL", "c"),
            ("WHERE calls IS NOT NULL AND name <= 'a'", "a"),
            ("WHERE calls < 'x'", ""),
            ("WHERE name LIKE 'B'", ""),
            ("WHERE name ILIKE 'B'", "b"),
            ("WHERE note NOT LIKE '%\\_%'", "bc"),
            ("WHERE \"note\" = x", "bc"),
            ("LIKE '_\\_%'", "a"),
            ("LIKE 'x' WHERE name = 'c'", "c"),
        ] {
            assert_eq!(names(clauses), expected, "{clauses}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = |clauses: &str| {
            let tokens = super::super::parse::tokens(clauses).unwrap();
            read(&tokens, &COLUMNS).unwrap_err().to_string()
        };
        assert_eq!(
            error("ORDER BY size"),
            "column \"size\" does not exist in this table"
        );
        assert_eq!(error("ORDER name"), "syntax error at or near \"name\"");
        assert_eq!(error("LIMIT many"), "syntax error at or near \"many\"");
        assert_eq!(error("WHERE calls"), "syntax error at end of input");
        assert_eq!(error("WHERE calls ~ 1"), "syntax error at or near \"~\"");
        assert_eq!(error("LIMIT 1 2"), "syntax error at or near \"2\"");
    }

    proptest! {
        #[test]
        fn no_clauses_make_it_panic(clauses in "(WHERE|ORDER BY|LIMIT|LIKE|AND|name|calls|'[%_a]*'|<|>|=|-| |[0-9]){0,30}") {
            if let Ok(tokens) = super::super::parse::tokens(&clauses)
                && let Ok(refinement) = read(&tokens, &COLUMNS) {
                refinement.apply(rows());
            }
        }

        #[test]
        fn a_pattern_of_wildcards_fits_what_a_search_would_find(text in "[ab]{0,12}", middle in "[ab]{0,3}") {
            prop_assert_eq!(like(&text, &format!("%{middle}%"), false), text.contains(&middle));
            prop_assert_eq!(like(&text, &format!("{middle}%"), false), text.starts_with(&middle));
        }
    }
}
