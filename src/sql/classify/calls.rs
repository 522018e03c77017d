//! Function calls: which `name (` is none, and what `set_config` sets.

use super::cursor::{Cursor, Tok};
use super::details::{RawAssignment, RawValue};
use super::findings::Findings;
use crate::sql::keywords::Keyword as K;
use crate::sql::lexer::TokenKind as T;
use crate::sql::name::{Name, plain_string};
use crate::sql::state::Effect;

/// Arguments longer than this are not looked through.
const MAX_ARGUMENT_TOKENS: usize = 256;

/// Whether the single word `first`, which a parenthesis follows, is grammar and not a function. A word that could be
/// either is a function: nobody knows one of that name, so the statement is not proved a read.
pub(super) fn is_syntax(
    cursor: &Cursor<'_>,
    first: Tok,
    before: Tok,
    before2: Tok,
    writes: bool,
) -> bool {
    if before.kind.is_constant() {
        // `interval '1' second(3)`: two operands never stand side by side.
        return true;
    }
    let Some(word) = first.word else {
        return false;
    };
    match word {
        K::Over | K::Filter => before.kind == T::RightParen,
        K::By => before.is_any(&[K::Order, K::Group, K::Partition]),
        K::Second => before.is_any(&[K::Interval, K::To]),
        K::Sets => before.is(K::Grouping),
        K::Zone => before.is(K::Time),
        K::Escape => before.ends_operand(),
        K::Repeatable => before.kind == T::RightParen,
        K::First | K::Next => before.is(K::Fetch),
        K::Materialized => before.is_any(&[K::As, K::Not]),
        K::Conflict => before.is(K::On),
        K::Set => writes && (before.is(K::Update) || before.ends_operand()),
        K::Insert => before.is(K::Then),
        K::Varying => before.is_any(&[K::Char, K::Character, K::Bit, K::Nchar, K::Varchar]),
        K::Key => before.is(K::Foreign) || before.is(K::Primary) || before2.is(K::For),
        K::Operator => operator(cursor),
        K::Like | K::Ilike | K::Overlaps | K::Is | K::Collation => before.ends_operand(),
        K::Join | K::Inner | K::Left | K::Right | K::Full | K::Cross | K::Natural | K::Outer => {
            before.ends_operand()
                || before.is_any(&[K::Left, K::Right, K::Full, K::Inner, K::Cross])
        }
        _ => false,
    }
}

/// `OPERATOR(pg_catalog.+)`, the current token being OPERATOR. One of another schema is somebody's function.
fn operator(cursor: &Cursor<'_>) -> bool {
    let mut ahead = cursor.clone();
    ahead.skip(2);
    if ahead.cur().kind.is_name() && ahead.next().kind == T::Dot {
        if ahead.name(ahead.cur()) != "pg_catalog" {
            return false;
        }
        ahead.skip(2);
    }
    // `operator(-1)` calls a function of that name.
    ahead.cur().kind == T::Operator && ahead.next().kind == T::RightParen
}

/// Looks at the arguments of a call of `set_config` whose name ends with the current token. Does not move.
pub(super) fn set_config(cursor: &Cursor<'_>, out: &mut Findings) {
    out.writes = true;
    out.needs_text = true;
    match assignment(cursor) {
        // As `SET seed`: no value that could be read again.
        Some(assignment) if assignment.name == "seed" => out.effect(Effect::SetSeed),
        Some(assignment) => {
            if assignment.name == "search_path" && assignment.names_temp_schema(cursor.text()) {
                out.effect(Effect::TempTable {
                    on_commit_drop: false,
                });
            }
            out.effect(Effect::Setting {
                name: assignment.name.clone(),
                local: assignment.local,
            });
            out.assignments.push(assignment);
        }
        None => out.effect(Effect::SettingsUnknown),
    }
}

/// The arguments of `set_config(setting_name, new_value, is_local)`, if name and scope are constants.
fn assignment(cursor: &Cursor<'_>) -> Option<RawAssignment> {
    let mut ahead = cursor.clone();
    ahead.skip(2);
    let constant = ahead.cur();
    let setting = plain_string(constant.kind, ahead.bytes(constant))?;
    if ahead.next().kind != T::Comma {
        return None;
    }
    ahead.skip(2);
    let value_first = ahead.cur();
    let value_last = argument(&mut ahead)?;
    let single = value_first.start == value_last.start;
    let scope = ahead.cur();
    let scope_last = argument_end(&mut ahead)?;
    if scope.start != scope_last.start {
        return None;
    }
    let local = match scope.word {
        Some(K::True) => true,
        Some(K::False) => false,
        _ => return None,
    };
    let value = match value_first.kind {
        kind if single && kind.is_string() => RawValue::Argument,
        T::Param if single => RawValue::Parameter,
        _ if single && value_first.is(K::Null) => RawValue::Default,
        _ => RawValue::Expression,
    };
    Some(RawAssignment {
        name: Name::setting(&setting),
        local,
        value,
        range: value_first.start..value_last.end,
    })
}

/// Steps over an argument and the comma behind it; gives its last token.
fn argument(ahead: &mut Cursor<'_>) -> Option<Tok> {
    let last = walk(ahead, T::Comma)?;
    ahead.advance();
    Some(last)
}

fn argument_end(ahead: &mut Cursor<'_>) -> Option<Tok> {
    walk(ahead, T::RightParen)
}

/// Moves to the first token of kind `until` outside parentheses; gives the one before it.
fn walk(ahead: &mut Cursor<'_>, until: T) -> Option<Tok> {
    let mut depth = 0usize;
    let mut last = None;
    for _ in 0..MAX_ARGUMENT_TOKENS {
        let tok = ahead.cur();
        match tok.kind {
            kind if depth == 0 && kind == until => return last,
            T::LeftParen | T::LeftBracket => depth += 1,
            T::RightParen | T::RightBracket => depth = depth.checked_sub(1)?,
            T::Comma if depth == 0 => return None,
            T::Semicolon | T::End | T::Error => return None,
            _ => {}
        }
        last = Some(tok);
        ahead.advance();
    }
    None
}
