//! Which port is found, and how soon.

use super::*;
use crate::binding::Segment;
use crate::binding::tests::opening;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn pool(remote: u32) -> Pool {
    let reply = Tuple { source: remote, destination: 9, source_port: 80, destination_port: 0, protocol: 17 };
    Pool::of(&HalfKey { node: NodeId(0), tuple: reply }).0
}

fn choice(wish: u16, random: u64) -> Choice {
    Choice { wish, range: PortRange::ALL, reserved: 8285, random, parity: false, opening: None }
}

/// Binds a flow of client number `client` to a port.
fn bind(bindings: &mut Bindings, pool: Pool, client: u32, port: u16) {
    let tuple = Tuple { source: client, destination: 7, source_port: 1, destination_port: 80, protocol: 17 };
    let halves = (HalfKey { node: NodeId(0), tuple }, pool.reply(port));
    let opening = opening(halves.0, halves.1);
    bindings.insert(&opening, &Segment::default(), Instant::ZERO).unwrap();
}

#[test]
fn workers_share_all_usable_ports_without_overlap() {
    let mut seen = BTreeSet::new();
    for worker in 0..3 {
        for port in Masquerade::new(worker, 3).own_from((PortRange::ALL, 8285), 77) {
            assert!(seen.insert(port), "{port} twice");
        }
    }
    let usable = (0..=u16::MAX).filter(|&port| is_usable(port, 8285)).count();
    assert_eq!(seen.len(), usable);
    assert_eq!(usable, 65_536 - 1024 - 2768 - 1);
}

/// Flows whose own port is a NodePort get a random one; if many began at the same, that would soon have none free near it.
#[test]
fn no_port_is_where_many_begin_to_look() {
    let mut starts = BTreeMap::new();
    for random in 0..=u16::MAX {
        *starts.entry(Masquerade::new(0, 1).own_at(PortRange::ALL, random)).or_insert(0) += 1;
    }
    assert!(starts.values().all(|&count| count <= 3), "{starts:?}");
}

/// RFC 4787, 4.2.1: port preservation.
#[test]
fn a_flows_own_port_comes_first_when_it_may_be_used() {
    let mut bindings = Bindings::new(9, 9, [1, 2]).unwrap();
    for (worker, workers, wish, is_kept, why) in [
        (0, 1, 40_000, true, "its own"),
        (0, 1, 80, false, "too low"),
        (0, 1, 8285, false, "the tunnel's"),
        (1, 2, 1024, false, "another worker's block"),
    ] {
        let mut ports = Masquerade::new(worker, workers);
        let found = ports.find(&mut bindings, pool(1), &choice(wish, 5000), Instant::ZERO);
        let Found::Own(port) = found else { panic!("{found:?}: {why}") };
        assert_eq!(port == wish, is_kept, "{why}");
        assert!(is_usable(port, 8285) && owner(port, workers) == worker, "{port}: {why}");
    }
}

/// Where the host's own programs use the same address, only what none of them is given is left; all of that, and no port of it
/// before the others.
#[test]
fn only_ports_of_the_nodes_range_are_handed_out() {
    let mut bindings = Bindings::new(9000, 1, [1, 2]).unwrap();
    let mut ports = Masquerade::new(0, 1);
    let range = PortRange { first: 61_000, last: 65_535 };
    let mut starts = BTreeMap::new();
    for random in 0..=u16::MAX {
        *starts.entry(ports.own_at(range, random)).or_insert(0) += 1;
    }
    assert!(starts.len() > 4500 && starts.values().all(|&count| count <= 30), "{starts:?}");
    let mut seen = BTreeSet::new();
    for client in 0..4536u32 {
        let choice = Choice { range, ..choice(40_000, u64::from(client)) };
        let found = ports.find(&mut bindings, pool(1), &choice, Instant::ZERO);
        let Found::Own(port) = found else { panic!("{found:?} for client {client}") };
        assert!(range.contains(port) && seen.insert(port), "{port}");
        bind(&mut bindings, pool(1), client, port);
    }
    let choice = Choice { range, ..choice(40_000, 1) };
    assert_eq!(ports.find(&mut bindings, pool(1), &choice, Instant::ZERO), Found::Exhausted);
}

/// RFC 4787, 4.2.
#[test]
fn every_port_is_used_before_one_is_refused_and_a_freed_one_is_found_at_once() {
    let (mut bindings, mut ports) = (Bindings::new(70_000, 1, [1, 2]).unwrap(), Masquerade::new(0, 1));
    let mut seen = BTreeSet::new();
    let usable = (0..=u16::MAX).filter(|&port| is_usable(port, 8285)).count();
    for client in 0..usable as u32 {
        let found = ports.find(&mut bindings, pool(1), &choice(0, client.into()), Instant::ZERO);
        let Found::Own(port) = found else { panic!("{found:?} for client {client}") };
        assert!(seen.insert(port), "{port} twice");
        bind(&mut bindings, pool(1), client, port);
    }
    assert_eq!(ports.find(&mut bindings, pool(1), &choice(0, 1), Instant::ZERO), Found::Exhausted);
    assert!(
        matches!(ports.find(&mut bindings, pool(2), &choice(0, 1), Instant::ZERO), Found::Own(_)),
        "another remote"
    );
    bindings.end_where(|binding| binding.original.tuple.source == 77);
    for ended in std::mem::take(&mut bindings.news) {
        let crate::binding::News::Ended(reply, _) = ended else { panic!("{ended:?}") };
        ports.free(&mut bindings, &reply);
    }
    assert!(matches!(ports.find(&mut bindings, pool(1), &choice(0, 1), Instant::ZERO), Found::Own(_)));
}

