//! What to do.

use serde::Serialize;

use crate::status::advice::{Advice, Evidence, Subject, advise};

/// One piece of advice.
#[derive(Debug, Serialize)]
pub(in crate::http) struct AdviceView {
    urgency: &'static str,
    subject: SubjectView,
    what: String,
    action: String,
    setting: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum SubjectView {
    Process,
    Pool { database: String, user: String },
    Statement { id: String },
    Server { name: String },
}

pub(super) fn list(evidence: &Evidence) -> Vec<AdviceView> {
    advise(evidence).into_iter().map(AdviceView::new).collect()
}

impl AdviceView {
    fn new(advice: Advice) -> Self {
        let Advice {
            urgency,
            subject,
            what,
            action,
            setting,
        } = advice;
        Self {
            urgency: urgency.as_str(),
            subject: match subject {
                Subject::Process => SubjectView::Process,
                Subject::Pool { database, user } => SubjectView::Pool {
                    database: (*database).to_owned(),
                    user: (*user).to_owned(),
                },
                Subject::Statement(id) => SubjectView::Statement { id: id.to_string() },
                Subject::Server(name) => SubjectView::Server {
                    name: (*name).to_owned(),
                },
            },
            what,
            action,
            setting,
        }
    }
}
