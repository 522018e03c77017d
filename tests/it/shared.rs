//! A server that many tests use at once. Tests that stop, promote or reconfigure a server make their own.

use std::sync::OnceLock;

use pgweir::demo::cluster::{Server, ServerOptions};

use crate::support::client::{Client, Login};
use crate::support::pgweir::Pgweir;

/// A running server, made by the first test that asks. It goes with the process.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        ServerOptions::default()
            .set("max_connections", "300")
            .start()
            .unwrap()
    })
}

/// A client of the shared server itself, past pgweir.
pub async fn direct() -> Client {
    Client::connect(server().address(), "postgres", "postgres").await
}

/// A role of one test, so that its backends can be told from those of the other tests.
pub struct Role {
    pub name: &'static str,
    observer: Client,
}

/// Makes superuser `name`.
pub async fn role(name: &'static str) -> Role {
    let mut observer = direct().await;
    observer
        .query(&format!("CREATE ROLE {name} SUPERUSER LOGIN"))
        .await
        .ok();
    Role { name, observer }
}

impl Role {
    pub async fn client(&self, pgweir: &Pgweir) -> Client {
        self.client_with(pgweir, &[]).await
    }

    /// A client with startup parameters.
    pub async fn client_with(&self, pgweir: &Pgweir, parameters: &[(&str, &str)]) -> Client {
        let login = Login::new(self.name, "postgres");
        let login = parameters
            .iter()
            .fold(login, |login, (name, value)| login.with(name, value));
        pgweir.client_as(&login).await
    }

    /// Asks about this role's backends; `WHERE` has been written already.
    pub async fn activity(&mut self, columns: &str, condition: &str) -> Vec<String> {
        let sql = format!(
            "SELECT {columns} FROM pg_stat_activity WHERE usename = '{}' AND {condition} ORDER BY backend_start",
            self.name
        );
        self.observer.query(&sql).await.ok().column()
    }

    /// Process ids of this role's backends that run its statements.
    pub async fn pids(&mut self) -> Vec<String> {
        let condition = "application_name NOT IN ('pgweir listener', 'pgweir catalogue')";
        self.activity("pid", condition).await
    }

    /// Runs a statement past pgweir.
    pub async fn observe(&mut self, sql: &str) -> String {
        self.observer.value(sql).await
    }
}
