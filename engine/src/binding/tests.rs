//! A worker's bindings against a plain list; TCP's states; redirects.

mod states;

use super::*;
use crate::wire::TcpFlags;
use proptest::prelude::*;
use std::hash::BuildHasher as _;
use std::time::Duration;

/// What a binding of UDP is in a plain list.
#[derive(Debug, Clone, Copy)]
struct Plain {
    halves: [HalfKey; 2],
    begun: Instant,
    answered: bool,
    is_stream: bool,
    expires: Instant,
}

pub(crate) fn opening(original: HalfKey, reply: HalfKey) -> Opening {
    Opening {
        original,
        reply,
        answers: Answers::Steered,
        profile: Profile::Linux,
        mapping: None,
        served: None,
    }
}

/// What the tables beside the halves make of a number: of clients, and of mappings' remotes.
pub(crate) fn hashes_of(bindings: &Bindings, number: u64) -> [u64; 2] {
    [&bindings.clients.hasher(), &bindings.mappings.remotes.hasher()].map(|keyed| keyed.hash_one(number))
}

/// A segment without data, of ends that both begin with sequence number 0.
fn with(flags: TcpFlags) -> Segment {
    let (sequence, acknowledgement) = (u32::from(!flags.syn()), u32::from(flags.ack()));
    Segment { flags, sequence, acknowledgement, window: 500, ..Segment::default() }
}

/// Makes a binding and has it follow its first packet.
fn bind(
    bindings: &mut Bindings,
    original: HalfKey,
    reply: HalfKey,
    flags: TcpFlags,
    now: Instant,
) -> Result<BindingRef, Refused> {
    let made = bindings.insert(&opening(original, reply), &with(flags), now)?;
    bindings.follow(&original, &with(flags), now).unwrap();
    Ok(made)
}

#[derive(Debug, Clone)]
enum Deed {
    Insert(u32, u32),
    Follow(u32),
    Pass(u64),
    Sweep(usize),
    EndAll(u32),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (0u32..6, 0u32..6).prop_map(|(original, reply)| Deed::Insert(original, reply)),
        5 => (0u32..6).prop_map(Deed::Follow),
        2 => prop::sample::select(vec![1u64, 2, 3, 29, 30, 31, 119, 120, 500]).prop_map(Deed::Pass),
        1 => (0usize..5).prop_map(Deed::Sweep),
        1 => (0u32..6).prop_map(Deed::EndAll),
    ]
}

proptest! {
    #[test]
    fn bindings_are_a_plain_list_with_timeouts(deeds in prop::collection::vec(deed(), 1..80)) {
        let (mut bindings, mut plain, mut now) = (Bindings::new(3, 100, [1, 2]).unwrap(), Vec::<Plain>::new(), Instant::ZERO);
        let none = Segment::default();
        for deed in deeds {
            plain.retain(|it| it.expires > now);
            match deed {
                Deed::Insert(original, reply) => {
                    let halves = [key(original, 9, 17), key(reply, 9, 17)];
                    let taken = original == reply
                        || plain.iter().any(|it| it.halves.iter().any(|half| halves.contains(half)));
                    match bind(&mut bindings, halves[0], halves[1], TcpFlags::default(), now) {
                        Ok(_) => {
                            prop_assert!(!taken);
                            let (answered, is_stream) = (false, false);
                            let expires = now + Duration::from_secs(30);
                            plain.push(Plain { halves, begun: now, answered, is_stream, expires });
                        }
                        Err(Refused::TupleTaken) => prop_assert!(taken),
                        Err(Refused::Quota) => prop_assert!(false, "nobody has a hundred"),
                    // What has expired fills the table until it is swept.
                        Err(Refused::Full) => prop_assert!(!taken && bindings.len() == 3),
                    }
                }
                Deed::Follow(number) => {
                    let asked = key(number, 9, 17);
                    let found = bindings.follow(&asked, &none, now).unwrap().map(|(_, half, tuple)| (half, tuple));
                    let model = plain.iter_mut().find(|it| it.halves.contains(&asked)).map(|it| {
                        let half = if it.halves[0] == asked { Half::Original } else { Half::Reply };
                        it.is_stream |= it.answered && now > it.begun + Duration::from_secs(2);
                        it.answered |= half == Half::Reply;
                        it.expires = now + Duration::from_secs(if it.is_stream { 120 } else { 30 });
                        (half, it.halves[1 - half as usize].tuple.reversed())
                    });
                    prop_assert_eq!(found, model);
                }
                Deed::Pass(seconds) => now = now + Duration::from_secs(seconds),
                Deed::Sweep(places) => bindings.sweep(places, now),
                Deed::EndAll(number) => {
                    bindings.end_where(|binding| binding.original.tuple.source == number);
                    plain.retain(|it| it.halves[0].tuple.source != number);
                }
            }
            let live = plain.iter().filter(|it| it.expires > now).count();
            prop_assert!(bindings.len() >= live && bindings.len() <= 3);
        }
        bindings.sweep(3, now);
        prop_assert_eq!(bindings.len(), plain.iter().filter(|it| it.expires > now).count());
    }
}

