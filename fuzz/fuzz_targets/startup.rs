//! The packets before authentication, and the options of a startup packet.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::startup::{StartupPacket, packet_len, read, read_options};

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_first_chunk() else {
        return;
    };
    let _ = packet_len(*head);
    for packet in [data, rest] {
        if let Ok(StartupPacket::Startup(message)) = read(packet) {
            assert!(!message.user.is_empty() && !message.database.is_empty());
            for (_, value) in &message.parameters {
                let _ = read_options(value);
            }
        }
    }
    let _ = read_options(data);
});
