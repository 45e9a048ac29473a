//! What a million connections take.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use flatnet_engine::binding::{Answers, Bindings, HalfKey, News, Opening, Profile, Segment};
use flatnet_engine::clock::Instant;
use flatnet_engine::flow::{FlowCache, FlowKey, NO_BINDING, Slot, Tuple};
use flatnet_engine::tables::{EPOCH_BUCKETS, NodeId};

const CONNECTIONS: u32 = 1_000_000;
/// Slots of the cache for two connections, as the bench has them: both directions of each, and as many again less one.
const SLOTS_OF_TWO: usize = 7;

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Makes a million connections, of as many clients and with answers that find their worker so; returns the bytes taken. Both
/// halves of each with their state, both directions in the cache, and what the other worker keeps of them, if it does.
fn taken(clients: u32, answers: Answers) -> usize {
    let before = resident();
    let limit = CONNECTIONS as usize;
    let mut bindings = Bindings::new(limit, CONNECTIONS, [1, 2]).unwrap();
    let mut elsewhere = Bindings::new(limit, CONNECTIONS, [5, 6]).unwrap();
    let mut cache = FlowCache::new(limit * SLOTS_OF_TWO / 2, [3, 4]).unwrap();
    let epochs = [0; EPOCH_BUCKETS];
    let mut lost = 0;
    let tuple = |number: u32| Tuple {
        source: number % clients,
        destination: number,
        source_port: (number / clients) as u16,
        destination_port: 53,
        protocol: 17,
    };
    for tuple in (0..CONNECTIONS).map(tuple) {
        let reply = Tuple { destination: 99, ..tuple.reversed() };
        let [original, reply] = [tuple, reply].map(|tuple| HalfKey { node: NodeId(0), tuple });
        let profile = Profile::Linux;
        let opening = Opening { original, reply, answers, profile, mapping: None, served: None };
        let made = bindings.insert(&opening, &Segment::default(), Instant::ZERO).unwrap();
        for tuple in [original.tuple, reply.tuple] {
            let key = FlowKey::ipv4(&tuple, 1, false);
            let slot = Slot { binding: made.index, ..Slot::hand_over(key, [0; 12], 0, 0) };
            cache.insert(cache.hash(key), slot, &epochs, Instant::ZERO);
        }
        for news in bindings.news.drain(..) {
            assert_eq!(news, News::Begun(reply));
            assert!(elsewhere.redirect(reply, 0, Instant::ZERO));
        }
    }
    for tuple in (0..CONNECTIONS).step_by(100).map(tuple) {
        let key = FlowKey::ipv4(&tuple, 1, false);
        let found = cache.lookup(cache.hash(key), key, &[0; 12], &epochs);
        lost += u32::from(found.is_none_or(|slot| slot.binding == NO_BINDING));
    }
    let taken = resident() - before;
    assert_eq!(bindings.len(), limit);
    assert!(lost < 100, "{lost} of 10,000 flows are not in the cache");
    println!("{clients} clients, {answers:?}: {taken} bytes");
    taken
}

#[test]
fn a_million_connections_take_400_megabytes_between_pods_and_more_with_strangers() {
    let of_pods = taken(20, Answers::Steered);
    assert!(of_pods > 200_000_000, "{of_pods}: not all is there");
    assert!(of_pods <= 400_000_000, "{of_pods}");
    // How many each client has is counted, too.
    let of_strangers = taken(CONNECTIONS, Answers::Steered);
    assert!((of_pods..=420_000_000).contains(&of_strangers), "{of_strangers}");
    // And whose their answers are is known to the other worker.
    let of_two_workers = taken(CONNECTIONS, Answers::Announced);
    assert!((of_strangers..=640_000_000).contains(&of_two_workers), "{of_two_workers}");
}
