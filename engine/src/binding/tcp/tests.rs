use super::*;
use proptest::prelude::*;

const ACK: TcpFlags = TcpFlags::ACK;
const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);

fn segment(flags: TcpFlags, sequence: u32, acknowledgement: u32, window: u16) -> Segment {
    Segment { flags, sequence, acknowledgement, window, ..Segment::default() }
}

/// The SYN of the client or the server, which has a window scale or none.
fn syn(half: Half, window: u16, scale: Option<u8>) -> (Half, Segment) {
    let said = match half {
        Half::Original => segment(TcpFlags::SYN, 0, 0, window),
        Half::Reply => segment(TcpFlags::SYN.with(ACK), 4999, 1, window),
    };
    (half, Segment { scale, ..said })
}

/// What a connection is after these segments.
fn after(said: &[(Half, Segment)]) -> Connection {
    let mut connection = Connection::before(&said[0].1);
    said.iter().for_each(|(half, said)| connection.note(*half, said, Profile::Linux));
    connection
}

/// A connection that was opened: the client expects 5000, the server 1; both offer 1000 << 2.
fn open() -> Connection {
    let connection = after(&[
        syn(Half::Original, 1000, Some(2)),
        syn(Half::Reply, 1000, Some(2)),
        (Half::Original, segment(ACK, 1, 5000, 1000)),
        (Half::Reply, segment(ACK, 5000, 1, 1000)),
    ]);
    assert_eq!(connection.state, TcpState::Established);
    connection
}

/// RFC 7323, 2.2: the window of a SYN, and of its answer, is not scaled.
#[test]
fn a_syns_window_is_not_scaled() {
    let mut connection = after(&[
        syn(Half::Original, 65_535, Some(14)),
        syn(Half::Reply, 65_535, Some(14)),
        (Half::Original, segment(ACK, 1, 5000, 4)),
    ]);
    let reset = |sequence| segment(TcpFlags::RST, sequence, 0, 0);
    assert!(connection.takes_reset(Half::Original, &reset(65_535)));
    assert!(!connection.takes_reset(Half::Original, &reset(1 + (4 << 14))));
    for (sequence, acknowledgement) in [(5000, 1), (5100, 101)] {
        connection.note(Half::Reply, &segment(ACK, sequence, acknowledgement, 4), Profile::Linux);
    }
    assert!(connection.takes_reset(Half::Original, &reset(100 + (4 << 14))));
    for beyond in [4 << 14, 500_000_000] {
        assert!(!connection.takes_reset(Half::Original, &reset(101 + beyond)), "{beyond}");
    }
}

/// RFC 7323, 1.3: both sides scale their windows, or neither does.
#[test]
fn a_scale_that_one_side_has_alone_does_not_count() {
    for (client, server, scale) in
        [(Some(14), None, 0), (None, Some(14), 0), (Some(0), Some(14), 0), (Some(14), Some(0), 14)]
    {
        let (open, answer) = (syn(Half::Original, 1000, client), syn(Half::Reply, 1000, server));
        let last = (Half::Original, segment(ACK, 1, 5000, 1000));
        for said in [&[open, answer, last][..], &[open, open, answer, open, answer, last]] {
            let connection = after(said);
            let resets = [(1000 << scale) - 1, 1000 << scale, 1 << 30].map(|beyond| {
                connection.takes_reset(Half::Reply, &segment(TcpFlags::RST, 5000 + beyond, 0, 0))
            });
            assert_eq!(resets, [true, false, false], "{client:?} {server:?}");
        }
    }
}

/// RFC 9293, 3.5, figure 7: both sides may open; their windows are scaled from the first segment on that is no SYN.
#[test]
fn a_simultaneous_open_has_scales_too() {
    let client = [TcpFlags::SYN, TcpFlags::SYN.with(ACK)]
        .map(|flags| Segment { scale: Some(7), ..segment(flags, 0, 5000, 1000) });
    let server = [TcpFlags::SYN, TcpFlags::SYN.with(ACK)]
        .map(|flags| Segment { scale: Some(7), ..segment(flags, 4999, 1, 1000) });
    let mut connection = after(&[
        (Half::Original, client[0]),
        (Half::Reply, server[0]),
        (Half::Original, client[1]),
        (Half::Reply, server[1]),
    ]);
    for window in [1000, 1000 << 7] {
        let [inside, beyond] = [window - 128, window + 128]
            .map(|at| connection.takes_reset(Half::Original, &segment(TcpFlags::RST, 1 + at, 0, 0)));
        assert_eq!((inside, beyond), (true, false), "{window}");
        connection.note(Half::Reply, &segment(ACK, 5000, 1, 1000), Profile::Linux);
    }
}