/// Clients keep their ports where they may, so whoever chooses theirs chooses which are taken. However that is done, few of
/// the flows that find theirs taken have a list of all ports made, which takes as long as thousands of them.
#[test]
fn no_choice_of_taken_ports_makes_the_next_one_dear() {
    const FLOWS: u64 = 1500;
    let usable = |port: &u16| is_usable(*port, 8285);
    let by = |stride: u16, count: u16| {
        (0..count).map(move |number| FIRST_PORT.wrapping_add(number.wrapping_mul(stride))).filter(usable)
    };
    let sets: [(&str, Vec<u16>); 5] = [
        ("side by side", (FIRST_PORT..28_000).filter(usable).collect()),
        ("all even ones", by(2, 32_768).collect()),
        ("every third", by(3, 30_000).collect()),
        ("in steps of 40,503", by(40_503, 30_000).collect()),
        ("in steps of 4,097", by(4097, 30_000).collect()),
    ];
    for ((what, taken), parity) in sets.iter().flat_map(|set| [(set, false), (set, true)]) {
        let (mut bindings, mut ports) = (Bindings::new(70_000, 1, [1, 2]).unwrap(), Masquerade::new(0, 1));
        taken.iter().for_each(|&port| bind(&mut bindings, pool(1), port.into(), port));
        let mut lists = 0;
        for flow in 0..FLOWS {
            // A taken port, of which somebody's binding ends from time to time.
            let had_list = !ports.short.is_empty();
            let wish = taken[flow as usize];
            let choice = Choice { parity, ..choice(wish, flow) };
            let found = ports.find(&mut bindings, pool(1), &choice, Instant::ZERO);
            assert!(matches!(found, Found::Own(_)), "{found:?}: {what}");
            lists += u32::from(!had_list && !ports.short.is_empty());
            ports.free(&mut bindings, &pool(1).reply(wish));
        }
        assert!(lists <= 1, "{what}, parity {parity}: {lists} lists for {FLOWS} flows");
    }
}

proptest! {
    #[test]
    fn the_list_of_free_ports_is_a_plain_set(
        deeds in prop::collection::vec((any::<bool>(), prop_oneof![any::<u16>(), 0u16..130, 65_400u16..]), 1..200),
        start in prop_oneof![any::<u16>(), 0u16..130, 65_400u16..],
    ) {
        let (mut list, mut plain) = (FreePorts::new(Instant::ZERO), BTreeSet::new());
        for (add, port) in deeds {
            if add {
                list.insert(port);
                plain.insert(port);
            } else {
                list.remove(port);
                plain.remove(&port);
            }
            let first = plain.range(start..).next().or_else(|| plain.first()).copied();
            prop_assert_eq!(list.first_from(start, u64::MAX), first);
            prop_assert_eq!(list.count.iter().sum::<usize>(), plain.len());
            let mut odd = plain.range(start..).chain(&plain).copied().filter(|port| port % 2 == 1);
            prop_assert_eq!(list.first_from(start, 0xaaaa_aaaa_aaaa_aaaa), odd.next());
        }
    }
}

/// However few blocks a range has for however many workers: each has its own ones, all are found, and one without any keeps nothing.
#[test]
fn workers_share_a_small_range() {
    let range = PortRange { first: 61_000, last: 62_100 };
    for workers in 1..=9 {
        let mut seen = BTreeSet::new();
        for worker in 0..workers {
            let (mut bindings, mut ports) =
                (Bindings::new(9000, 1, [1, 2]).unwrap(), Masquerade::new(worker, workers));
            let own = (range.first..=range.last).filter(|&port| owner(port, workers) == worker).count();
            for client in 0..own as u32 {
                let choice = Choice { range, ..choice(40_000, client.into()) };
                let found = ports.find(&mut bindings, pool(1), &choice, Instant::ZERO);
                let Found::Own(port) = found else { panic!("{found:?}: {client} of {own}, {workers}") };
                assert!(
                    range.contains(port) && owner(port, workers) == worker && seen.insert(port),
                    "{port}"
                );
                bind(&mut bindings, pool(1), client, port);
            }
            let choice = Choice { range, ..choice(40_000, 1) };
            let none = if workers == 1 { Found::Exhausted } else { Found::Ask };
            assert_eq!(ports.find(&mut bindings, pool(1), &choice, Instant::ZERO), none);
            assert_eq!(ports.short.is_empty(), own == 0, "{worker} of {workers}");
        }
        assert_eq!(seen.len(), 1101, "{workers}");
    }
}
