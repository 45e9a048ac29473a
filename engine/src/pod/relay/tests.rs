//! Relays beside real sockets of this process's loopback.

use super::*;

/// RFC 1812, 5.3.7: martians; RFC 3927, 7: routers do not forward link-local packets; RFC 1112, 4: addresses without hosts.
#[test]
fn only_what_a_router_forwards_is_forwarded() {
    for forwarded in [
        "1.0.0.1",
        "10.0.0.1",
        "126.255.255.255",
        "128.0.0.1",
        "169.253.255.255",
        "192.168.66.1",
        "223.255.255.255",
    ] {
        assert!(is_forwarded(forwarded.parse().unwrap()), "{forwarded}");
    }
    for other in [
        "0.0.0.0",
        "0.0.0.1",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.169.254",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        assert!(!is_forwarded(other.parse().unwrap()), "{other}");
    }
}
