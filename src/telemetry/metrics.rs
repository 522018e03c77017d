//! The metrics recorder.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Installs the process's recorder. A second call in the same process gives a handle that renders nothing.
pub fn install() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _ = metrics::set_global_recorder(recorder);
    handle
}
