//! Any bytes at any kind of port: parsed or refused by name, and what is found lies inside the frame.
#![no_main]

use flatnet_engine::parse::{Class, IngressPort, Side, Vtep, parse};
use flatnet_engine::wire::MacAddress;
use libfuzzer_sys::fuzz_target;
use std::net::Ipv4Addr;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, frame)) = data.split_first() else { return };
    let mac = MacAddress::new([2, 0x42, 192, 168, 66, 11]);
    let local = Ipv4Addr::new(192, 168, 66, 11);
    let end = Vtep { vni: 1, mac: MacAddress::new([2, 0x42, 10, 1, 15, 0]) };
    let side = match kind % 5 {
        0 => Side::Switch,
        1 => Side::Bridge,
        2 => Side::Interface { mac, tunnel: None },
        3 => Side::Vxlan { mac, tunnel: (local, 8472), end },
        _ => Side::Interface { mac, tunnel: Some((local, 8285)) },
    };
    let Ok(parsed) = parse(frame, &IngressPort { port: 1, side }, kind & 8 != 0) else { return };
    if parsed.class == Class::Flow {
        assert!(parsed.network_offset < parsed.transport_offset);
        assert!(usize::from(parsed.transport_offset) <= frame.len());
    }
});
