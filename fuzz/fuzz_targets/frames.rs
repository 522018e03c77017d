//! The readers of frames and of the messages in them, from either side.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::net::frame::read_frame;
use pgweir::wire::frame::{HEADER, Header};
use pgweir::wire::frontend::{self, Bind, Parse, Target};
use pgweir::wire::{backend, limits};

fn look(tag: u8, payload: &[u8]) {
    let _ = frontend::query_text(payload);
    let _ = frontend::calls_large_object_function(payload);
    let _ = Target::read(tag, payload);
    if let Ok(parse) = Parse::read(payload) {
        assert!(payload.ends_with(parse.body));
    }
    if let Some(bind) = Bind::read(payload) {
        assert!(bind.head <= payload.len());
    }
    let _ = backend::parameter_status(payload);
    let _ = backend::rows(payload);
    let _ = backend::error_field(payload, tag);
    let _ = backend::sqlstate(payload);
    let _ = backend::is_fatal(payload);
    let _ = backend::columns(payload);
}

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Ok(Some(header)) = Header::peek(rest, limits::WHOLE_FRAME_MAX) {
        if header.len > rest.len() {
            break;
        }
        look(header.tag, &rest[HEADER..header.len]);
        rest = &rest[header.len..];
    }
    // The reader used before and during login takes the same frames.
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let mut stream = data;
    if let (Ok(Some(header)), Ok(runtime)) = (Header::peek(data, limits::WHOLE_FRAME_MAX), runtime) {
        let frame = runtime.block_on(read_frame(&mut stream, limits::WHOLE_FRAME_MAX));
        assert_eq!(frame.is_ok(), header.len <= data.len());
    }
});
