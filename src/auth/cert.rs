//! `cert` authentication: the common name of a verified client certificate is the user, or maps to it.
//!
//! Reading the certificate is `net::certificate`'s job, verifying it TLS's; this is the decision.

use super::ident::IdentMaps;

/// Whether the holder of a verified certificate with this common name may log in as `user`.
/// A certificate without a common name proves nobody.
pub fn permits(common_name: Option<&str>, user: &str, map: Option<&str>, maps: &IdentMaps) -> bool {
    common_name.is_some_and(|name| !name.is_empty() && maps.allows(map, name, user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_is_the_user_unless_a_map_says_otherwise() {
        let maps = IdentMaps::parse("tls app.example app").unwrap();
        assert!(permits(Some("app"), "app", None, &maps));
        assert!(!permits(Some("App"), "app", None, &maps));
        assert!(permits(Some("app.example"), "app", Some("tls"), &maps));
        assert!(!permits(Some("app"), "app", Some("tls"), &maps));
        assert!(!permits(None, "app", None, &maps));
        assert!(!permits(Some(""), "", None, &maps));
    }
}
