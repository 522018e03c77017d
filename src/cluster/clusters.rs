//! The clusters of the configuration: their probes, their pictures, and what follows from a change.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::board::{Board, Event, Finding};
use super::node::Node;
use super::probe;
use super::samples::Tick;
use super::state::{NodeState, Rules};
use super::telling::tell;
use super::topology::Topology;
use crate::backend::connect::Dialer;
use crate::config::model::{self, Config};
use crate::pool::Pools;
use crate::pool::effective::servers;
use crate::pool::targets::Target;
use crate::tasks;

/// The servers behind one or more databases.
#[derive(Debug)]
pub struct Cluster {
    /// Names it: the addresses of its servers.
    pub servers: Arc<str>,
    pub nodes: Vec<Arc<Node>>,
    pub(super) settings: ArcSwap<model::Probe>,
    zone: ArcSwap<Option<String>>,
    topology: ArcSwap<Topology>,
    board: Mutex<Board>,
    /// The last tick drawn, in any cluster: what a session notes means the same in the next one it is on.
    clock: Arc<AtomicU64>,
    /// The latest tick that somebody could not be served for.
    wanted: AtomicU64,
    /// What must be seen of the writes of all sessions. Clusters that share servers share this, so that a transaction
    /// that began before the list was changed counts for those who come later.
    written: Vec<Arc<AtomicU64>>,
    /// Servers of which a session has heard something that calls for a probe, by place.
    suspected: Vec<AtomicBool>,
    failovers: AtomicU64,
    /// Times that the primary was away, and for how long in all.
    holds: AtomicU64,
    held_micros: AtomicU64,
    pools: Arc<Pools>,
    changed: Arc<Notify>,
}

impl Cluster {
    /// Goes on with what `related` clusters know of the same servers. What was written before it began is not known to
    /// anybody: only who is asked after that has it for certain.
    fn new(list: &List, all: &Clusters, related: &[Arc<Cluster>]) -> Self {
        let nodes: Vec<Arc<Node>> = list
            .nodes
            .iter()
            .enumerate()
            .map(|(index, server)| Arc::new(Node::new(server, index)))
            .collect();
        let mut board = Board::new(&nodes, rules(&list.probe), Instant::now());
        let mut written: Vec<Arc<AtomicU64>> = Vec::new();
        for cluster in related {
            board.inherit(&cluster.lock());
            for it in &cluster.written {
                if !written.iter().any(|known| Arc::ptr_eq(known, it)) {
                    written.push(Arc::clone(it));
                }
            }
        }
        if written.is_empty() {
            written.push(Arc::default());
        }
        let cluster = Self {
            servers: Arc::clone(&list.servers),
            settings: ArcSwap::from_pointee(list.probe.clone()),
            zone: ArcSwap::from_pointee(list.zone.clone()),
            topology: ArcSwap::from_pointee(board.topology()),
            board: Mutex::new(board),
            clock: Arc::clone(&all.clock),
            wanted: AtomicU64::new(0),
            written,
            suspected: nodes.iter().map(|_| AtomicBool::new(false)).collect(),
            nodes,
            failovers: AtomicU64::new(0),
            holds: AtomicU64::new(0),
            held_micros: AtomicU64::new(0),
            pools: Arc::clone(&all.pools),
            changed: Arc::clone(&all.changed),
        };
        cluster.note_write();
        cluster
    }

    /// The picture as it is now.
    pub fn topology(&self) -> arc_swap::Guard<Arc<Topology>> {
        self.topology.load()
    }

    /// The zone pgweir runs in.
    pub fn zone(&self) -> arc_swap::Guard<Arc<Option<String>>> {
        self.zone.load()
    }

    pub(super) fn dialer(&self) -> Arc<Dialer> {
        self.pools.dialer.load_full()
    }

