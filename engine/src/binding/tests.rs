//! A worker's bindings against a plain list; TCP's states; redirects.

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

/// A way through conntrack's states: who sends what, the state afterwards, and the seconds it may last.
type Way = &'static [(Half, TcpFlags, TcpState, u64)];

const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
const RST: TcpFlags = TcpFlags::RST.with(TcpFlags::ACK);
const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);
use Half::{Original, Reply};

/// `tcp_conntracks` and `tcp_timeouts` of Linux's `nf_conntrack_proto_tcp.c`.
const WAYS: [(&str, Way); 8] = [
    (
        "open, close by the client, open anew from the same port (RFC 5382, REQ-2)",
        &[
            (Original, SYN, TcpState::SynSent, 120),
            (Original, SYN, TcpState::SynSent, 120),
            (Reply, SYN_ACK, TcpState::SynReceived, 60),
            (Reply, SYN_ACK, TcpState::SynReceived, 60),
            (Original, ACK, TcpState::Established, 432_000),
            (Reply, ACK, TcpState::Established, 432_000),
            (Original, FIN, TcpState::FinWait, 120),
            (Reply, ACK, TcpState::CloseWait, 60),
            (Reply, FIN, TcpState::LastAck, 30),
            (Original, ACK, TcpState::TimeWait, 120),
            (Original, SYN, TcpState::SynSent, 120),
        ],
    ),
    (
        "half-closed by the server, data go on the other way (RFC 9293, 3.6)",
        &[
            (Original, SYN, TcpState::SynSent, 120),
            (Reply, SYN_ACK, TcpState::SynReceived, 60),
            (Original, ACK, TcpState::Established, 432_000),
            (Reply, FIN, TcpState::FinWait, 120),
            (Original, ACK, TcpState::CloseWait, 60),
            (Original, ACK, TcpState::CloseWait, 60),
            (Reply, ACK, TcpState::CloseWait, 60),
            (Original, FIN, TcpState::LastAck, 30),
            (Original, FIN, TcpState::LastAck, 30),
            (Reply, ACK, TcpState::TimeWait, 120),
        ],
    ),
    (
        "simultaneous open (RFC 9293, figure 8; RFC 5382, REQ-2)",
        &[
            (Original, SYN, TcpState::SynSent, 120),
            (Reply, SYN, TcpState::SynSentBoth, 120),
            (Original, SYN_ACK, TcpState::SynReceived, 60),
            (Reply, SYN_ACK, TcpState::SynReceived, 60),
            (Original, ACK, TcpState::Established, 432_000),
        ],
    ),
    (
        "simultaneous close (RFC 9293, figure 14)",
        &[
            (Original, ACK, TcpState::Established, 300),
            (Original, FIN, TcpState::FinWait, 120),
            (Reply, FIN, TcpState::LastAck, 30),
            (Original, ACK, TcpState::TimeWait, 120),
            (Reply, ACK, TcpState::TimeWait, 120),
        ],
    ),
    (
        "a SYN into an open connection changes nothing (RFC 5961, 4)",
        &[
            (Original, ACK, TcpState::Established, 300),
            (Reply, ACK, TcpState::Established, 300),
            (Reply, ACK, TcpState::Established, 432_000),
            (Reply, SYN, TcpState::Established, 432_000),
            (Original, ACK, TcpState::Established, 432_000),
            (Original, SYN, TcpState::Established, 432_000),
            (Original, ACK, TcpState::Established, 432_000),
            (Reply, SYN_ACK, TcpState::Established, 432_000),
        ],
    ),
    (
        "picked up in the middle: the other side is believed with its second segment",
        &[
            (Original, ACK, TcpState::Established, 300),
            (Original, ACK, TcpState::Established, 300),
            (Reply, ACK, TcpState::Established, 300),
            (Original, ACK, TcpState::Established, 432_000),
        ],
    ),
    ("refused", &[(Original, SYN, TcpState::SynSent, 120), (Reply, RST, TcpState::Closed, 0)]),
    (
        "given up once it was answered, and asked again from the same port",
        &[
            (Original, SYN, TcpState::SynSent, 120),
            (Reply, SYN_ACK, TcpState::SynReceived, 60),
            (Original, RST, TcpState::Closed, 10),
            (Original, SYN, TcpState::SynSent, 120),
            (Reply, RST, TcpState::Closed, 0),
        ],
    ),
];

fn seconds_left(binding: &Binding, now: Instant) -> u64 {
    binding.ends().saturating_duration_since(now).as_secs()
}

