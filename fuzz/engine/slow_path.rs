//! Any frames at any ports of the tour's network, with time between them: nothing panics, every ledger balances, every buffer
//! is found.
#![no_main]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

use common::{APP1, APP2, APP3, BACKEND, INTERNET, Lab, USER};
use flatnet_engine::binding::Profile;
use flatnet_engine::control::EngineConfig;
use libfuzzer_sys::fuzz_target;
use std::time::Duration;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, mut rest)) = data.split_first() else { return };
    let profile = if kind & 1 == 0 { Profile::Linux } else { Profile::Rfc };
    let config = EngineConfig {
        workers: 1 + kind / 2 % 3,
        small_buffers: 512,
        large_buffers: 1,
        cache_slots: 64,
        bindings: 64,
        client_bindings: 16,
        ..EngineConfig::default()
    };
    let mut lab = Lab::build_with(&config, profile);
    // Each frame: who sends it, how long it is, its bytes; what would be nobody's lets time pass.
    for _ in 0..64 {
        let [from, high, low, tail @ ..] = rest else { break };
        let length = usize::from(u16::from_be_bytes([*high, *low])) % 1900;
        let (frame, after) = tail.split_at(length.min(tail.len()));
        rest = after;
        match [APP1, APP2, APP3, BACKEND, USER, INTERNET].get(usize::from(from % 8)) {
            Some(&at) => lab.send(at, frame),
            None => lab.pass(Duration::from_millis(length as u64 * 100)),
        }
        for at in [APP1, APP2, APP3, BACKEND, USER, INTERNET] {
            lab.receive(at);
        }
    }
    lab.check();
});
