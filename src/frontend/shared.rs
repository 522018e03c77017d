//! What all sessions of the process share.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::model::Config;
use crate::pool::Pools;
use crate::registry::Registry;
use crate::session::statements::{Global, Statement};
use crate::sql::known::{Known, KnownStatements};

/// A prepared statement with what is known of its text.
pub type Prepared = Statement<Arc<Known>>;

/// See the module.
#[derive(Debug)]
pub struct Shared {
    pub config: Arc<ArcSwap<Config>>,
    pub pools: Arc<Pools>,
    pub registry: Arc<Registry>,
    pub statements: Global<Arc<Known>>,
    pub known: KnownStatements,
}
