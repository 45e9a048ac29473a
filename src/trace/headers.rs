//! What the first bytes of a frame say, layer by layer, and what changed since the hop before.
//!
//! [`super::ask`] reads the heads that workers kept with it.
//!
//! Invariants: nothing is read beyond the bytes that are there; a field's name and value are as in `-o json`. A layer is
//! a list of named values and no struct per protocol, since all that is done with it is comparing and printing.
//!
//! May depend on the engine's wire formats and serde_json. Read first: `engine/src/wire/mod.rs`.

use flatnet_engine::tunnel::{Encapsulation, IP_IN_IP};
use flatnet_engine::wire::{
    ArpOperation, ArpPacket, EtherType, EthernetFrame, IcmpPacket, IcmpType, IpProtocol, Ipv4Packet,
    TcpFlags, TcpSegment, UdpDatagram, VxlanPacket,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which datagrams are a tunnel's: those to this port, with packets like that.
pub type Tunnel = (u16, Encapsulation);

/// The fields of one header, in their order on the wire.
pub type Layer = Map<String, Value>;

/// The headers of a frame at a point.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Headers {
    /// Ethernet; none where packets have no such header, as at flannel0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ethernet: Option<Layer>,
    /// The tunnel's IPv4 and UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outer: Option<Layer>,
    /// The network's number of a VXLAN, and the MACs of its ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<Layer>,
    /// The IPv4 header of IP in IP, in which a Service's packet goes to its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapper: Option<Layer>,
    /// IPv4: what pods and hosts sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner: Option<Layer>,
    /// TCP, UDP or ICMP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Layer>,
    /// ARP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arp: Option<Layer>,
}

macro_rules! layer {
    ($($name:literal: $value:expr),* $(,)?) => {
        Layer::from_iter([$(($name.to_owned(), Value::from($value))),*])
    };
}

impl Headers {
    /// Reads a frame, or a packet where there is no Ethernet header.
    pub fn read(bytes: &[u8], is_raw: bool, tunnel: Tunnel) -> Self {
        let mut headers = Self::default();
        if is_raw {
            headers.read_packet(bytes, tunnel);
            return headers;
        }
        let Ok(frame) = EthernetFrame::new_checked(bytes) else { return headers };
        headers.ethernet = Some(layer! {
            "source": frame.source().to_string(),
            "destination": frame.destination().to_string(),
        });
        match frame.ethertype() {
            EtherType::Ipv4 => headers.read_packet(frame.payload(), tunnel),
            EtherType::Arp => {
                headers.arp = ArpPacket::new_checked(frame.payload()).ok().map(|arp| arp_layer(&arp))
            }
            EtherType::Vlan | EtherType::Ipv6 | EtherType::Unknown(_) => {}
        }
        headers
    }

    fn read_packet(&mut self, bytes: &[u8], tunnel: Tunnel) {
        let Ok(packet) = Ipv4Packet::new_quoted(bytes) else { return };
        let payload = bytes.get(packet.header_length()..).unwrap_or_default();
        let udp = UdpDatagram::new_checked(payload).ok().filter(|_| packet.protocol() == IpProtocol::Udp);
        if self.outer.is_none()
            && let Some(udp) = udp.filter(|udp| udp.destination_port() == tunnel.0)
        {
            let mut outer = ip_layer(&packet);
            outer.extend(layer! {
                "source_port": udp.source_port(),
                "destination_port": udp.destination_port(),
            });
            self.outer = Some(outer);
            let carried = payload.get(8..).unwrap_or_default();
            return match tunnel.1 {
                Encapsulation::Udp => self.read_packet(carried, tunnel),
                Encapsulation::Vxlan { .. } => self.read_vxlan(carried, tunnel),
            };
        }
        if self.wrapper.is_none() && packet.protocol() == IpProtocol::Unknown(IP_IN_IP) {
            self.wrapper = Some(ip_layer(&packet));
            return self.read_packet(payload, tunnel);
        }
        self.inner = Some(ip_layer(&packet));
        self.transport = transport_layer(packet.protocol(), payload);
    }