/// RFC 5961, 5; conntrack's `tcp_in_window`: what the receiver would not take changes nothing, whatever it is.
#[test]
fn what_an_end_would_not_take_changes_nothing() {
    let scaled = |flags, scale| Segment { scale, ..segment(flags, 0x7000_0000, 0x7000_0000, 1000) };
    for (name, half, blind) in [
        ("a FIN beyond the client's window", Half::Reply, segment(FIN, 9001, 1, 1000)),
        ("a FIN before it", Half::Reply, segment(FIN, 4999, 1, 1000)),
        ("a FIN beyond the server's", Half::Original, segment(FIN, 4002, 5000, 1000)),
        ("a FIN that acknowledges what was not sent", Half::Reply, segment(FIN, 5000, 4003, 1000)),
        ("a FIN that acknowledges anything", Half::Reply, segment(FIN, 5000, 0x7000_0000, 1000)),
        (
            "a FIN that acknowledges long ago",
            Half::Reply,
            segment(FIN, 5000, 1u32.wrapping_sub(65_536 << 2), 1000),
        ),
        ("a FIN that acknowledges nothing", Half::Reply, segment(TcpFlags::FIN, 5000, 1, 1000)),
        ("an acknowledgement of what was not sent", Half::Original, segment(ACK, 1, 9002, 1)),
        ("an acknowledgement of the past", Half::Original, segment(ACK, 1, 4999, 1)),
        ("a SYN without a scale", Half::Original, scaled(TcpFlags::SYN, None)),
        ("a SYN's answer", Half::Reply, scaled(TcpFlags::SYN.with(ACK), Some(14))),
    ] {
        let mut connection = open();
        connection.note(half, &blind, Profile::Linux);
        assert_eq!(connection, open(), "{name}");
    }
    for state in [TcpState::FinWait, TcpState::CloseWait, TcpState::LastAck, TcpState::SynReceived] {
        for flags in [ACK, FIN] {
            let mut connection = Connection { state, ..open() };
            connection.note(Half::Original, &segment(flags, 1, 0x7000_0000, 1000), Profile::Linux);
            assert_eq!(connection.state, state, "by a blind acknowledgement");
        }
    }
}

/// RFC 9293, 3.10.7.3: what does not acknowledge the SYN is no answer to it.
#[test]
fn a_blind_answer_opens_nothing() {
    let syn = segment(TcpFlags::SYN, 0, 0, 1000);
    let mut connection = Connection::before(&syn);
    connection.note(Half::Original, &syn, Profile::Linux);
    for (acknowledgement, state) in [(77, TcpState::SynSent), (1, TcpState::SynReceived)] {
        let answer = segment(TcpFlags::SYN.with(ACK), 4999, acknowledgement, 1000);
        connection.note(Half::Reply, &answer, Profile::Linux);
        assert_eq!(connection.state, state);
    }
    assert!(connection.takes_reset(Half::Original, &segment(TcpFlags::RST, 1, 0, 0)));
}

/// RFC 9293, 3.10.7.4: a segment counts where any part of it is in the window; a FIN has a place of its own.
#[test]
fn a_fin_ends_a_direction_where_its_receiver_takes_it() {
    for (name, sequence, length) in [
        ("expected next", 5000, 0),
        ("behind data", 5000, 100),
        ("with data of which a part was there", 4990, 20),
        ("with data that were all there", 4990, 10),
        ("behind a full window", 9000, 0),
    ] {
        let mut connection = open();
        let fin = Segment { length, ..segment(FIN, sequence, 1, 1000) };
        connection.note(Half::Reply, &fin, Profile::Linux);
        assert_eq!(connection.state, TcpState::FinWait, "{name}");
    }
}

/// RFC 5961, 5 and RFC 9293, 3.10.7.4: an acknowledgement of the past is no news, but its FIN is one.
#[test]
fn a_fin_that_comes_late_still_ends_its_direction() {
    let mut connection = open();
    // The server closed, then acknowledged data of the client, which overtook its FIN.
    for (half, said) in [
        (Half::Original, Segment { length: 3000, ..segment(ACK, 1, 5000, 1000) }),
        (Half::Reply, segment(ACK, 5001, 3001, 0)),
        (Half::Reply, segment(FIN, 5000, 1, 1000)),
    ] {
        connection.note(half, &said, Profile::Linux);
    }
    assert_eq!(connection.state, TcpState::FinWait);
    assert_eq!(connection.receivers[1].next, 3001, "what it acknowledges is no news");
}

/// Segments, and the state after each.
type Way = [(Half, Segment, TcpState)];

