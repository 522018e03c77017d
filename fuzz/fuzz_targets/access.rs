//! Who may connect: rules, name maps, user lists, stored secrets.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::auth::hba::{ConnectionFacts, Hba};
use pgweir::auth::ident::IdentMaps;
use pgweir::auth::secrets::UserSecret;
use pgweir::auth::userlist::Userlist;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let maps = IdentMaps::parse(text).unwrap_or_default();
    let _ = maps.allows(None, text, text);
    if let Ok(hba) = Hba::parse(text) {
        for (peer, tls) in [
            (None, false),
            (Some([127, 0, 0, 1].into()), false),
            (Some([0; 16].into()), true),
        ] {
            let facts = ConnectionFacts {
                tls,
                peer,
                database: "database",
                user: "user",
                replication: tls,
                verified_certificate: tls,
                common_name: tls.then_some("user"),
            };
            let _ = hba.admit(&facts, &maps);
        }
    }
    if let Ok(list) = Userlist::parse(text) {
        assert_eq!(list.iter().count(), list.len());
    }
    let _ = UserSecret::parse(text);
});