#[test]
fn tcp_goes_through_conntracks_states_with_its_timeouts() {
    for (name, way) in WAYS {
        let (original, reply) = masqueraded(6);
        let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
        bindings.insert(&opening(original, reply), &with(way[0].1), Instant::ZERO).unwrap();
        for (number, &(half, flags, state, seconds)) in way.iter().enumerate() {
            let key = if half == Original { original } else { reply };
            bindings.follow(&key, &with(flags), Instant::ZERO).unwrap().unwrap();
            let binding = bindings.iter(NodeId(0)).next().unwrap();
            assert_eq!(
                (binding.tcp_state(), seconds_left(binding, Instant::ZERO)),
                (state, seconds),
                "{name}: step {number}"
            );
        }
    }
}

fn at(milliseconds: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(milliseconds)
}

/// `tcp_timeout_unacknowledged` of conntrack's `tcp_in_window`, and its `last_win`: an open connection lives for days only where
/// nobody waits for the other side, whether the cache knows it or not.
#[test]
fn an_open_connection_lives_long_only_while_nobody_waits() {
    use Half::{Original, Reply};
    let data = |sequence, length, acknowledgement, window| Segment {
        flags: ACK,
        sequence,
        length,
        acknowledgement,
        window,
        scale: None,
    };
    let talk: [(&str, Half, Segment, u64); 12] = [
        ("the server's window is shut since its SYN", Original, data(1, 0, 1, 500), 300),
        ("it opens it", Reply, data(1, 0, 1, 500), 432_000),
        ("the client asks", Original, data(1, 100, 1, 500), 300),
        ("and goes on", Original, data(101, 50, 1, 500), 300),
        ("half of it is acknowledged", Reply, data(1, 0, 101, 500), 300),
        ("the server answers", Reply, data(1, 200, 151, 500), 300),
        ("the client acknowledges", Original, data(151, 0, 201, 500), 432_000),
        ("it asks whether the server is there: RFC 9293, 3.8.4", Original, data(150, 0, 201, 500), 432_000),
        ("nobody can have sent that: RFC 5961, 5", Original, data(70_000, 10, 201, 500), 432_000),
        ("the server fills the client's window", Reply, data(201, 500, 151, 500), 300),
        ("which is acknowledged, and shut", Original, data(151, 0, 701, 0), 300),
        ("and opened", Original, data(151, 0, 701, 500), 432_000),
    ];
    for by_the_cache in [false, true] {
        let (original, reply) = masqueraded(6);
        let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
        let made = bind(&mut bindings, original, reply, SYN, Instant::ZERO).unwrap();
        let answer = Segment { window: 0, ..with(SYN_ACK) };
        bindings.follow(&reply, &answer, Instant::ZERO).unwrap().unwrap();
        for (number, (what, half, said, seconds)) in talk.iter().enumerate() {
            let now = at(1000 * number as u64);
            if by_the_cache && number > 0 {
                assert!(bindings.renew(made.index, made.generation, *half, true, now));
                let end = said.sequence + said.length;
                bindings.hear(made.index, *half, end, said.acknowledgement, said.window);
            } else {
                let key = if *half == Original { original } else { reply };
                bindings.follow(&key, said, now).unwrap().unwrap();
            }
            let binding = bindings.iter(NodeId(0)).next().unwrap();
            assert_eq!(seconds_left(binding, now), *seconds, "{what}");
        }
        // It lives as long as is said: who is swept, asked for, or renewed late.
        let last = 1000 * (talk.len() as u64 - 1);
        bindings.sweep(1, at(last + 431_999_999));
        assert!(bindings.renew(made.index, made.generation, Reply, true, at(last + 431_999_999)));
        bindings.hear(made.index, Reply, 702, 151, 500);
        assert!(bindings.find(&original, at(last + 431_999_999 + 299_999)).is_some());
        assert!(!bindings.renew(made.index, made.generation, Reply, true, at(last + 431_999_999 + 300_000)));
        bindings.sweep(1, at(last + 431_999_999 + 300_000));
        assert!(bindings.is_empty());
    }
}