    fn read_vxlan(&mut self, bytes: &[u8], tunnel: Tunnel) {
        let Ok(packet) = VxlanPacket::new_checked(bytes) else { return };
        let Ok(frame) = EthernetFrame::new_checked(packet.payload()) else { return };
        self.vxlan = Some(layer! {
            "vni": packet.vni(),
            "source": frame.source().to_string(),
            "destination": frame.destination().to_string(),
        });
        match frame.ethertype() {
            EtherType::Ipv4 => self.read_packet(frame.payload(), tunnel),
            EtherType::Arp => {
                self.arp = ArpPacket::new_checked(frame.payload()).ok().map(|arp| arp_layer(&arp))
            }
            EtherType::Vlan | EtherType::Ipv6 | EtherType::Unknown(_) => {}
        }
    }

    /// Names what differs from the hop before, as `layer.field`, or `layer` where it came or went. Ethernet is compared
    /// with the last that had it.
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        let pairs = [
            ("ethernet", &self.ethernet, &before.ethernet),
            ("outer", &self.outer, &before.outer),
            ("vxlan", &self.vxlan, &before.vxlan),
            ("wrapper", &self.wrapper, &before.wrapper),
            ("inner", &self.inner, &before.inner),
            ("transport", &self.transport, &before.transport),
            ("arp", &self.arp, &before.arp),
        ];
        let mut changed = Vec::new();
        for (name, now, before) in pairs {
            match (now, before) {
                (Some(now), Some(before)) => changed.extend(
                    now.iter()
                        .filter(|(field, value)| before.get(*field) != Some(value))
                        .map(|(field, _)| format!("{name}.{field}")),
                ),
                (Some(_), None) | (None, Some(_)) => changed.push(name.to_owned()),
                (None, None) => {}
            }
        }
        changed
    }
}

fn ip_layer(packet: &Ipv4Packet<&[u8]>) -> Layer {
    layer! {
        "source": packet.source().to_string(),
        "destination": packet.destination().to_string(),
        "length": packet.total_length(),
        "identification": packet.identification(),
        "dont_fragment": packet.dont_fragment(),
        "ttl": packet.time_to_live(),
        "checksum": packet.header_checksum(),
    }
}

fn transport_layer(protocol: IpProtocol, bytes: &[u8]) -> Option<Layer> {
    Some(match protocol {
        IpProtocol::Tcp => {
            let segment = TcpSegment::new_checked(bytes).ok()?;
            layer! {
                "protocol": "tcp",
                "source_port": segment.source_port(),
                "destination_port": segment.destination_port(),
                "flags": flags(segment.flags()),
                "checksum": segment.checksum(),
            }
        }
        IpProtocol::Udp => {
            let datagram = UdpDatagram::new_checked(bytes).ok()?;
            layer! {
                "protocol": "udp",
                "source_port": datagram.source_port(),
                "destination_port": datagram.destination_port(),
                "checksum": datagram.checksum(),
            }
        }
        IpProtocol::Icmp => {
            let message = IcmpPacket::new_checked(bytes).ok()?;
            let mut layer = layer! { "protocol": "icmp", "type": icmp_name(message.icmp_type()) };
            if message.is_query() {
                layer.extend(layer! {
                    "identifier": message.identifier(),
                    "sequence": message.sequence(),
                });
            } else {
                layer.extend(layer! { "code": message.code() });
            }
            layer.extend(layer! { "checksum": message.checksum() });
            layer
        }
        IpProtocol::Unknown(number) => layer! { "protocol": number },
    })
}

fn flags(flags: TcpFlags) -> String {
    let names = [
        (TcpFlags::SYN, "SYN"),
        (TcpFlags::FIN, "FIN"),
        (TcpFlags::RST, "RST"),
        (TcpFlags::PSH, "PSH"),
        (TcpFlags::ACK, "ACK"),
    ];
    let set = names.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| name);
    set.collect::<Vec<_>>().join(" ")
}

fn icmp_name(kind: IcmpType) -> String {
    let name = match kind {
        IcmpType::EchoReply => "echo reply",
        IcmpType::DestinationUnreachable => "unreachable",
        IcmpType::SourceQuench => "source quench",
        IcmpType::Redirect => "redirect",
        IcmpType::EchoRequest => "echo request",
        IcmpType::TimeExceeded => "time exceeded",
        IcmpType::ParameterProblem => "bad parameter",
        IcmpType::TimestampRequest => "timestamp request",
        IcmpType::TimestampReply => "timestamp reply",
        IcmpType::Unknown(number) => return format!("type {number}"),
    };
    name.to_owned()
}

