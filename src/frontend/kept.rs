//! A copy of an exchange that was sent, to send it again elsewhere.
//!
//! Bound: [`KEPT_MAX`] bytes a session, held only while the exchange is under way; longer exchanges are not kept.

use crate::net::buffer::{give_storage, take_storage};

/// The longest exchange that is kept.
pub(super) const KEPT_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
}

impl Kept {
    /// A copy of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut storage = take_storage();
        storage.extend_from_slice(bytes);
        Self { bytes: storage }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        give_storage(std::mem::take(&mut self.bytes));
    }
}
