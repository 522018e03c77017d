//! Counters of events, each named and described here once. What can be read off at any time (pools, clients, totals)
//! is not counted twice: `http::metrics` renders it from `status`.

use metrics::{Unit, counter, describe_counter};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

const RELOADS: &str = "pgweir_config_reloads_total";
const PINS: &str = "pgweir_pins_total";
const CONSOLE_STATEMENTS: &str = "pgweir_console_statements_total";

/// Installs the process's recorder. A second call in the same process gives a handle that renders nothing.
pub fn install() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_ok() {
        describe_counter!(
            RELOADS,
            Unit::Count,
            "Configuration reloads by SIGHUP or RELOAD, by result."
        );
        describe_counter!(
            PINS,
            Unit::Count,
            "Times a session began to keep its server connection, by reason."
        );
        describe_counter!(
            CONSOLE_STATEMENTS,
            Unit::Count,
            "Statements of the console, by result."
        );
        for result in ["success", "failure"] {
            counter!(RELOADS, "result" => result).absolute(0);
            counter!(CONSOLE_STATEMENTS, "result" => result).absolute(0);
        }
    }
    handle
}

fn result(succeeded: bool) -> &'static str {
    if succeeded { "success" } else { "failure" }
}

/// The configuration was read again, or could not be.
pub fn reloaded(succeeded: bool) {
    counter!(RELOADS, "result" => result(succeeded)).increment(1);
}

/// A statement of the console was run.
pub fn console_statement(succeeded: bool) {
    counter!(CONSOLE_STATEMENTS, "result" => result(succeeded)).increment(1);
}

/// A session began to keep its server connection, for `reasons`.
pub fn pinned(reasons: impl Iterator<Item = &'static str>) {
    for reason in reasons {
        counter!(PINS, "reason" => reason).increment(1);
    }
}