fn key(source: u32, destination: u32, protocol: u8) -> HalfKey {
    let tuple = Tuple { source, destination, source_port: 1000, destination_port: 80, protocol };
    HalfKey { node: NodeId(0), tuple }
}

fn masqueraded(protocol: u8) -> (HalfKey, HalfKey) {
    let original = key(1, 2, protocol);
    let mut reply = HalfKey { tuple: original.tuple.reversed(), ..original };
    reply.tuple.destination = 9;
    (original, reply)
}

/// RFC 3022, 2: what is translated on the way out is translated back on the way in.
#[test]
fn out_and_back_through_a_binding_is_the_identity() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
    bind(&mut bindings, original, reply, TcpFlags::default(), Instant::ZERO).unwrap();
    let (_, half, out) = bindings.follow(&original, &Segment::default(), Instant::ZERO).unwrap().unwrap();
    assert_eq!((half, out), (Half::Original, reply.tuple.reversed()));
    let back = HalfKey { tuple: out.reversed(), ..original };
    let (_, half, home) = bindings.follow(&back, &Segment::default(), Instant::ZERO).unwrap().unwrap();
    assert_eq!((half, home), (Half::Reply, original.tuple.reversed()));
}

/// RFC 3022, 2.2: a reply must name one session only.
#[test]
fn a_taken_reply_tuple_is_refused_and_changes_nothing() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
    bind(&mut bindings, original, reply, TcpFlags::default(), Instant::ZERO).unwrap();
    let other = key(7, 2, 17);
    let refused = bind(&mut bindings, other, reply, TcpFlags::default(), Instant::ZERO);
    assert_eq!((refused, bindings.len()), (Err(Refused::TupleTaken), 1));
    assert!(bindings.is_free(&other, Instant::ZERO));
}

#[test]
fn an_ended_binding_renews_no_cached_flow() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(1, 100, [1, 2]).unwrap();
    let first = bind(&mut bindings, original, reply, TcpFlags::default(), Instant::ZERO).unwrap();
    assert!(bindings.renew(first.index, first.generation, Half::Original, true, Instant::ZERO));
    let refused = bind(&mut bindings, key(5, 6, 17), key(6, 5, 17), TcpFlags::default(), Instant::ZERO);
    assert_eq!(refused, Err(Refused::Full));
    let later = Instant::ZERO + Duration::from_secs(31);
    bindings.sweep(10, later);
    assert!(bindings.is_empty());
    let second = bind(&mut bindings, original, reply, TcpFlags::default(), later).unwrap();
    assert_eq!(second.index, first.index);
    assert!(!bindings.renew(first.index, first.generation, Half::Original, true, later));
}

