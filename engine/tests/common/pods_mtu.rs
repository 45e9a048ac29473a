//! What pods may send to another node's.

#![allow(unreachable_pub, reason = "each test binary has its own")]

use flatnet_engine::wire::IcmpPacket;

use crate::common::*;

/// Asserts that pods' packets to another node may have so many bytes, and that who sends one more is told so (RFC 1191).
pub fn assert_pods_mtu(lab: &mut Lab, mtu: u16) {
    let tables = lab.control.tables.current();
    assert_eq!(tables.node(lab.node1).unwrap().bridge.as_ref().unwrap().mtu, mtu);
    let most = usize::from(mtu) - 28;
    for (payload, fits) in [(most, true), (most + 1, false)] {
        let frame = lab.udp(APP2, BACKEND, (5000, 7), &vec![1; payload]);
        lab.send(APP2, &frame);
        assert_eq!(lab.receive(BACKEND).len(), usize::from(fits), "{payload}");
        let told = lab.receive(APP2);
        assert_eq!(told.len(), usize::from(!fits));
        for frame in told {
            let icmp = packet(&frame).3;
            assert_eq!(IcmpPacket::new_unchecked(&icmp[..]).next_hop_mtu(), mtu);
        }
    }
}
