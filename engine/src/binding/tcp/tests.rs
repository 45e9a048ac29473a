use super::*;
use proptest::prelude::*;

const ACK: TcpFlags = TcpFlags::ACK;
const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);

fn segment(flags: TcpFlags, sequence: u32, acknowledgement: u32, window: u16) -> Segment {
    Segment { flags, sequence, acknowledgement, window, ..Segment::default() }
}

/// A connection that was opened: the client expects 5000, the server 1; both offer 1000 << 2.
fn open() -> Connection {
    let syn = Segment { scale: Some(2), ..segment(TcpFlags::SYN, 0, 0, 1000) };
    let mut connection = Connection::before(&syn);
    let syn_ack = Segment { scale: Some(2), ..segment(TcpFlags::SYN.with(ACK), 4999, 1, 1000) };
    for (half, said) in
        [(Half::Original, syn), (Half::Reply, syn_ack), (Half::Original, segment(ACK, 1, 5000, 1000))]
    {
        connection.note(half, &said, Profile::Linux);
    }
    assert_eq!(connection.state, TcpState::Established);
    connection
}

/// RFC 5961, 5; conntrack's `tcp_in_window`: what the receiver would not take changes nothing, whatever it is.
#[test]
fn what_an_end_would_not_take_changes_nothing() {
    let scaled = |flags, scale| Segment { scale, ..segment(flags, 0x7000_0000, 0x7000_0000, 1000) };
    for (name, half, blind) in [
        ("a FIN beyond the client's window", Half::Reply, segment(FIN, 9001, 1, 1000)),
        ("a FIN before it", Half::Reply, segment(FIN, 4999, 1, 1000)),
        ("a FIN beyond the server's", Half::Original, segment(FIN, 4002, 5000, 1000)),
        ("an acknowledgement of what was not sent", Half::Original, segment(ACK, 1, 9002, 1)),
        ("an acknowledgement of the past", Half::Original, segment(ACK, 1, 4999, 1)),
        ("a SYN without a scale", Half::Original, scaled(TcpFlags::SYN, None)),
        ("a SYN's answer", Half::Reply, scaled(TcpFlags::SYN.with(ACK), Some(14))),
    ] {
        let mut connection = open();
        connection.note(half, &blind, Profile::Linux);
        assert_eq!(connection, open(), "{name}");
    }
    for state in [TcpState::FinWait, TcpState::LastAck, TcpState::SynReceived] {
        let mut connection = Connection { state, ..open() };
        connection.note(Half::Original, &segment(ACK, 1, 0x7000_0000, 1000), Profile::Linux);
        assert_eq!(connection.state, state, "by a blind acknowledgement");
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