/// RFC 9293, 3.6.1: the same ports may be used again.
#[test]
fn a_connection_opened_anew_is_established_although_the_cache_knows_it() {
    let (original, reply) = masqueraded(6);
    let mut bindings = Bindings::new(1, 100, [1, 2]).unwrap();
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    let first = bind(&mut bindings, original, reply, ack, Instant::ZERO).unwrap();
    for (key, flags) in [(reply, ack), (reply, TcpFlags::RST), (original, syn), (reply, syn.with(ack))] {
        bindings.follow(&key, &with(flags), Instant::ZERO).unwrap().unwrap();
    }
    assert!(!bindings.renew(first.index, first.generation, Half::Original, true, Instant::ZERO));
    bindings.follow(&original, &with(ack), Instant::ZERO).unwrap().unwrap();
    assert!(bindings.renew(first.index, first.generation, Half::Original, true, Instant::ZERO));
    assert_eq!(bindings.iter(NodeId(0)).next().unwrap().tcp_state(), TcpState::Established);
}

/// RFC 6888, REQ-4: a limit for each subscriber.
#[test]
fn a_client_at_its_quota_takes_nothing_from_others() {
    let mut bindings = Bindings::new(10, 2, [1, 2]).unwrap();
    let try_one = |bindings: &mut Bindings, client: u32, to: u32| {
        bindings.insert(
            &opening(key(client, to, 17), key(to + 50, client + 100, 17)),
            &Segment::default(),
            Instant::ZERO,
        )
    };
    let first = [1, 2, 3].map(|to| try_one(&mut bindings, 7, to).err());
    assert_eq!(first, [None, None, Some(Refused::Quota)]);
    assert!(try_one(&mut bindings, 8, 1).is_ok());
    bindings.end_where(|binding| binding.original.tuple.destination == 2);
    assert!(try_one(&mut bindings, 7, 3).is_ok(), "one has ended");
}

/// RFC 4787, REQ-1 and REQ-8: what a mapping is, and how long.
#[test]
fn a_mapping_lives_as_long_as_a_binding_of_it() {
    let mut bindings = Bindings::new(10, 9, [1, 2]).unwrap();
    let (first, reply) = masqueraded(17);
    let second = HalfKey { tuple: Tuple { destination: 3, ..first.tuple }, ..first };
    let second_reply = HalfKey { tuple: Tuple { source: 3, ..reply.tuple }, ..reply };
    let (inside, outside) = (inside_key(&first, 9), outside_key(&reply));
    assert_eq!((inside, outside), (inside_key(&second, 9), outside_key(&second_reply)));
    let mapping = bindings.map(inside, outside, Answers::Granted(1), Instant::ZERO).unwrap();
    assert_eq!(bindings.map(inside, key(1, 1, 1), Answers::Steered, Instant::ZERO), None, "it has one");
    for (original, reply) in [(first, reply), (second, second_reply)] {
        let opening = Opening { mapping: Some(mapping), profile: Profile::Rfc, ..opening(original, reply) };
        bindings.insert(&opening, &Segment::default(), Instant::ZERO).unwrap();
    }
    let port = reply.tuple.destination_port;
    assert_eq!(bindings.mapping_from(&inside), Some((mapping, port)));
    let anybody = HalfKey { tuple: Tuple { source: 77, source_port: 5, ..reply.tuple }, ..reply };
    let (found, original) = bindings.mapping_to(&anybody).unwrap();
    assert_eq!(
        (found, original.tuple.reversed().source, original.tuple.source),
        (mapping, 77, first.tuple.source)
    );
    assert_eq!([2, 3, 77].map(|remote| bindings.permits(mapping, remote)), [true, true, false]);
    bindings.end_where(|binding| binding.original == first);
    assert_eq!([2, 3].map(|remote| bindings.permits(mapping, remote)), [false, true]);
    assert!(bindings.news.is_empty());
    bindings.end_where(|_| true);
    assert_eq!((bindings.mapping_from(&inside), bindings.is_empty()), (None, true));
    assert_eq!(bindings.news, [News::Ended(outside, Answers::Granted(1))], "the port goes home");
}

