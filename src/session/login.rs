//! Whom a server connection logs in as: the user, and the role it begins with, which only the server knows.

use std::borrow::Cow;

use super::literal::{put_bytes_of, unescaped};
use super::settings::Row;

/// Whom a backend is where nothing of a session's says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    pub user: &'a [u8],
    /// The role it began with, by `ALTER ROLE … SET role` or the startup packet; `None` while nobody has asked.
    pub role: Option<&'a [u8]>,
}

/// The name of the row that tells [`Login::role`]; no setting has a name with a space in it.
pub const ROLE: &[u8] = b"login role";

/// The role a backend began with, if `rows` tell it.
pub fn role(rows: &[Row]) -> Option<Cow<'_, [u8]>> {
    let row = rows.iter().find(|(name, _)| name == ROLE)?;
    row.1.as_deref().map(unescaped)
}

/// A statement that tells it, behind the others of its question, because it takes the role for as long as that lasts.
pub fn put_question(text: &mut Vec<u8>) {
    text.extend_from_slice(b";SELECT '");
    text.extend_from_slice(ROLE);
    text.extend_from_slice(b"'::pg_catalog.text, ");
    put_bytes_of(text, |text| {
        text.extend_from_slice(b"pg_catalog.set_config('role', NULL, true)");
    });
}
