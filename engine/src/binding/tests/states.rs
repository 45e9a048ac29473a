//! TCP's states and timeouts, those of UDP and of profile `rfc`, through the table.

use super::*;
use Half::{Original, Reply};

/// A way through conntrack's states: who sends what, the state afterwards, and the seconds it may last.
type Way = &'static [(Half, TcpFlags, TcpState, u64)];

const SYN: TcpFlags = TcpFlags::SYN;

const ACK: TcpFlags = TcpFlags::ACK;

const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);

const RST: TcpFlags = TcpFlags::RST.with(TcpFlags::ACK);

const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);

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
