//! What the console's commands do.
//!
//! A command that waits (`PAUSE`, `WAIT_CLOSE`) only says what for; the dialogue waits, because it also hears the
//! client and the operator meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::parse::{Command, Shutdown};
use super::refine::Refinement;
use super::show::{HELP, PARAMETERS, Show};
use crate::config;
use crate::error::{Report, Severity, SqlState};
use crate::pool::effective::Effective;
use crate::pool::orders::Scope;
use crate::registry::{FrontendPid, Order};
use crate::reload::{ReloadError, Reloader};
use crate::shared::Shared;
use crate::shared::is_console;
use crate::tasks;

const OBJECT_NOT_IN_PREREQUISITE_STATE: SqlState = SqlState(*b"55000");
const CANT_CHANGE_RUNTIME_PARAM: SqlState = SqlState(*b"55P02");
const CONFIG_FILE_ERROR: SqlState = SqlState(*b"F0000");
const SUCCESSFUL_COMPLETION: SqlState = SqlState(*b"00000");

/// How often `SHUTDOWN WAIT_FOR_CLIENTS` looks whether they are gone.
const CLIENTS_POLL: Duration = Duration::from_millis(50);

/// What a console user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// `SHOW`.
    Stats,
}

/// What a waiting command waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No server connection is open.
    Drained(Scope),
    /// No server connection from before the last `RECONNECT` is open.
    Replaced(Scope),
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A table is to be shown.
    Table(Show, Refinement),
    Done {
        tag: &'static str,
        notice: Option<Report>,
    },
    /// Done once the condition is met.
    Wait {
        tag: &'static str,
        condition: Condition,
    },
}

/// What commands act on.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub shared: &'a Arc<Shared>,
    pub reloader: &'a Reloader,
    pub role: Role,
}

impl Condition {
    /// Whether it is met. Idle connections of pools that are to drain are closed on the way.
    pub fn is_met(&self, shared: &Shared) -> bool {
        match self {
            Self::Drained(scope) => {
                let pools = shared.pools.within(scope);
                for pool in &pools {
                    pool.retain_idle(|_| false);
                }
                shared.pools.listeners.look();
                pools
                    .iter()
                    .all(|pool| pool.open() == 0 && pool.listening() == 0)
            }
            Self::Replaced(scope) => {
                let pools = shared.pools.within(scope);
                !pools.iter().any(|pool| pool.has_outdated())
            }
        }
    }

    /// Whether it can't be met any more, because another console took the order back. Waiting on would close idle
    /// connections that clients use again.
    pub fn is_void(&self, shared: &Shared) -> bool {
        match self {
            Self::Drained(scope) => !shared.pools.is_paused_within(scope),
            Self::Replaced(_) => false,
        }
    }

    /// The operator does not want to wait any longer: a pause that is not complete is taken back.
    pub fn abandon(&self, shared: &Shared) {
        if let Self::Drained(scope) = self {
            shared.pools.resume(scope);
        }
    }
}

pub(super) fn done(tag: &'static str) -> Outcome {
    Outcome::Done { tag, notice: None }
}

fn notice(message: &'static str) -> Report {
    Report::new(Severity::Notice, SUCCESSFUL_COMPLETION, message)
}

/// Runs one command.
pub fn run(context: &Context<'_>, command: &Command) -> Result<Outcome, Report> {
    match command {
        Command::Show(show) => return table(*show, Refinement::default()),
        Command::Refined(show, refinement) => return table(*show, refinement.as_ref().clone()),
        Command::Nothing(tag) => return Ok(done(tag)),
        Command::Set { key, .. } if is_parameter(key) => {
            let notice = Some(notice("SET ignored"));
            return Ok(Outcome::Done { tag: "SET", notice });
        }
        _ => {}
    }
    if context.role != Role::Admin {
        return Err(Report::error(
            SqlState::INSUFFICIENT_PRIVILEGE,
            "permission denied: admin access needed",
        )
        .hint("Users in general.admin_users have it."));
    }
    tracing::info!(?command, "console command");
    match command {
        Command::Pause(name) => pause(context, name.as_deref()),
        Command::Resume(name) => resume(context, name.as_deref()),
        Command::Disable(name) => set_disabled(context, name, true),
        Command::Enable(name) => set_disabled(context, name, false),
        Command::Reconnect(name) => reconnect(context, name.as_deref()),
        Command::Kill(name) => kill(context, name.as_deref()),
        Command::KillClient(pid) => kill_client(context, *pid),
        Command::Drain(name) => super::nodes::drain(context.shared, name, true),
        Command::Undrain(name) => super::nodes::drain(context.shared, name, false),
        Command::Suspend => Err(Report::error(
            SqlState::FEATURE_NOT_SUPPORTED,
            "SUSPEND is not supported",
        )
        .detail("It prepares PgBouncer's restart with open sockets, which pgweir does not do.")
        .hint("PAUSE holds clients and closes server connections.")),
        Command::Reload => reload(context),
        Command::Shutdown(how) => Ok(shut_down(context.shared, *how)),
        Command::WaitClose(name) => Ok(Outcome::Wait {
            tag: "WAIT_CLOSE",
            condition: Condition::Replaced(scope(context, name.as_deref())?),
        }),
        Command::Set { key, value } => set(context, key, value.expose()),
        Command::Show(show) => table(*show, Refinement::default()),
        Command::Refined(show, refinement) => table(*show, refinement.as_ref().clone()),
        Command::Nothing(tag) => Ok(done(tag)),
    }
}

fn is_parameter(key: &str) -> bool {
    PARAMETERS
        .iter()
        .any(|(column, _)| column.name.eq_ignore_ascii_case(key))
}

