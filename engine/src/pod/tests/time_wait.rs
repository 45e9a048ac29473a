//! What reaches a connection that has ended here and is only remembered.

use super::*;

/// A connection that the second pod's server ended first.
struct Ended {
    segment: Segment,
    /// The client's.
    port: u16,
    /// The sequence number of the client's FIN, which the server has acknowledged.
    fin: u32,
    /// The sequence number behind the server's own FIN.
    own_end: u32,
}

/// What a server sent: flags, sequence and acknowledgement.
type Answer = (TcpFlags, u32, u32);

impl Ended {
    fn new() -> Self {
        let mut segment = Segment::pair();
        segment.pods[1].start_container(container("web", Image::Httpd, "")).unwrap();
        segment.exec(0, "curl -s -H Connection:close http://10.1.15.3/");
        segment.run(Duration::from_secs(1));
        let tcp = segment.log.iter().filter(|frame| frame.len() > 50 && frame[23] == 6);
        let fins: Vec<_> = tcp.map(|frame| read(frame)).filter(|(.., (flags, ..))| flags.fin()).collect();
        assert_eq!(fins.iter().map(|fin| fin.0).collect::<Vec<_>>(), [SECOND, FIRST], "the server ends it");
        let (_, port, (_, fin, _)) = fins[1];
        let own_end = fins[0].2.1.wrapping_add(1);
        Ended { segment, port, fin, own_end }
    }

    /// Sends the server a bare segment so far behind the client's FIN.
    fn send(&mut self, flags: TcpFlags, behind: u32) -> Option<Answer> {
        let mut frame = syn(FIRST, self.port, 80);
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
        let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        let mut tcp = TcpSegment::new_unchecked(packet.payload_mut());
        tcp.set_flags(flags);
        tcp.set_sequence(self.fin.wrapping_add(behind));
        tcp.fill_checksum(FIRST, SECOND);
        self.segment.log.clear();
        self.segment.with(1, |pod, now, out| pod.receive(&frame, now, out));
        self.segment.log.first().map(|frame| read(frame).2)
    }

    /// Asks for a new connection: whether it is to be had beyond the last one's numbers, whether it is reset, and how far behind the
    /// client's FIN the answer acknowledges.
    fn ask(&mut self, behind: u32) -> (bool, bool, u32) {
        let (flags, sequence, acknowledged) = self.send(TcpFlags::SYN, behind).unwrap();
        let is_beyond = sequence.wrapping_sub(self.own_end) as i32 > 0;
        (flags.syn() && is_beyond, flags.rst(), acknowledged.wrapping_sub(self.fin))
    }
}

/// Reads a segment: its source and source port, and what it says.
fn read(frame: &[u8]) -> (Ipv4Addr, u16, Answer) {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    let segment = TcpSegment::new_checked(packet.payload()).unwrap();
    let answer = (segment.flags(), segment.sequence(), segment.acknowledgement());
    (packet.source(), segment.source_port(), answer)
}

/// RFC 1122, 4.2.2.13, RFC 9293, 3.10.7.4 and Linux' `tcp_timewait_state_process`: a SYN beyond the last sequence number
/// replaces a connection in TIME-WAIT, if somebody accepts it; any other is answered by an ACK of what was.
#[test]
fn a_connection_in_time_wait_gives_way_to_a_newer_syn_only() {
    let mut ended = Ended::new();
    assert_eq!(ended.ask(0), (false, false, 1), "not beyond the FIN");
    assert_eq!(ended.ask(1), (false, false, 1), "the next expected");
    let now = ended.segment.now;
    ended.segment.pods[1].stop_container("web", 0, now).unwrap();
    assert_eq!(ended.ask(100), (false, false, 1), "nobody accepts");
    ended.segment.pods[1].start_container(container("web", Image::Httpd, "")).unwrap();
    // Each is beyond the one before, too; the answers are all beyond what was, and not by luck.
    for newer in 100..116 {
        assert_eq!(ended.ask(newer), (true, false, newer + 1));
    }
    assert_eq!(ended.ask(0), (false, false, 1), "and an old one is still old");
}

/// RFC 9293, 3.10.7.4 and RFC 5961, 3.2, as Linux with `rfc1337=0`: a reset at the very next sequence number ends TIME-WAIT;
/// any other changes nothing, and none is answered.
#[test]
fn only_a_reset_at_the_next_sequence_number_ends_time_wait() {
    let mut ended = Ended::new();
    for blind in [0, 2, 1000, 1 << 31, u32::MAX] {
        assert_eq!(ended.send(TcpFlags::RST, blind), None, "{blind}");
        assert_eq!(ended.ask(0), (false, false, 1), "{blind}: it is remembered");
    }
    assert_eq!(ended.send(TcpFlags::RST, 1), None);
    let (flags, _, acknowledged) = ended.send(TcpFlags::SYN, 0).unwrap();
    assert!(flags.syn() && flags.ack(), "{flags:?}: the old number opens a new connection");
    assert_eq!(acknowledged.wrapping_sub(ended.fin), 1);
}
