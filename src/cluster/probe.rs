//! Asking one server what it is: one connection, one question, deadlines for both.
//!
//! A server that closes the connection is asked again at once, so the end of a server is known as soon as the kernel
//! knows it. Reads that wait for a replica to catch up make probes come sooner, down to `cluster.sample_interval`;
//! otherwise they come every `cluster.probe_interval`.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::board::{Answer, Finding};
use super::clusters::Cluster;
use super::lsn::{Lsn, WalShape};
use super::node::Node;
use super::samples::Tick;
use crate::backend::connect::{Login, ReachError, leads_to};
use crate::backend::connection::Backend;
use crate::backend::login::{Credentials, LoginError};
use crate::backend::query::{self, QueryError, Row};
use crate::error::SqlState;

/// Pause after a probe that failed; it grows with their number.
const AGAIN: Duration = Duration::from_millis(50);

/// Pause between two probes while there is no primary.
const AWAITED: Duration = Duration::from_millis(100);

/// How long a server's name is believed to lead to the address it led to.
const RESOLVED: Duration = Duration::from_secs(15);

/// A server that has answered no session for this long, and has some to answer, is asked on a new connection: the one for
/// probes may be the last that works.
const SILENCE: Duration = Duration::from_secs(5);

/// Asked once on each connection. A server that keeps this to itself is not compared with others.
const IDENTITY: &[u8] = b"SELECT system_identifier, pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')), \
    pg_catalog.current_setting('wal_block_size') FROM pg_catalog.pg_control_system()";

/// A nudge must not wait for a synchronous standby.
const PREPARATION: &[u8] = b"SET synchronous_commit TO local";

/// The timeline of a primary is in the name of the file it writes. That of a replica is the latest one it is known to be
/// on: what it streams from, what it has recorded at a restart point or as its point of consistency. Each of them is
/// only set once the replica follows that timeline, so none is ever too high.
const QUESTION: &[u8] = b"SELECT r, \
    CASE WHEN NOT r THEN pg_catalog.pg_current_wal_insert_lsn() END, \
    CASE WHEN NOT r THEN pg_catalog.pg_current_wal_flush_lsn() END, \
    CASE WHEN r THEN pg_catalog.pg_last_wal_receive_lsn() END, \
    CASE WHEN r THEN pg_catalog.pg_last_wal_replay_lsn() END, \
    CASE WHEN r THEN GREATEST((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), \
      (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()), \
      (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))::pg_catalog.text \
    ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8)) \
      ::pg_catalog.bit(32)::pg_catalog.int8::pg_catalog.text END \
    FROM (SELECT pg_catalog.pg_is_in_recovery() AS r OFFSET 0) AS s";

/// Has the primary flush what it has inserted: in an idle cluster nobody else does, and replicas receive only what was
/// flushed.
const NUDGE: &[u8] = b"SELECT pg_catalog.pg_logical_emit_message(true, 'pgweir', '')";

/// A connection for probes.
#[derive(Debug)]
struct Link {
    backend: Backend,
    system: Option<u64>,
    shape: WalShape,
    /// Where the primary's log stood when it was last asked, if it had not flushed all of it.
    unflushed: Option<Lsn>,
}

/// Probes server `node` until the task is ended.
pub(super) async fn run(cluster: Arc<Cluster>, node: Arc<Node>) {
    let mut link = None;
    let mut failures: u32 = 0;
    let mut opened = Instant::now();
    let mut resolved = opened;
    // Where its name led when it was last connected to.
    let mut peer = None;
    loop {
        let now = Instant::now();
        if now.duration_since(resolved) >= RESOLVED {
            resolved = now;
            if let Some(before) = peer
                && !leads_there(&cluster, &node, before).await
            {
                (link, peer) = (None, None);
                cluster.readdress(&node, before);
            }
        }
        let is_silent =
            node.load.silent_for(now) >= SILENCE && now.duration_since(opened) >= SILENCE;
        if link.is_none() || is_silent {
            opened = now;
        }
        let finding = if is_silent && link.is_some() {
            probe_anew(&cluster, &node, &mut link).await
        } else {
            probe(&cluster, &node, &mut link).await
        };
        note_peer(&cluster, &node, link.as_ref(), &mut peer).await;
        failures = match &finding {
            Finding::Answer(_) => 0,
            Finding::Failed(_) | Finding::Denied(_) | Finding::Full(_) => failures + 1,
        };
        let probed = Instant::now();
        cluster.take(&node, finding, probed);
        rest(&cluster, &node, &mut link, probed, failures).await;
    }
}