/// conntrack's `tcp_packet`: who opens again and again without an answer keeps the port no longer for it.
#[test]
fn a_syn_sent_again_renews_nothing() {
    let (original, reply) = masqueraded(6);
    for (profile, left) in [(Profile::Linux, 57), (Profile::Rfc, 240)] {
        let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
        let opening = Opening { profile, ..opening(original, reply) };
        bindings.insert(&opening, &with(SYN), Instant::ZERO).unwrap();
        for seconds in [0, 1, 3, 7, 15, 31, 63] {
            bindings.follow(&original, &with(SYN), at(1000 * seconds)).unwrap().unwrap();
        }
        assert_eq!(seconds_left(bindings.iter(NodeId(0)).next().unwrap(), at(63_000)), left);
    }
}

/// What nothing but a reset answers is over (`nf_ct_kill_acct` in conntrack's `tcp_packet`): its port is free for others.
#[test]
fn a_refused_connection_takes_no_place() {
    let (original, reply) = masqueraded(6);
    for (profile, is_over) in [(Profile::Linux, true), (Profile::Rfc, false)] {
        let mut bindings = Bindings::new(1, 1, [1, 2]).unwrap();
        let opening = Opening { profile, ..opening(original, reply) };
        bindings.insert(&opening, &with(SYN), Instant::ZERO).unwrap();
        let reset = bindings.follow(&reply, &with(RST), Instant::ZERO).unwrap();
        assert_eq!(reset.unwrap().2, original.tuple.reversed(), "it is translated itself");
        assert_eq!(bindings.is_free(&reply, Instant::ZERO), is_over);
        assert_eq!(bindings.is_empty(), is_over);
    }
}

/// What has the same tuple the other way about, a connection from outside, is nobody's to end.
#[test]
fn only_the_port_of_a_connection_that_went_out_is_given_up() {
    let (inside, outside) = masqueraded(6);
    for (original, reply, is_given_up) in [(inside, outside, true), (outside, inside, false)] {
        let mut bindings = Bindings::new(4, 4, [1, 2]).unwrap();
        bind(&mut bindings, original, reply, TcpFlags::SYN, Instant::ZERO).unwrap();
        let said = [
            (reply, TcpFlags::SYN.with(TcpFlags::ACK)),
            (original, TcpFlags::ACK),
            (reply, TcpFlags::ACK),
            (original, TcpFlags::RST),
        ];
        for (half, flags) in said {
            bindings.follow(&half, &with(flags), Instant::ZERO).unwrap();
        }
        assert_eq!(bindings.give_up(&outside, 1000), is_given_up);
        assert_eq!(bindings.len(), usize::from(!is_given_up));
    }
}

/// conntrack's `nf_conntrack_udp_packet`: a question and its answer are no stream. By the cache or not.
#[test]
fn udp_that_goes_both_ways_is_a_stream_after_two_seconds() {
    use Half::{Original, Reply};
    let talks: [&[(u64, Half, u64, Traffic)]; 4] = [
        &[(0, Original, 30, Traffic::Unreplied), (9_000, Original, 30, Traffic::Unreplied)],
        &[
            (0, Original, 30, Traffic::Unreplied),
            (5, Reply, 30, Traffic::Replied),
            (2_000, Original, 30, Traffic::Replied),
            (2_001, Reply, 120, Traffic::Assured),
            (2_001, Original, 120, Traffic::Assured),
            (100_000, Original, 120, Traffic::Assured),
        ],
        &[
            (0, Original, 30, Traffic::Unreplied),
            (3_000, Reply, 30, Traffic::Replied),
            (3_001, Reply, 120, Traffic::Assured),
        ],
        &[(0, Original, 30, Traffic::Unreplied), (1, Reply, 30, Traffic::Replied)],
    ];
    for (protocol, by_the_cache) in [(17, false), (17, true), (1, false), (1, true)] {
        for talk in talks {
            let (original, reply) = masqueraded(protocol);
            let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
            let made = bind(&mut bindings, original, reply, TcpFlags::default(), Instant::ZERO).unwrap();
            for &(milliseconds, half, seconds, traffic) in talk {
                let now = at(milliseconds);
                let key = if half == Original { original } else { reply };
                if by_the_cache {
                    let is_live = bindings.renew(made.index, made.generation, half, false, now);
                    assert_eq!(is_live, bindings.find(&key, now).is_some());
                } else {
                    let _ = bindings.follow(&key, &Segment::default(), now).unwrap();
                }
                // ICMP has answers, but no streams.
                let expected = match protocol {
                    17 => Some((seconds, traffic)),
                    _ if milliseconds > 30_000 + 9_000 => None,
                    _ => Some((30, if traffic == Traffic::Assured { Traffic::Replied } else { traffic })),
                };
                let found = bindings.iter(NodeId(0)).next().map(|it| (seconds_left(it, now), it.traffic));
                assert_eq!(found, expected, "{protocol} at {milliseconds}");
            }
        }
    }
}

