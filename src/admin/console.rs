//! stub
use crate::net::stream::Stream;
use crate::reload::Reloader;
use crate::shared::Shared;
use crate::wire::startup::StartupMessage;
use std::net::IpAddr;
use std::sync::Arc;
/// What the console acts on.
#[derive(Debug)]
pub struct Console {
    pub shared: Arc<Shared>,
    pub reloader: Arc<Reloader>,
}
impl Console {
    /// Serves an authenticated console client until it leaves.
    pub async fn serve(
        &self,
        _stream: Stream,
        _message: &StartupMessage,
        _address: Option<IpAddr>,
    ) {
    }
}