    /// Draws a tick for a question that is sent afterwards.
    pub(super) fn draw(&self) -> Tick {
        Tick(self.clock.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// What a replica must have seen to know of everything acknowledged so far. Call it after the acknowledgement was
    /// read.
    pub fn now(&self) -> Tick {
        Tick(self.clock.load(Ordering::SeqCst) + 1)
    }

    /// A write was acknowledged, to be told to its client afterwards. Returns what its session must see.
    pub fn note_write(&self) -> Tick {
        let tick = self.now();
        for written in &self.written {
            written.fetch_max(tick.0, Ordering::SeqCst);
        }
        tick
    }

    /// What must be seen to know of every write acknowledged through this process.
    pub fn written(&self) -> Tick {
        let written = self.written.iter().map(|it| it.load(Ordering::SeqCst));
        Tick(written.max().unwrap_or(0))
    }

    /// Somebody would read from a replica that has seen `tick`, and there is none: probes come sooner.
    pub fn want(&self, tick: Tick) {
        if self.wanted.fetch_max(tick.0, Ordering::SeqCst) < tick.0 {
            for node in &self.nodes {
                node.wake.notify_one();
            }
        }
    }

    /// Whether news of `node` may serve somebody.
    pub(super) fn is_wanted(&self, node: &Node) -> bool {
        let wanted = Tick(self.wanted.load(Ordering::SeqCst));
        let topology = self.topology.load();
        if topology.primary == Some(node.index) {
            return self.lock().newest_sample().is_none_or(|s| s.tick < wanted);
        }
        let view = topology.nodes.get(node.index);
        view.is_some_and(|view| view.serves_reads() && !view.covers(wanted))
    }

    /// Whether a replica has still not seen what somebody wanted.
    pub(super) fn is_starved(&self) -> bool {
        let wanted = Tick(self.wanted.load(Ordering::SeqCst));
        let topology = self.topology.load();
        let mut nodes = topology.nodes.iter();
        nodes.any(|view| view.serves_reads() && !view.covers(wanted))
    }

    /// When `node` is worth asking again: not much more often than its lag changes.
    pub(super) fn next_sample(&self, node: &Node, soonest: Instant, probed: Instant) -> Instant {
        let topology = self.topology.load();
        let lag = topology.nodes.get(node.index).and_then(|view| view.lag);
        soonest.max(probed + lag.unwrap_or(Duration::ZERO) / 10)
    }

    /// A session has heard something of `node` that calls for a probe at once.
    pub fn suspect(&self, node: &model::Node) {
        let same = |known: &&Arc<Node>| known.server.is_same_server(node);
        if let Some(node) = self.nodes.iter().find(same) {
            self.suspected[node.index].store(true, Ordering::SeqCst);
            node.wake.notify_one();
        }
    }

    pub(super) fn is_suspected(&self, node: &Node) -> bool {
        self.suspected[node.index].swap(false, Ordering::SeqCst)
    }

    /// How often another server became the primary.
    pub fn failovers(&self) -> u64 {
        self.failovers.load(Ordering::Relaxed)
    }

    /// How often statements had to wait for a primary, the time before the first was found not counted.
    pub fn holds(&self) -> u64 {
        self.holds.load(Ordering::Relaxed)
    }

    /// How long statements had to wait for a primary, in all, the time before the first was found and waits that go on
    /// not counted.
    pub fn held_total(&self) -> Duration {
        Duration::from_micros(self.held_micros.load(Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a server out of service or lets it back. False if it is the primary.
    pub fn drain(&self, node: &Node, drained: bool) -> bool {
        let done = self.lock().drain(node.index, drained);
        if done {
            self.suspect(&node.server);
        }
        done
    }

    /// Takes in what a probe came to, and acts on what it changes. The lock is held throughout, so that changes are acted
    /// on in the order they happened in.
    pub(super) fn take(&self, node: &Node, finding: Finding, now: Instant) {
        let has_failed = matches!(finding, Finding::Failed(_));
        let mut board = self.lock();
        let events = board.take(node.index, finding, now);
        let before = self.topology.load_full();
        if has_failed && before.primary == Some(node.index) {
            self.look_for_primary(node);
        }
        let topology = Arc::new(board.topology());
        self.topology.store(Arc::clone(&topology));
        let moved = before.primary != topology.primary || before.is_held != topology.is_held;
        if moved {
            self.pools.point(&self.servers, Some(target(&topology)));
        }
        if topology.is_held && !before.is_held {
            self.holds.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("no server takes writes: statements wait for a primary");
        }
        for event in &events {
            tell(event, &topology);
            self.act(event, &topology);
        }
        if moved || !events.is_empty() {
            self.changed.notify_one();
        }
        if !topology.is_held
            && let (Some(since), Some(primary)) = (before.held_since, topology.primary())
        {
            let waited = now.duration_since(since);
            // The first wait is for a primary to be found at all.
            if self.holds() > 0 {
                let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
                self.held_micros.fetch_add(micros, Ordering::Relaxed);
            }
            tracing::info!(primary = %primary.node.name, ?waited, "statements go on");
        }
    }

    /// The primary may be gone: whether another server takes its place is to be known at once.
    fn look_for_primary(&self, primary: &Node) {
        for node in self.nodes.iter().filter(|node| node.index != primary.index) {
            self.suspected[node.index].store(true, Ordering::SeqCst);
            node.wake.notify_one();
        }
    }

    /// The name of `node` leads to another address than `before`.
    pub(super) fn readdress(&self, node: &Node, before: IpAddr) {
        tracing::warn!(
            server = %node.name, %before,
            "the server's name leads to another address: connections to it are replaced"
        );
        self.pools.readdress(&self.servers, &node.server);
    }

    fn act(&self, event: &Event, topology: &Topology) {
        match event {
            Event::Primary { from, to, .. } => {
                let primary = &topology.nodes[*to].node;
                if from.is_some() {
                    self.failovers.fetch_add(1, Ordering::Relaxed);
                    self.pools.abandon_all_but(&self.servers, &primary.server);
                }
                self.pools.give_up(&self.servers, &primary.name);
            }
            Event::Renewed { node, .. } => {
                self.failovers.fetch_add(1, Ordering::Relaxed);
                self.pools.abandon_primary(&self.servers);
                self.pools
                    .give_up(&self.servers, &topology.nodes[*node].node.name);
            }
            Event::Moved { node, moved } => {
                let is_out = matches!(
                    moved.to,
                    NodeState::Down | NodeState::Fenced | NodeState::Refused
                );
                if is_out {
                    let name = &topology.nodes[*node].node.name;
                    self.pools.give_up(&self.servers, name);
                }
            }
            Event::Outdated { node, .. } => {
                let outdated = &topology.nodes[*node].node.server;
                self.pools.abandon_outdated(&self.servers, outdated);
            }
            Event::Assumed { .. } => {}
        }
    }
}

fn rules(probe: &model::Probe) -> Rules {
    Rules {
        down_after: probe.down_after,
        lag_max: probe.replica_lag_max,
    }
}

fn target(topology: &Topology) -> Target {
    Target {
        node: topology.primary().map(|view| view.node.server.clone()),
        is_held: topology.is_held,
    }
}

/// A list of servers in the configuration.
#[derive(Debug)]
struct List {
    servers: Arc<str>,
    nodes: Vec<model::Node>,
    probe: model::Probe,
    zone: Option<String>,
}

impl List {
    fn shares_server(&self, cluster: &Cluster) -> bool {
        let is_in = |node: &model::Node| {
            let mut nodes = cluster.nodes.iter();
            nodes.any(|known| known.server.is_same_server(node))
        };
        self.nodes.iter().any(is_in)
    }
}

/// The lists of several servers that databases have.
fn lists(config: &Config) -> BTreeMap<Arc<str>, List> {
    let mut lists = BTreeMap::new();
    for database in config.databases.values() {
        if database.replicas.is_empty() {
            continue;
        }
        let servers = servers(&database.primary, &database.replicas);
        let nodes = std::iter::once(&database.primary).chain(&database.replicas);
        let list = List {
            servers: Arc::clone(&servers),
            nodes: nodes.cloned().collect(),
            probe: probe_settings(config),
            zone: config.cluster.zone.clone(),
        };
        lists.entry(servers).or_insert(list);
    }
    lists
}

/// Whoever asks for users' secrets may ask for the rest too.
fn probe_settings(config: &Config) -> model::Probe {
    let mut probe = config.cluster.probe.clone();
    let has_own = |database: &model::Database| database.primary.user.is_some();
    if probe.user.is_none() && !config.databases.values().any(has_own) {
        probe.user.clone_from(&config.auth.auth_user);
        probe.password.clone_from(&config.auth.auth_password);
    }
    probe
}

/// A cluster and its probes, which end with it.
#[derive(Debug)]
struct Running {
    cluster: Arc<Cluster>,
    nodes: Vec<model::Node>,
    probes: Vec<AbortHandle>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.probes.iter().for_each(AbortHandle::abort);
    }
}

/// All clusters.
#[derive(Debug)]
pub struct Clusters {
    pools: Arc<Pools>,
    by_servers: RwLock<HashMap<Arc<str>, Running>>,
    changed: Arc<Notify>,
    /// The last tick drawn.
    clock: Arc<AtomicU64>,
}

impl Clusters {
    pub fn new(pools: &Arc<Pools>) -> Self {
        Self {
            pools: Arc::clone(pools),
            by_servers: RwLock::default(),
            changed: Arc::default(),
            clock: Arc::default(),
        }
    }

    /// Rings when a primary or a state has changed; for one listener.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// The cluster of a list of servers; `None` for a single server.
    pub fn of(&self, servers: &str) -> Option<Arc<Cluster>> {
        if servers.is_empty() {
            return None;
        }
        let clusters = self
            .by_servers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&clusters.get(servers)?.cluster))
    }

    /// Every cluster, by the addresses of its servers.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        let clusters = self
            .by_servers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = clusters
            .values()
            .map(|running| Arc::clone(&running.cluster))
            .collect();
        all.sort_by(|a, b| a.servers.cmp(&b.servers));
        all
    }

    /// Begins and ends clusters as the configuration says. A cluster whose servers are the same goes on with what it
    /// knows; one whose servers are written differently (another weight, another login, one more) begins anew, and goes on
    /// with the timeline, what was drained and what was written.
    pub fn sync(&self, config: &Config) {
        let mut lists = lists(config);
        let mut clusters = self
            .by_servers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let cluster = |running: &Running| Arc::clone(&running.cluster);
        let mut known: Vec<Arc<Cluster>> = clusters.values().map(cluster).collect();
        clusters.retain(|servers, running| match lists.get(servers) {
            Some(list) if list.nodes == running.nodes => {
                running.cluster.settings.store(Arc::new(list.probe.clone()));
                running.cluster.zone.store(Arc::new(list.zone.clone()));
                running.cluster.lock().set_rules(rules(&list.probe));
                lists.remove(servers);
                true
            }
            Some(_) => false,
            None => {
                self.pools.point(servers, None);
                false
            }
        });
        for (servers, list) in lists {
            let running = self.begin(list, &known);
            known.push(Arc::clone(&running.cluster));
            clusters.insert(servers, running);
        }
    }

    fn begin(&self, list: List, known: &[Arc<Cluster>]) -> Running {
        let related: Vec<_> = known
            .iter()
            .filter(|cluster| list.shares_server(cluster))
            .cloned()
            .collect();
        let cluster = Arc::new(Cluster::new(&list, self, &related));
        self.pools
            .point(&list.servers, Some(target(&cluster.topology())));
        let probe = |node: &Arc<Node>| {
            let probe = probe::run(Arc::clone(&cluster), Arc::clone(node));
            tasks::spawn("probe", probe).abort_handle()
        };
        Running {
            probes: cluster.nodes.iter().map(probe).collect(),
            nodes: list.nodes,
            cluster,
        }
    }
}