/// RFC 5382, REQ-5; RFC 4787, REQ-5; RFC 5508, REQ-2; RFC 7857, 2.2.
#[test]
fn profile_rfc_has_the_rfcs_timeouts() {
    let rfc = |protocol| {
        let (original, reply) = masqueraded(protocol);
        (original, reply, Opening { profile: Profile::Rfc, ..opening(original, reply) })
    };
    for (protocol, first, seconds) in [(6, SYN, 240), (6, ACK, 7_440), (17, ACK, 300), (1, ACK, 60)] {
        let (original, _, opening) = rfc(protocol);
        let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
        bindings.insert(&opening, &with(first), Instant::ZERO).unwrap();
        bindings.follow(&original, &with(first), Instant::ZERO).unwrap();
        assert_eq!(
            seconds_left(bindings.iter(NodeId(0)).next().unwrap(), Instant::ZERO),
            seconds,
            "{protocol} {first}"
        );
    }
    // A reset that ended nothing is forgotten when data follow (RFC 7857, 2.2).
    let (original, reply, opening) = rfc(6);
    let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
    bindings.insert(&opening, &with(ACK), Instant::ZERO).unwrap();
    for (key, flags, state) in
        [(reply, TcpFlags::RST, TcpState::Closed), (original, ACK, TcpState::Established)]
    {
        bindings.follow(&key, &with(flags), Instant::ZERO).unwrap().unwrap();
        assert_eq!(bindings.iter(NodeId(0)).next().unwrap().tcp_state(), state);
    }
}

/// RFC 5961, 3.2, as far as a middlebox sees it; RFC 9293, 3.10.7.3 for the answer to a SYN.
#[test]
fn a_reset_ends_a_binding_only_where_its_receiver_would_take_it() {
    let (original, reply) = masqueraded(6);
    let rst = |sequence: u32, acknowledgement: u32| Segment {
        flags: TcpFlags::RST.with(ACK),
        sequence,
        acknowledgement,
        ..Segment::default()
    };
    let says = |flags, acknowledgement, scale| Segment {
        flags,
        acknowledgement,
        window: 1000,
        scale,
        ..Segment::default()
    };
    let open = |bindings: &mut Bindings| {
        let syn = Segment { sequence: u32::MAX, ..says(SYN, 0, Some(2)) };
        bindings.insert(&opening(original, reply), &syn, Instant::ZERO).unwrap();
        bindings.follow(&original, &syn, Instant::ZERO).unwrap();
    };
    // Whether it passes, and whether it ends the binding: what is challenged (RFC 5961, 3.2) does not.
    for (name, opened, half, reset, passes, ends) in [
        ("answers the SYN", false, Reply, rst(0, 0), true, true),
        ("answers another SYN", false, Reply, rst(0, 1), false, false),
        ("answers no SYN", false, Reply, Segment { flags: TcpFlags::RST, ..rst(0, 0) }, false, false),
        ("what the client expects next", true, Reply, rst(5000, 0), true, true),
        ("the last of the client's window, which it scaled", true, Reply, rst(8999, 0), true, false),
        ("beyond it", true, Reply, rst(9000, 0), false, false),
        ("before it", true, Reply, rst(4999, 0), false, false),
        ("what the server expects next", true, Original, rst(0, 0), true, true),
        ("beyond the server's window, whose scale is 0", true, Original, rst(1000, 0), false, false),
    ] {
        let mut bindings = Bindings::new(4, 100, [1, 2]).unwrap();
        open(&mut bindings);
        if opened {
            for (key, segment) in [(reply, says(SYN_ACK, 0, Some(0))), (original, says(ACK, 4000, None))] {
                bindings.follow(&key, &segment, Instant::ZERO).unwrap();
            }
            // By the cache: it notes what is acknowledged.
            let (found, ..) = bindings.find(&original, Instant::ZERO).unwrap();
            bindings.hear(found.index, Original, 0, 5000, 1000);
        }
        let before = bindings.iter(NodeId(0)).next().unwrap().tcp_state();
        let key = if half == Original { original } else { reply };
        let followed = bindings.follow(&key, &reset, Instant::ZERO);
        let after = bindings.iter(NodeId(0)).next().unwrap().tcp_state();
        let expected = if ends { TcpState::Closed } else { before };
        assert_eq!((followed.is_ok(), after), (passes, expected), "{name}");
    }
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