fn arp_layer(arp: &ArpPacket<&[u8]>) -> Layer {
    let operation = match arp.operation() {
        ArpOperation::Request => "request".to_owned(),
        ArpOperation::Reply => "reply".to_owned(),
        ArpOperation::Unknown(number) => number.to_string(),
    };
    layer! {
        "operation": operation,
        "sender": arp.sender_address().to_string(),
        "sender_mac": arp.sender_mac().to_string(),
        "target": arp.target_address().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: Tunnel = (8285, Encapsulation::Udp);

    #[test]
    fn what_came_went_or_differs_is_named() {
        let before = Headers {
            ethernet: Some(layer! { "source": "a" }),
            inner: Some(layer! { "ttl": 64, "length": 41 }),
            ..Headers::default()
        };
        let after = Headers {
            outer: Some(layer! { "ttl": 64 }),
            inner: Some(layer! { "ttl": 63, "length": 41 }),
            ..Headers::default()
        };
        assert_eq!(after.changed_since(&before), ["ethernet", "outer", "inner.ttl"]);
        assert!(after.changed_since(&after).is_empty());
    }

    #[test]
    fn bytes_that_end_anywhere_give_the_headers_that_are_whole() {
        // Ethernet, IPv4 and UDP to the tunnel's port, IPv4 and ICMP inside.
        let frame: Vec<u8> = [
            &[2, 0x42, 0, 0, 0, 1, 2, 0x42, 0, 0, 0, 2, 8, 0][..],
            &[0x45, 0, 0, 57, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 168, 66, 11, 192, 168, 66, 12],
            &[0x20, 0x5d, 0x20, 0x5d, 0, 37, 0, 0],
            &[0x45, 0, 0, 29, 0, 1, 0, 0, 63, 1, 0, 0, 10, 1, 15, 2, 10, 1, 20, 3],
            &[8, 0, 0, 0, 0, 1, 0, 1, 9],
        ]
        .concat();
        let whole = Headers::read(&frame, false, UDP);
        assert_eq!(whole.outer.as_ref().unwrap()["destination_port"], 8285);
        assert_eq!(whole.inner.as_ref().unwrap()["ttl"], 63);
        assert_eq!(whole.transport.as_ref().unwrap()["type"], "echo request");
        for end in 0..frame.len() {
            let cut = Headers::read(&frame[..end], false, UDP);
            assert_eq!(cut.ethernet.is_some(), end >= 14, "{end}");
        }
        let wrapped =
            [&frame[..14], &[0x45, 0, 0, 77, 0, 0, 0x40, 0, 64, 4, 0, 0], &[9; 8], &frame[14..]].concat();
        let read = Headers::read(&wrapped, false, UDP);
        assert_eq!(read.wrapper.unwrap()["source"], "9.9.9.9");
        assert_eq!(
            (read.outer, read.inner, read.transport),
            (whole.outer.clone(), whole.inner.clone(), whole.transport)
        );
        assert_eq!(Headers::read(&frame, false, (1, Encapsulation::Udp)).outer, None);
        assert_eq!(Headers::read(&frame[14..], true, UDP).inner, whole.inner);

        // VXLAN and Ethernet in front of the same packet.
        let between = [8, 0, 0, 0, 0, 0, 7, 0, 2, 0x42, 10, 1, 20, 0, 2, 0x42, 10, 1, 15, 0, 8, 0];
        let frame = [&frame[..42], &between, &frame[42..]].concat();
        let vxlan = (8285, Encapsulation::Vxlan { vni: 7 });
        let read = Headers::read(&frame, false, vxlan);
        let layer = layer! { "vni": 7, "source": "02:42:0a:01:0f:00", "destination": "02:42:0a:01:14:00" };
        assert_eq!((read.vxlan, read.outer, read.inner), (Some(layer), whole.outer, whole.inner));
        for end in 0..frame.len() {
            assert_eq!(Headers::read(&frame[..end], false, vxlan).ethernet.is_some(), end >= 14, "{end}");
        }
    }
}