fn table(show: Show, refinement: Refinement) -> Result<Outcome, Report> {
    match show {
        Show::Help => Ok(Outcome::Done {
            tag: "SHOW",
            notice: Some(notice("Console usage").detail(HELP)),
        }),
        Show::Fds => Err(Report::error(
            SqlState::FEATURE_NOT_SUPPORTED,
            "SHOW FDS is not supported",
        )
        .detail(
            "It hands PgBouncer's sockets to a process that takes over, which pgweir does not do.",
        )),
        _ => Ok(Outcome::Table(show, refinement)),
    }
}

/// The databases a command is about; a name must be one that clients could use.
fn scope(context: &Context<'_>, name: Option<&str>) -> Result<Scope, Report> {
    let Some(name) = name else {
        return Ok(Scope::All);
    };
    if is_console(name) {
        return Err(Report::error(
            OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("\"{name}\" is the console itself"),
        ));
    }
    if !Effective::exists(&context.shared.config.load(), name) {
        return Err(Report::error(
            SqlState::INVALID_CATALOG_NAME,
            format!("database \"{name}\" does not exist"),
        ));
    }
    Ok(Scope::Database(name.into()))
}

fn pause(context: &Context<'_>, name: Option<&str>) -> Result<Outcome, Report> {
    let scope = scope(context, name)?;
    context.shared.pools.pause(&scope);
    // Its connections are the pools' to no one.
    context.shared.secrets.clear();
    Ok(Outcome::Wait {
        tag: "PAUSE",
        condition: Condition::Drained(scope),
    })
}

fn resume(context: &Context<'_>, name: Option<&str>) -> Result<Outcome, Report> {
    let scope = scope(context, name)?;
    if context.shared.pools.resume(&scope) {
        return Ok(done("RESUME"));
    }
    let message = match &scope {
        Scope::All => "pgweir is not paused".to_owned(),
        Scope::Database(name) => format!("database \"{name}\" is not paused"),
    };
    Err(Report::error(OBJECT_NOT_IN_PREREQUISITE_STATE, message))
}

fn set_disabled(context: &Context<'_>, name: &str, disabled: bool) -> Result<Outcome, Report> {
    if let Scope::Database(database) = scope(context, Some(name))? {
        context.shared.pools.set_disabled(&database, disabled);
    }
    Ok(done(if disabled { "DISABLE" } else { "ENABLE" }))
}

fn reconnect(context: &Context<'_>, name: Option<&str>) -> Result<Outcome, Report> {
    let scope = scope(context, name)?;
    for pool in context.shared.pools.within(&scope) {
        pool.reconnect();
    }
    Ok(done("RECONNECT"))
}

/// Holds the pools, so that nobody comes back before `RESUME`, and drops clients and connections.
fn kill(context: &Context<'_>, name: Option<&str>) -> Result<Outcome, Report> {
    let scope = scope(context, name)?;
    let shared = context.shared;
    shared.pools.pause(&scope);
    for pool in shared.pools.within(&scope) {
        pool.reconnect();
    }
    for client in shared.registry.all() {
        if scope.covers(&client.database) && !is_console(&client.database) {
            client.give_order(Order::Terminate);
        }
    }
    Ok(done("KILL"))
}

fn kill_client(context: &Context<'_>, pid: u32) -> Result<Outcome, Report> {
    let Some(client) = context.shared.registry.get(FrontendPid(pid)) else {
        return Err(Report::error(
            SqlState::UNDEFINED_OBJECT,
            format!("client {pid} does not exist"),
        )
        .hint("SHOW CLIENTS has the ids."));
    };
    client.give_order(Order::Terminate);
    Ok(done("KILL_CLIENT"))
}

fn reload(context: &Context<'_>) -> Result<Outcome, Report> {
    match context.reloader.reload(context.shared) {
        Ok(()) => Ok(done("RELOAD")),
        Err(error) => {
            tracing::error!("the configuration stays as it is: {error}");
            Err(
                Report::error(CONFIG_FILE_ERROR, "the configuration could not be reloaded")
                    .detail(error.to_string())
                    .hint("The old one stays in force."),
            )
        }
    }
}

fn set(context: &Context<'_>, key: &str, value: &str) -> Result<Outcome, Report> {
    let outcome = match config::import::console::translate(key, value) {
        Some((key, value)) => context.reloader.set(&key, &value, context.shared),
        None => context.reloader.set(key, value, context.shared),
    };
    match outcome {
        Ok(()) => Ok(done("SET")),
        Err(error @ ReloadError::NeedsRestart(_)) => {
            Err(Report::error(CANT_CHANGE_RUNTIME_PARAM, error.to_string()))
        }
        Err(error) => Err(Report::error(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("could not set \"{key}\""),
        )
        .detail(error.to_string())
        .hint("SHOW CONFIG has the keys; to change the file, edit it and RELOAD.")),
    }
}

fn shut_down(shared: &Arc<Shared>, how: Shutdown) -> Outcome {
    match how {
        Shutdown::Now => {
            for client in shared.registry.all() {
                if !is_console(&client.database) {
                    client.give_order(Order::Terminate);
                }
            }
            shared.stop.notify_one();
        }
        Shutdown::WaitForServers => shared.stop.notify_one(),
        Shutdown::WaitForClients => {
            shared.ready.store(false, Ordering::SeqCst);
            shared.draining.store(true, Ordering::SeqCst);
            tasks::spawn(
                "shutdown after clients",
                stop_after_clients(Arc::clone(shared)),
            );
        }
    }
    done("SHUTDOWN")
}

async fn stop_after_clients(shared: Arc<Shared>) {
    while shared
        .registry
        .all()
        .iter()
        .any(|client| !is_console(&client.database))
    {
        tokio::time::sleep(CLIENTS_POLL).await;
    }
    shared.stop.notify_one();
}
