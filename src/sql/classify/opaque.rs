//! The code in a `DO`: not understood, only searched for words that leave state in the session.
//!
//! Its language may be any, and SQL in it may be put together from strings, so nothing is proved by this: the effect
//! `OpaqueCode` stays whatever is found. It only keeps plain uses of session state from going unseen. Words are found
//! anywhere, in strings and comments too.

use super::findings::Findings;
use crate::sql::state::Effect;

pub(super) fn scan(code: &[u8], out: &mut Findings) {
    let mut before: &[u8] = b"";
    let mut at = 0;
    while let Some(&byte) = code.get(at) {
        if !is_word(byte) {
            if !byte.is_ascii_whitespace() {
                before = code.get(at..=at).unwrap_or_default();
            }
            at += 1;
            continue;
        }
        let rest = code.get(at..).unwrap_or_default();
        let length = rest
            .iter()
            .position(|&byte| !is_word(byte))
            .unwrap_or(rest.len());
        let word = rest.get(..length).unwrap_or_default();
        if let Some(effect) = effect(word, before) {
            out.effect(effect);
        }
        before = word;
        at += length;
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// What a word behind another word (or behind a sign) may do.
fn effect(word: &[u8], before: &[u8]) -> Option<Effect> {
    // The longest word looked for has 32 letters.
    let mut folded = [0; 32];
    let folded = folded.get_mut(..word.len())?;
    folded.copy_from_slice(word);
    folded.make_ascii_lowercase();
    let begins_statement = || {
        let words: [&[u8]; 5] = [b"begin", b"then", b"else", b"loop", b"perform"];
        matches!(before, b";" | b"'" | b"\"" | b"$")
            || words.iter().any(|word| before.eq_ignore_ascii_case(word))
    };
    match &*folded {
        b"temp" | b"temporary" => Some(Effect::TempTable {
            on_commit_drop: false,
        }),
        word if word.starts_with(b"pg_temp") => Some(Effect::TempTable {
            on_commit_drop: false,
        }),
        b"pg_advisory_lock"
        | b"pg_advisory_lock_shared"
        | b"pg_try_advisory_lock"
        | b"pg_try_advisory_lock_shared" => Some(Effect::AdvisoryLockSession),
        b"pg_advisory_unlock" | b"pg_advisory_unlock_shared" | b"pg_advisory_unlock_all" => {
            Some(Effect::AdvisoryUnlock)
        }
        b"set_config" => Some(Effect::SettingsUnknown),
        b"set" | b"reset" if begins_statement() => Some(Effect::SettingsUnknown),
        b"currval" | b"lastval" => Some(Effect::SequenceRead),
        b"setseed" => Some(Effect::SetSeed),
        b"load" if begins_statement() => Some(Effect::Load),
        b"listen" | b"prepare" | b"hold" | b"discard" => Some(Effect::SessionState),
        word if word.starts_with(b"dblink") => Some(Effect::SessionState),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(code: &str) -> Vec<Effect> {
        let mut out = Findings::default();
        scan(code.as_bytes(), &mut out);
        out.effects
    }

    #[test]
    fn session_words_are_found_even_in_strings() {
        let temp = Effect::TempTable {
            on_commit_drop: false,
        };
        assert_eq!(found("begin execute 'create TEMP table x()'; end"), [temp]);
        assert_eq!(
            found("perform pg_advisory_lock(1)"),
            [Effect::AdvisoryLockSession]
        );
        assert_eq!(
            found("begin set work_mem = '1MB'; end"),
            [Effect::SettingsUnknown]
        );
    }

    #[test]
    fn other_code_has_no_effect_of_its_own() {
        assert_eq!(found("begin update t set a = 1; raise notice 'x'; end"), []);
        assert_eq!(found("perform pg_advisory_xact_lock(1)"), []);
        assert_eq!(found(&"x".repeat(100)), []);
    }
}
