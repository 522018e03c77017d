//! What happens to servers and to pgweir meanwhile.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, StopMode};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::scene::{ROLE, Scene, Shape, say};
use crate::support::client::Client;
use crate::support::messages::query;
use crate::support::pgweir::Pgweir;
use crate::support::wait::eventually;

/// Does one thing at a time.
pub struct Disturber {
    scene: Arc<Scene>,
    pub cluster: Cluster,
    pub shape: Shape,
    rng: SmallRng,
}

impl Disturber {
    pub fn new(scene: Arc<Scene>, cluster: Cluster, shape: Shape, seed: u64) -> Self {
        Self {
            scene,
            cluster,
            shape,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Waits a moment, then disturbs.
    pub async fn disturb(&mut self, pgweir: &Pgweir) {
        let pause = Duration::from_millis(self.rng.random_range(20..300));
        tokio::time::sleep(pause).await;
        match self.rng.random_range(0..100) {
            0..20 => self.on_backends("terminated backends", "pg_terminate_backend"),
            20..35 => self.on_backends("canceled backends", "pg_cancel_backend"),
            35..40 => self.kill_backend().await,
            40..45 => {
                self.await_recovery().await;
                self.restart(StopMode::Fast);
            }
            45..48 => self.restart(StopMode::Immediate),
            48..55 => self.freeze().await,
            55..68 => self.reload(pgweir).await,
            68..76 => self.console(pgweir, "RECONNECT").await,
            76..86 => self.pause(pgweir).await,
            86..90 => self.kill(pgweir).await,
            90..95 => self.kill_client(pgweir).await,
            _ => self.disable(pgweir).await,
        }
    }

    /// Runs a function on some backends of the clients; a server that is starting has none.
    fn on_backends(&mut self, what: &str, function: &str) {
        let count = self.rng.random_range(1..3);
        let sql = format!(
            "SELECT count({function}(pid)) FROM (SELECT pid FROM pg_stat_activity \
             WHERE usename = '{ROLE}' ORDER BY random() LIMIT {count}) AS victims"
        );
        let primary = &self.cluster.primary;
        if tokio::task::block_in_place(|| primary.sql("postgres", &sql)).is_ok() {
            self.scene.count(what);
        }
    }

    /// SIGKILL, upon which the postmaster takes all others down and recovers.
    async fn kill_backend(&mut self) {
        let sql = format!(
            "SELECT pid FROM pg_stat_activity WHERE usename = '{ROLE}' ORDER BY random() LIMIT 1"
        );
        let primary = &self.cluster.primary;
        let pid = tokio::task::block_in_place(|| primary.sql("postgres", &sql)).unwrap_or_default();
        if pid.parse::<u32>().is_ok() {
            let killed = Command::new("kill").args(["-KILL", &pid]).status().unwrap();
            if killed.success() {
                self.scene.count("crashed server");
            }
            let process = PathBuf::from(format!("/proc/{pid}"));
            eventually("the postmaster to notice", async || !process.exists()).await;
        }
    }

    /// PostgreSQL 15 takes a minute for a fast shutdown that comes before the recovery from a crash is over: the startup
    /// process tries so long to have a checkpoint made by a checkpointer that is not started any more.
    async fn await_recovery(&self) {
        let primary = &self.cluster.primary;
        let answers = || primary.sql("postgres", "SELECT 1").is_ok();
        eventually("the server to have recovered", async || {
            tokio::task::block_in_place(answers)
        })
        .await;
    }

    fn restart(&mut self, mode: StopMode) {
        self.scene.count("restarted server");
        let primary = &mut self.cluster.primary;
        if let Err(error) = tokio::task::block_in_place(|| primary.restart(mode)) {
            let columns = ["-eo", "pid,ppid,stat,wchan:20,etimes,args"];
            let listed = Command::new("ps").args(columns).output().unwrap();
            say(&format!(
                "{}\n{error}",
                String::from_utf8_lossy(&listed.stdout)
            ));
            panic!("the server neither stopped nor started");
        }
    }

    /// The server stands still for a moment.
    async fn freeze(&mut self) {
        self.scene.count("frozen server");
        self.cluster.primary.pause().unwrap();
        let moment = Duration::from_millis(self.rng.random_range(10..200));
        tokio::time::sleep(moment).await;
        self.cluster.primary.cont().unwrap();
    }

    async fn console(&self, pgweir: &Pgweir, command: &str) {
        self.scene.count(command);
        let mut console = pgweir.console().await;
        console.query(command).await.ok();
        console.terminate().await;
    }

    /// Another size of the pool, or a file that is refused.
    async fn reload(&mut self, pgweir: &Pgweir) {
        let path = pgweir.config_path();
        let size = self.rng.random_range(2..=Shape::SIZE_MAX);
        let good = self.shape.config(&self.cluster, size);
        if self.rng.random_ratio(1, 4) {
            std::fs::write(&path, format!("{good}nonsense = 1\n")).unwrap();
            let mut console = pgweir.console().await;
            let refused = console.query("RELOAD").await;
            assert_eq!(refused.sqlstate(), "F0000", "{refused:?}");
            console.terminate().await;
            self.scene.count("refused reload");
        }
        std::fs::write(&path, good).unwrap();
        if self.rng.random() {
            pgweir.reload();
            self.scene.count("SIGHUP");
        } else {
            self.console(pgweir, "RELOAD").await;
        }
    }

    /// Holds everybody for a moment; PAUSE itself may have to wait for transactions, RESUME does not wait for it.
    async fn pause(&mut self, pgweir: &Pgweir) {
        let what = ["", " postgres"][self.rng.random_range(0..2)];
        let mut console = pgweir.console().await;
        console.send(&query(&format!("PAUSE{what}"))).await;
        let moment = Duration::from_millis(self.rng.random_range(1..100));
        tokio::time::sleep(moment).await;
        self.resume(pgweir, what).await;
        self.scene.count("PAUSE");
        let paused = console.reply().await;
        if paused.tags != ["PAUSE"] {
            assert_eq!(paused.sqlstate(), "57014", "{paused:?}");
        }
        console.terminate().await;
    }

    async fn resume(&self, pgweir: &Pgweir, what: &str) {
        let mut console = pgweir.console().await;
        eventually("RESUME to find what to resume", async || {
            console
                .query(&format!("RESUME{what}"))
                .await
                .errors
                .is_empty()
        })
        .await;
        console.terminate().await;
    }

    /// Drops all clients and connections.
    async fn kill(&mut self, pgweir: &Pgweir) {
        let what = ["", " postgres"][self.rng.random_range(0..2)];
        self.console(pgweir, &format!("KILL{what}")).await;
        self.resume(pgweir, what).await;
    }

    /// Drops one of the clients.
    async fn kill_client(&mut self, pgweir: &Pgweir) {
        let mut console = pgweir.console().await;
        let clients = console
            .query(&format!("SHOW CLIENTS WHERE user = '{ROLE}'"))
            .await
            .ok();
        let id = clients
            .columns
            .iter()
            .position(|column| column == "id")
            .expect("a column id");
        if let Some(row) = clients
            .rows
            .get(self.rng.random_range(0..clients.rows.len().max(1)))
        {
            let id = row[id].clone().unwrap();
            // It may have left by itself.
            if console
                .query(&format!("KILL_CLIENT {id}"))
                .await
                .errors
                .is_empty()
            {
                self.scene.count("KILL_CLIENT");
            }
        }
        console.terminate().await;
    }

    /// Lets no new clients in for a moment.
    async fn disable(&mut self, pgweir: &Pgweir) {
        self.console(pgweir, "DISABLE postgres").await;
        let moment = Duration::from_millis(self.rng.random_range(1..100));
        tokio::time::sleep(moment).await;
        self.console(pgweir, "ENABLE postgres").await;
    }

    /// Everything runs again, with the pool it began with.
    pub async fn settle(&mut self, pgweir: &Pgweir) {
        let text = self.shape.config(&self.cluster, self.shape.max_size);
        std::fs::write(pgweir.config_path(), text).unwrap();
        self.console(pgweir, "RELOAD").await;
        eventually("the server to answer", async || {
            self.cluster.primary.sql("postgres", "SELECT 1").is_ok()
        })
        .await;
        eventually("pgweir to answer", async || {
            let login = crate::support::client::Login::new(ROLE, "postgres");
            match Client::connect_as(pgweir.address, &login).await {
                Ok(mut client) => client.query("SELECT 1").await.errors.is_empty(),
                Err(_) => false,
            }
        })
        .await;
    }
}