#[test]
fn a_redirect_takes_its_tuple_until_its_holder_says_that_the_binding_ended() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
    assert!(bindings.elsewhere(&reply).is_none());
    assert!(bindings.redirect(reply, 3, Instant::ZERO));
    let (found, worker) = bindings.elsewhere(&reply).unwrap();
    assert_eq!((worker, bindings.is_live(found.index, found.generation)), (3, true));
    let refused = bind(&mut bindings, original, reply, TcpFlags::default(), Instant::ZERO);
    assert_eq!(refused, Err(Refused::TupleTaken));
    bindings.end_redirect(&reply, 2);
    assert!(bindings.elsewhere(&reply).is_some(), "another worker's word");
    bindings.end_redirect(&reply, 3);
    assert!(bindings.elsewhere(&reply).is_none() && bindings.is_empty());
    assert!(!bindings.is_live(found.index, found.generation));
    bind(&mut bindings, original, reply, TcpFlags::default(), Instant::ZERO).unwrap();
    assert!(!bindings.redirect(reply, 3, Instant::ZERO), "a binding has the tuple");
}

#[test]
fn only_what_others_wait_for_is_news() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
    for (answers, tell_ends, news) in [
        (Answers::Steered, false, vec![]),
        (Answers::Steered, true, vec![News::Ended(reply, Answers::Steered)]),
        (Answers::Granted(1), false, vec![News::Ended(reply, Answers::Granted(1))]),
        (Answers::Announced, false, vec![News::Begun(reply), News::Ended(reply, Answers::Announced)]),
    ] {
        bindings.tell_ends = tell_ends;
        bindings
            .insert(&Opening { answers, ..opening(original, reply) }, &Segment::default(), Instant::ZERO)
            .unwrap();
        bindings.end_where(|_| true);
        assert_eq!(std::mem::take(&mut bindings.news), news, "{answers:?}");
    }
}

/// New flows that come as fast as old ones expire must not find a table full of those that have expired.
#[test]
fn a_steady_stream_of_new_flows_needs_little_more_room_than_live_ones() {
    let (live, batch) = (3_000u32, 100);
    let mut bindings = Bindings::new(live as usize * 2, u32::MAX, [5, 7]).unwrap();
    for round in 0..10 * live / batch {
        let now = Instant::from_nanos(u64::from(round) * 30_000_000_000 * u64::from(batch) / u64::from(live));
        for flow in round * batch..(round + 1) * batch {
            let made =
                bind(&mut bindings, key(flow, 1, 17), key(u32::MAX, flow, 17), TcpFlags::default(), now);
            assert!(made.is_ok(), "round {round}: {made:?}");
        }
        bindings.sweep(0, now);
    }
    assert!(bindings.len() <= (live * 3 / 2) as usize, "{} of {live}", bindings.len());
}

/// Halves whose hashes collide under a secret that somebody has found out are spread under any other.
#[test]
fn halves_that_collide_under_one_secret_do_not_under_another() {
    const BUCKETS: u64 = 512;
    let mut random = crate::random::Random::new(1);
    let mut secret = || [random.next_u64(), random.next_u64()];
    let known = secret();
    let half =
        |source| HalfKey { node: NodeId(0), tuple: Tuple { source, destination: 9, ..Tuple::default() } };
    let bucket = |key: &HalfKey, secret| u64::from(key.hash(secret) as u32) % BUCKETS;
    let colliding: Vec<HalfKey> = (0..1 << 20).map(half).filter(|key| bucket(key, known) == 3).collect();
    assert!(colliding.len() > 1500, "2,048 are expected: {}", colliding.len());
    for other in (0..100).map(|_| secret()) {
        let mut buckets = [0u32; BUCKETS as usize];
        colliding.iter().for_each(|key| buckets[bucket(key, other) as usize] += 1);
        assert!(buckets.iter().max() <= Some(&20), "{other:x?}: {:?}", buckets.iter().max());
    }
}
