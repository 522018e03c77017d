//! Taking over a changed configuration without dropping a client.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::backend::connect::Dialer;
use crate::config::model::Config;
use crate::config::{self, Overrides, Problems};
use crate::net::https::HttpsContext;
use crate::net::tls::{ClientTlsContext, TlsConfigError};
use crate::shared::{Access, AccessError, Shared};
use crate::telemetry;

/// Where the configuration comes from, to read it again.
#[derive(Clone, Debug)]
pub struct Source {
    pub file: Option<PathBuf>,
    pub overrides: Overrides,
}

/// Why a configuration is not used.
#[derive(Debug, Error)]
pub enum ReloadError {
    #[error("{0}")]
    Config(Problems),
    #[error("{0}")]
    Access(#[from] AccessError),
    #[error("{0}")]
    Tls(#[from] TlsConfigError),
    #[error("{0} cannot be changed without a restart")]
    NeedsRestart(String),
}

/// Everything that is made from the configuration's files.
#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    pub access: Access,
    pub client_tls: Option<ClientTlsContext>,
    pub https: Option<HttpsContext>,
    pub dialer: Dialer,
}

impl Source {
    /// Reads everything; nothing is changed.
    pub fn read(&self) -> Result<Parts, ReloadError> {
        let loaded = config::load(self.file.as_deref(), &self.overrides, &config::environment)
            .map_err(ReloadError::Config)?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let config = loaded.config;
        Ok(Parts {
            access: Access::load(&config.auth)?,
            client_tls: ClientTlsContext::from_config(&config.client_tls)?,
            https: HttpsContext::from_config(&config.http)?,
            dialer: Dialer::from_config(&config)?,
            config,
        })
    }
}

/// Reloads one at a time.
#[derive(Debug)]
pub struct Reloader {
    source: Mutex<Source>,
}

impl Reloader {
    pub fn new(source: Source) -> Self {
        Self {
            source: Mutex::new(source),
        }
    }

    /// Reads the configuration again and takes it over. A bad one changes nothing.
    pub fn reload(&self, shared: &Shared) -> Result<(), ReloadError> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = source.read().map(|parts| take_over(parts, shared));
        telemetry::metrics::reloaded(outcome.is_ok());
        outcome
    }

    /// Sets one key over what the file says, until the process ends, and takes the configuration over as
    /// [`Self::reload`] does. A key that only holds after a restart is refused.
    pub fn set(&self, key: &str, value: &str, shared: &Shared) -> Result<(), ReloadError> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = source.clone();
        next.overrides.set("SET", key, value);
        let parts = next.read()?;
        let changes = config::diff(&shared.config.load(), &parts.config);
        if let Some(change) = changes
            .into_iter()
            .find(|change| change.key == key && change.effect == config::Effect::Restart)
        {
            return Err(ReloadError::NeedsRestart(change.key));
        }
        take_over(parts, shared);
        *source = next;
        Ok(())
    }
}

fn take_over(parts: Parts, shared: &Shared) {
    let before: Arc<Config> = shared.config.load_full();
    for change in config::diff(&before, &parts.config) {
        tracing::info!(key = %change.key, effect = change.effect.as_str(), "configuration changed");
    }
    telemetry::tracing::reload(&parts.config.log);
    let max = parts.config.metrics.max_queries;
    shared.known.queries.set_max(max);
    let (slow, rules) = (&parts.config.slow_log, parts.config.log_rules.values());
    shared.rules.set(slow, rules.cloned());
    shared.limits.set(parts.config.statement_rules.iter());
    shared.journal.set(slow, &parts.config.query_log);
    shared.tracer.set(&parts.config.traces);
    shared.config.store(Arc::new(parts.config));
    shared.access.store(Arc::new(parts.access));
    shared.client_tls.store(Arc::new(parts.client_tls));
    shared.https.store(Arc::new(parts.https));
    shared.pools.dialer.store(Arc::new(parts.dialer));
    shared.secrets.clear();
    shared.clusters.sync(&shared.config.load());
    shared.pools.reload(&shared.config.load());
    tracing::info!("configuration reloaded");
}
