//! Two smoltcp stacks back to back: the most that a stream between two pods of them could come to.
//!
//! Set up as the connections of pods are, MTU and buffers alike; checksums are made and verified by smoltcp. Invariant: what
//! one sends the other receives, in order. May depend on smoltcp. Read first: `engine/src/pod/tcp/connection.rs`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::{Duration, Instant as Time};

use flatnet_engine::pod::DEFAULT_TCP_BUFFER;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::super::core_time;
use crate::bench::BenchError;

/// What a node's docker0 gives its pods.
const MTU: usize = 1472;
/// Octets of one write, as iperf has it; what comes is looked at where it lies, as iperf does.
const CHUNK: usize = 32 * 1024;
/// Turns without an octet before a stream counts as stuck.
const IDLE_LIMIT: u32 = 10_000_000;

/// Two stacks, one that sends and one that receives.
#[derive(Debug)]
pub struct Bare {
    sender: Stack,
    receiver: Stack,
    /// Packets on the way to each, and buffers to be used again.
    to_receiver: VecDeque<Vec<u8>>,
    to_sender: VecDeque<Vec<u8>>,
    spare: RefCell<Vec<Vec<u8>>>,
    start: Time,
}

struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

impl Stack {
    fn new(last: u8) -> Self {
        let buffer = || SocketBuffer::new(vec![0; DEFAULT_TCP_BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        let mut wire = Wire {
            incoming: &mut VecDeque::new(),
            outgoing: &mut VecDeque::new(),
            spare: &RefCell::default(),
        };
        let now = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, now);
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, last), 24));
        });
        Self { interface, sockets, handle }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

impl Default for Bare {
    fn default() -> Self {
        Self::new()
    }
}

impl Bare {
    /// Makes both and has one connect to the other, which happens with the first octets.
    #[must_use]
    pub fn new() -> Self {
        let (mut sender, mut receiver) = (Stack::new(1), Stack::new(2));
        let Stack { interface, sockets, handle } = &mut sender;
        // Neither fails: both sockets are new and the addresses are not zero.
        let _ = receiver.socket().listen(5001);
        let remote = (IpAddress::v4(10, 0, 0, 2), 5001);
        let _ = sockets.get_mut::<Socket<'_>>(*handle).connect(interface.context(), remote, 40_000);
        let (to_receiver, to_sender, spare) = (VecDeque::new(), VecDeque::new(), RefCell::default());
        Self { sender, receiver, to_receiver, to_sender, spare, start: Time::now() }
    }

    /// Sends so many octets; returns how long it took until the last was read.
    ///
    /// # Errors
    /// [`BenchError::Unfinished`].
    pub fn carry(&mut self, octets: u64) -> Result<Duration, BenchError> {
        let Self { sender, receiver, to_receiver, to_sender, spare, start } = self;
        let chunk = [0x55; CHUNK];
        let (mut sent, mut received, mut idle) = (0, 0, 0);
        let begin = core_time();
        while received < octets {
            let now =
                smoltcp::time::Instant::from_micros(i64::try_from(start.elapsed().as_micros()).unwrap_or(0));
            while sent < octets && sender.socket().can_send() {
                let left = usize::try_from(octets - sent).unwrap_or(CHUNK).min(CHUNK);
                let count = sender.socket().send_slice(&chunk[..left]).unwrap_or(0);
                sent += count as u64;
            }
            let mut wire = Wire { incoming: to_sender, outgoing: to_receiver, spare };
            sender.interface.poll(now, &mut wire, &mut sender.sockets);
            let mut wire = Wire { incoming: to_receiver, outgoing: to_sender, spare };
            receiver.interface.poll(now, &mut wire, &mut receiver.sockets);
            let before = received;
            while receiver.socket().can_recv() {
                received += receiver.socket().recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0) as u64;
            }
            idle = if received > before { 0 } else { idle + 1 };
            if idle > IDLE_LIMIT {
                return Err(BenchError::Unfinished { what: "the bare stream", drops: String::from("none") });
            }
        }
        Ok(core_time() - begin)
    }
}

/// One stack's view of the two queues.
struct Wire<'a> {
    incoming: &'a mut VecDeque<Vec<u8>>,
    outgoing: &'a mut VecDeque<Vec<u8>>,
    spare: &'a RefCell<Vec<Vec<u8>>>,
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Receive<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Transmit<'t>
    where
        Self: 't;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Receive<'_>, Transmit<'_>)> {
        let packet = self.incoming.pop_front()?;
        let transmit = Transmit { outgoing: self.outgoing, spare: self.spare };
        Some((Receive { packet, spare: self.spare }, transmit))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Transmit<'_>> {
        Some(Transmit { outgoing: self.outgoing, spare: self.spare })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

/// The right to read a packet.
struct Receive<'a> {
    packet: Vec<u8>,
    spare: &'a RefCell<Vec<Vec<u8>>>,
}

impl RxToken for Receive<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        let result = read(&self.packet);
        self.spare.borrow_mut().push(self.packet);
        result
    }
}

/// The right to send a packet.
struct Transmit<'a> {
    outgoing: &'a mut VecDeque<Vec<u8>>,
    spare: &'a RefCell<Vec<Vec<u8>>>,
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = self.spare.borrow_mut().pop().unwrap_or_default();
        packet.resize(length, 0);
        let result = write(&mut packet);
        self.outgoing.push_back(packet);
        result
    }
}
