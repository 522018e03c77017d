//! What one statement was found to do, before it is judged.

use super::Answer;
use super::details::RawAssignment;
use crate::sql::functions::{Behaviour, FunctionName};
use crate::sql::state::Effect;
use crate::sql::tables::Tables;

/// More than this of anything in one statement, and it counts as not understood: memory stays bounded.
pub(super) const MAX_FUNCTIONS: usize = 64;
const MAX_EFFECTS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) functions: Vec<FunctionName>,
    pub(super) tables: Tables,
    pub(super) effects: Vec<Effect>,
    /// Values for `details`; ranges of the text.
    pub(super) assignments: Vec<RawAssignment>,
    /// Rows are changed or locked, or a function with side effects is called.
    pub(super) writes: bool,
    pub(super) needs_text: bool,
    pub(super) answer: Answer,
    /// Something could not be understood.
    pub(super) uncertain: bool,
}

impl Findings {
    pub(super) fn effect(&mut self, effect: Effect) {
        let effect = match effect {
            // Values are asked for by name, and how this one is spelled depends on an encoding that may change.
            Effect::Setting { name, local: false } | Effect::ResetSetting(name)
                if !name.as_bytes().is_ascii() =>
            {
                Effect::SettingsUnknown
            }
            effect => effect,
        };
        if self.effects.contains(&effect) {
            return;
        }
        if self.effects.len() < MAX_EFFECTS {
            self.effects.push(effect);
        } else {
            self.uncertain = true;
        }
    }

    pub(super) fn depends_on(&mut self, answer: Answer) {
        self.answer = self.answer.max(answer);
    }

    /// Notes a call (the caller keeps to [`MAX_FUNCTIONS`]), with the effects that go with the function's name. `set_config` is left to the caller, who sees its
    /// arguments.
    pub(super) fn call(&mut self, function: FunctionName) {
        if self.functions.contains(&function) {
            return;
        }
        match function.behaviour {
            Behaviour::Safe | Behaviour::SetConfig => {}
            Behaviour::Unknown => self.effect(Effect::OpaqueCode),
            Behaviour::Volatile => self.depends_on(Answer::Volatile),
            Behaviour::Node => self.depends_on(Answer::Node),
            Behaviour::Writes => self.writes = true,
            Behaviour::RunsSql => {
                self.writing(Effect::OpaqueCode);
                self.needs_text = true;
            }
            Behaviour::LargeObject => self.writing(Effect::LargeObjectFd),
            Behaviour::Notify => self.writing(Effect::Notify),
            Behaviour::SequenceAdvance => self.writing(Effect::SequenceAdvanced),
            Behaviour::SequenceRead => self.writing(Effect::SequenceRead),
            Behaviour::SetSeed => self.writing(Effect::SetSeed),
            Behaviour::AdvisoryLock => self.writing(Effect::AdvisoryLockSession),
            Behaviour::AdvisoryUnlock => self.writing(Effect::AdvisoryUnlock),
            Behaviour::SessionState => self.writing(Effect::SessionState),
        }
        self.functions.push(function);
    }

    /// An effect that also keeps the statement from being a read.
    pub(super) fn writing(&mut self, effect: Effect) {
        self.effect(effect);
        self.writes = true;
    }

    /// Forgets what only happens if the statement's query runs. The tables stay, and the prepared statement that is
    /// asked about.
    pub(super) fn not_executed(&mut self) {
        self.functions.clear();
        self.effects
            .retain(|effect| matches!(effect, Effect::ExecuteSql(_)));
        self.assignments.clear();
        self.needs_text = false;
    }
}