/// RFC 9293, 3.6: one side closes, or both, one after the other or at once; a FIN may have to be sent again.
#[test]
fn each_way_to_close_ends_in_time_wait() {
    use Half::{Original, Reply};
    use TcpState::{CloseWait, FinWait, LastAck, TimeWait};
    let data = Segment { length: 100, ..segment(ACK, 5000, 2, 1000) };
    let ways: [(&str, &Way); 3] = [
        (
            "half-closed",
            &[
                (Original, segment(FIN, 1, 5000, 1000), FinWait),
                (Reply, segment(ACK, 5000, 2, 1000), CloseWait),
                (Original, segment(FIN, 1, 5000, 1000), CloseWait),
                (Reply, data, CloseWait),
                (Original, segment(ACK, 2, 5100, 1000), CloseWait),
                (Reply, segment(FIN, 5100, 2, 1000), LastAck),
                (Reply, segment(FIN, 5100, 2, 1000), LastAck),
                (Original, segment(ACK, 2, 5101, 1000), TimeWait),
                (Reply, segment(FIN, 5100, 2, 1000), TimeWait),
            ],
        ),
        (
            "one after the other",
            &[
                (Original, segment(FIN, 1, 5000, 1000), FinWait),
                (Reply, segment(FIN, 5000, 2, 1000), LastAck),
                (Original, segment(ACK, 2, 5001, 1000), TimeWait),
            ],
        ),
        (
            "at once",
            &[
                (Original, segment(FIN, 1, 5000, 1000), FinWait),
                (Reply, segment(FIN, 5000, 1, 1000), LastAck),
                (Reply, segment(ACK, 5001, 2, 1000), TimeWait),
                (Original, segment(ACK, 2, 5001, 1000), TimeWait),
            ],
        ),
    ];
    for (name, way) in ways {
        let mut connection = open();
        for (half, said, state) in way {
            connection.note(*half, said, Profile::Linux);
            assert_eq!(connection.state, *state, "{name}: {half:?} {said:?}");
        }
    }
}

/// RFC 7323, 2.3: of a connection that was open before, nobody knows the scale.
#[test]
fn of_a_connection_that_was_open_before_much_is_believed() {
    let mut connection = Connection::before(&segment(ACK, 1, 5000, 1000));
    for acknowledgement in [5000, 5000 + (1000 << 14), 5000 + (2000 << 14)] {
        connection.note(Half::Original, &segment(ACK, 1, acknowledgement, 1000), Profile::Linux);
        assert_eq!(connection.receivers[0].next, acknowledgement);
    }
}

/// What a receiver does, and what becomes of what it says.
#[derive(Debug, Clone)]
enum Deed {
    /// The other side sends so much of what it may, and a byte or a FIN beyond it.
    Send(u32, bool),
    /// All that was sent arrives, and is acknowledged with a window; the word gets as far as the middlebox, or to the sender.
    Acknowledge(u16, bool),
    /// An acknowledgement of before comes late.
    Late(prop::sample::Index),
}

fn deed() -> impl Strategy<Value = Deed> {
    let window = prop_oneof![Just(0), Just(1), Just(u16::MAX), any::<u16>(), 0..100u16];
    prop_oneof![
        3 => (0..1u32 << 20, any::<bool>()).prop_map(|(bytes, beyond)| Deed::Send(bytes, beyond)),
        3 => (window, any::<bool>()).prop_map(|(window, arrives)| Deed::Acknowledge(window, arrives)),
        1 => any::<prop::sample::Index>().prop_map(Deed::Late),
    ]
}

proptest! {
    /// No acknowledgement of an honest receiver is doubted, whatever it does to its window: only then may one be.
    #[test]
    fn an_honest_receiver_is_always_believed(
        first in any::<u32>(), scale in 0u8..15, deeds in prop::collection::vec(deed(), 1..100),
    ) {
        let mut receiver = Receiver { scale, ..Receiver::default() };
        prop_assert!(receiver.hear(first, 500));
        // What the sender has sent, and how far it may send: as it was told, for a word that came through.
        let (mut sent, mut edge) = (0u64, 500u64 << scale);
        let mut said = vec![(first, 500)];
        let mut acknowledged = 0;
        for deed in deeds {
            match deed {
                Deed::Send(bytes, beyond) => {
                    sent += u64::from(bytes).min(edge.saturating_sub(sent));
                    sent += u64::from(beyond && sent == edge);
                }
                Deed::Acknowledge(window, arrives) => {
                    acknowledged = sent;
                    let word = (first.wrapping_add(sent as u32), window);
                    said.push(word);
                    prop_assert!(receiver.hear(word.0, word.1), "{sent} {window}");
                    prop_assert_eq!(receiver.next, word.0);
                    if arrives {
                        edge = sent + (u64::from(window) << scale);
                    }
                }
                Deed::Late(index) => {
                    let (next, window) = *index.get(&said);
                    let is_current = next == first.wrapping_add(acknowledged as u32);
                    prop_assert_eq!(receiver.hear(next, window), is_current);
                }
            }
        }
    }
}