/// Waits until the next probe is due. A connection that ends meanwhile is dropped.
async fn rest(
    cluster: &Cluster,
    node: &Node,
    link: &mut Option<Link>,
    probed: Instant,
    failures: u32,
) {
    let settings = cluster.settings.load();
    let mut due = probed + settings.interval;
    if failures > 0 {
        due = due.min(probed + AGAIN * failures);
    }
    let soonest = probed + settings.sample_interval;
    drop(settings);
    if cluster.topology().is_held {
        due = due.min(probed + AWAITED);
    }
    loop {
        if cluster.is_wanted(node) {
            due = due.min(cluster.next_sample(node, soonest, probed));
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => return,
            () = node.wake.notified() => {
                if cluster.is_suspected(node) {
                    return;
                }
            }
            () = ended(link) => {
                *link = None;
                return;
            }
        }
    }
}

/// Whether the server's name still leads to `peer`.
async fn leads_there(cluster: &Cluster, node: &Node, peer: IpAddr) -> bool {
    if node.server.host.parse::<IpAddr>().is_ok() {
        return true;
    }
    // A resolver that hangs must not keep the probe for longer than a server that does.
    let limit = cluster.settings.load().timeout;
    timeout(limit, leads_to(&node.server, peer))
        .await
        .unwrap_or(true)
}

/// Compares where the server was found with where it was found before: its name may have been changed since it was last
/// looked up for that alone.
async fn note_peer(cluster: &Cluster, node: &Node, link: Option<&Link>, peer: &mut Option<IpAddr>) {
    let found = link.and_then(|link| link.backend.stream.peer_addr());
    let Some(found) = found.map(|address| address.ip()) else {
        return;
    };
    // A name may have several addresses, of which any will do.
    if let Some(before) = peer.replace(found)
        && before != found
        && !leads_there(cluster, node, before).await
    {
        cluster.readdress(node, before);
    }
}

