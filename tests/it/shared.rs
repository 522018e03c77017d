//! A server that many tests use at once. Tests that stop, promote or reconfigure a server make their own.

use std::sync::OnceLock;

use pgweir::demo::cluster::{Server, ServerOptions};

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