/// Ready when the server says something unasked, which is the end of the connection.
async fn ended(link: &mut Option<Link>) {
    match link {
        None => std::future::pending().await,
        Some(link) => {
            poll_fn(|cx| {
                if link.backend.poll_quiet(cx) {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
        }
    }
}

/// One probe. The connection is kept if it is still good.
async fn probe(cluster: &Cluster, node: &Node, link: &mut Option<Link>) -> Finding {
    let limit = cluster.settings.load().timeout;
    let mut current = match link.take() {
        Some(current) => current,
        None => match timeout(limit, connect(cluster, node)).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return error.into(),
            Err(_) => return Finding::Failed(format!("no connection within {limit:?}").into()),
        },
    };
    match timeout(limit, ask(cluster, node, &mut current)).await {
        Ok(Ok(answer)) => {
            *link = Some(current);
            Finding::Answer(answer)
        }
        Ok(Err(error)) => error.into(),
        Err(_) => Finding::Failed(format!("no answer within {limit:?}").into()),
    }
}

/// One probe on a new connection, of a server that leaves sessions without an answer. The connection for probes is replaced
/// by the new one, or dropped if that gets no answer either.
async fn probe_anew(cluster: &Cluster, node: &Node, link: &mut Option<Link>) -> Finding {
    let mut fresh = None;
    let finding = probe(cluster, node, &mut fresh).await;
    match &finding {
        Finding::Answer(_) | Finding::Failed(_) => *link = fresh,
        // It lives: what it has to say comes by the connection it has let in.
        Finding::Full(_) | Finding::Denied(_) => return probe(cluster, node, link).await,
    }
    finding
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("{0}")]
    Reach(#[from] ReachError),
    #[error("{0}")]
    Query(#[from] QueryError),
    #[error("the answer to a probe makes no sense")]
    Senseless,
}

impl From<ProbeError> for Finding {
    fn from(error: ProbeError) -> Self {
        let message = error.to_string().into();
        match &error {
            ProbeError::Reach(ReachError::Login(login)) if is_denied(login) => {
                Self::Denied(message)
            }
            ProbeError::Reach(ReachError::Login(LoginError::Server(refusal)))
                if refusal.code == SqlState::TOO_MANY_CONNECTIONS =>
            {
                Self::Full(message)
            }
            ProbeError::Query(QueryError::Server { code, .. }) if code.0.starts_with(b"42") => {
                Self::Denied(message)
            }
            _ => Self::Failed(message),
        }
    }
}

/// Whether the server runs and does not want this user, rather than being unable to serve anybody.
fn is_denied(error: &LoginError) -> bool {
    match error {
        LoginError::Server(refusal) => {
            refusal.code.0.starts_with(b"28") || refusal.code.0.starts_with(b"3D")
        }
        LoginError::Io(_) | LoginError::Closed => false,
        _ => true,
    }
}

async fn connect(cluster: &Cluster, node: &Node) -> Result<Link, ProbeError> {
    let settings = cluster.settings.load_full();
    let own = node.server.user.as_ref();
    let user = settings.user.as_ref().or(own);
    let is_nodes_own = settings.user.is_none() || settings.user.as_ref() == own;
    let password = settings
        .password
        .clone()
        .or_else(|| node.server.password.clone().filter(|_| is_nodes_own));
    let credentials = password.map_or(Credentials::None, Credentials::Password);
    let user = user.map_or("postgres", String::as_str);
    let dbname = settings.dbname.as_ref().or(node.server.dbname.as_ref());
    let dbname = dbname.map_or("postgres", String::as_str);
    let startup: [(&[u8], &[u8]); 3] = [
        (b"user", user.as_bytes()),
        (b"database", dbname.as_bytes()),
        (b"application_name", b"pgweir probe"),
    ];
    let login = Login {
        node: &node.server,
        startup: &startup,
        credentials: &credentials,
        max_prepared: 1,
        generation: 0,
        heard: &AtomicBool::default(),
        until: Instant::now() + settings.timeout,
    };
    let (mut backend, _) = cluster.dialer().log_in(login).await?;
    query::on_backend(&mut backend, PREPARATION).await?;
    let (system, shape) = match query::on_backend(&mut backend, IDENTITY).await {
        Ok(rows) => identity(&rows).ok_or(ProbeError::Senseless)?,
        Err(QueryError::Server { .. }) => (None, WalShape::default()),
        Err(error) => return Err(error.into()),
    };
    Ok(Link {
        backend,
        system,
        shape,
        unflushed: None,
    })
}

fn number<T: std::str::FromStr>(row: &Row, place: usize) -> Option<T> {
    let text = std::str::from_utf8(row.get(place)?.as_deref()?).ok()?;
    text.parse().ok()
}

fn identity(rows: &[Row]) -> Option<(Option<u64>, WalShape)> {
    let row = rows.first()?;
    let shape = WalShape {
        segment: number(row, 1)?,
        page: number(row, 2)?,
    };
    Some((number(row, 0), shape))
}

async fn ask(cluster: &Cluster, node: &Node, link: &mut Link) -> Result<Answer, ProbeError> {
    // In this order: what is acknowledged before the tick is drawn is in the answer.
    let tick = cluster.draw();
    let asked = Instant::now();
    let rows = query::on_backend(&mut link.backend, QUESTION).await?;
    let read = rows.first().and_then(|row| read(row, link));
    let mut answer = read.ok_or(ProbeError::Senseless)?;
    answer.tick = tick;
    answer.asked = asked;
    answer.took = asked.elapsed();
    let unflushed = answer
        .inserted
        .filter(|inserted| answer.flushed.is_some_and(|flushed| flushed < *inserted));
    let is_stuck = unflushed.is_some() && unflushed == link.unflushed;
    link.unflushed = unflushed;
    // Nothing is written on a server that is not the primary, though it would let it.
    if is_stuck && cluster.topology().primary == Some(node.index) && cluster.is_starved() {
        // In a read-only database it is refused; then the replicas are some seconds late.
        match query::on_backend(&mut link.backend, NUDGE).await {
            Ok(_) | Err(QueryError::Server { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(answer)
}

fn read(row: &Row, link: &Link) -> Option<Answer> {
    let in_recovery = match row.first()?.as_deref()? {
        b"t" => true,
        b"f" => false,
        _ => return None,
    };
    let lsn = |place: usize| row.get(place)?.as_deref().and_then(Lsn::parse);
    let written = |place: usize| lsn(place).map(|lsn| lsn.end_of_written(link.shape));
    Some(Answer {
        in_recovery,
        system: link.system,
        timeline: number(row, 5),
        inserted: written(1),
        flushed: written(2),
        received: lsn(3),
        replayed: lsn(4),
        tick: Tick::default(),
        asked: link.backend.opened,
        took: Duration::ZERO,
    })
}
