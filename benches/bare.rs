//! What `scripts/bench-peers` shows the bound by: the least that a program does between interfaces, with the engine's own calls.
//!
//! `bare A B` reads a frame from one of two TAPs and writes it to the other, superframes whole. `bare A OWN PEER` has one TAP and a UDP
//! socket, by which it speaks to another such program: a superframe is sent as segments that anybody could read, in one message, and
//! those that came together are checked and put into one again. There is one buffer and one thread, and nobody looks at anything
//! else: no table, no counter. Ends with its TAPs.
#![allow(missing_docs, reason = "a program has no items for others")]

use std::io::{self, IoSlice};
use std::iter::once;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use flatnet_engine::frame::LARGE_CAPACITY;
use flatnet_engine::link::offload::header_of;
use flatnet_engine::link::train::merge;
use flatnet_engine::segment::Layout;
use flatnet_engine::sys::{
    Message, Received, VNET_HEADER, open_tap, receive_datagrams, receive_together, send_messages,
};
use flatnet_engine::wire::ethernet::HEADER_LENGTH;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read, write};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

/// Frames that one side moves before it is the other's turn.
const TURN: usize = 64;
/// Looks before it sleeps, as a worker's.
const LOOKS: u32 = 64;
/// Of the tunnels.
const PORT: u16 = 9999;
/// Bytes that wait in the system.
const WAITING: usize = 4 << 20;

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut buffer = vec![0; VNET_HEADER + LARGE_CAPACITY];
    match &words[..] {
        [one, other] => {
            let ends = [open_tap(one)?.0, open_tap(other)?.0];
            let [one, other] = &ends;
            take_turns([one.as_fd(), other.as_fd()], || {
                Ok(forward(one, other, &mut buffer)? + forward(other, one, &mut buffer)?)
            })
        }
        [tap, own, peer] => {
            let address = |word: &str| word.parse::<Ipv4Addr>().map_err(io::Error::other);
            let mut tunnel = Tunnel::open(tap, address(own)?, address(peer)?)?;
            let (tap, socket) = (tunnel.tap.try_clone()?, tunnel.socket.try_clone()?);
            take_turns([tap.as_fd(), socket.as_fd()], || {
                Ok(tunnel.send(&mut buffer)? + tunnel.receive(&mut buffer)?)
            })
        }
        _ => {
            println!("bare: give it two TAPs, or one with an address and its peer's");
            Ok(())
        }
    }
}

/// Has frames moved as long as there are some, and sleeps else.
fn take_turns(ends: [impl AsFd; 2], mut turn: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    let mut idle = 0;
    loop {
        if turn()? > 0 {
            idle = 0;
        } else if idle < LOOKS {
            idle += 1;
            thread::yield_now();
        } else {
            poll(&mut ends.each_ref().map(|end| PollFd::new(end, PollFlags::IN)), None)?;
        }
    }
}

/// Reads what comes next, if anything does.
fn next(from: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match read(from, buffer) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn forward(from: &OwnedFd, to: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    for count in 0..TURN {
        let Some(length) = next(from, buffer)? else { return Ok(count) };
        // An interface that is down takes nothing.
        let _ = write(to, &buffer[..length]);
    }
    Ok(TURN)
}

struct Tunnel {
    tap: OwnedFd,
    socket: UdpSocket,
    peer: SocketAddrV4,
    train: Vec<u8>,
    received: Vec<Received>,
}

impl Tunnel {
    fn open(tap: &str, own: Ipv4Addr, peer: Ipv4Addr) -> io::Result<Self> {
        let socket = UdpSocket::bind((own, PORT))?;
        // As much as a node's tunnel has: whoever may, and both may make interfaces.
        set_socket_recv_buffer_size_force(&socket, WAITING)?;
        receive_together(&socket)?;
        let (train, received) = (vec![0; LARGE_CAPACITY], Vec::with_capacity(1));
        let peer = SocketAddrV4::new(peer, PORT);
        Ok(Self { tap: open_tap(tap)?.0, socket, peer, train, received })
    }

    /// Sends what the TAP has.
    fn send(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for count in 0..TURN {
            let Some(length) = next(&self.tap, buffer)? else { return Ok(count) };
            let (header, frame) = buffer[..length].split_at_mut(VNET_HEADER);
            let layout = Layout::of(frame);
            let (is_cut, size) = (header[1] != 0, usize::from(u16::from_ne_bytes([header[4], header[5]])));
            let (bytes, segment) = match layout.filter(|_| header[0] & 1 != 0) {
                Some(layout) if is_cut && size > 0 => {
                    let segment = layout.payload + size;
                    (cut(&layout, frame, size, &mut self.train), segment)
                }
                Some(layout) => {
                    layout.finish(frame);
                    (&*frame, 0)
                }
                None => (&*frame, 0),
            };
            let segment = if bytes.len() > segment { segment as u16 } else { 0 };
            // What the system does not take is lost.
            let parts = [IoSlice::new(bytes)];
            let _ = send_messages(&self.socket, once(Message { to: self.peer, parts: &parts, segment }));
        }
        Ok(TURN)
    }

    /// Gives the TAP what came.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for count in 0..TURN {
            let places = once([&mut buffer[VNET_HEADER..], &mut []]);
            if receive_datagrams(&self.socket, places, &mut self.received).is_err() {
                return Ok(count);
            }
            for &Received { length, segment, .. } in &self.received {
                let bytes = &mut buffer[VNET_HEADER..VNET_HEADER + length];
                let merged = if segment < length { merge(bytes, segment, HEADER_LENGTH) } else { None };
                if let Some(merged) = merged
                    && let Some(layout) = Layout::of(&bytes[..merged.length])
                {
                    let header = header_of(&layout, merged.segmentation, merged.size as u16);
                    buffer[..VNET_HEADER].copy_from_slice(&header);
                    let _ = write(&self.tap, &buffer[..VNET_HEADER + merged.length]);
                }
                for start in (merged.map_or(0, |merged| merged.taken)..length).step_by(segment) {
                    // In front of it is what has gone.
                    buffer[start..start + VNET_HEADER].fill(0);
                    let end = VNET_HEADER + (start + segment).min(length);
                    let _ = write(&self.tap, &buffer[start..end]);
                }
            }
        }
        Ok(TURN)
    }
}

/// Writes a superframe's segments, `size` bytes of payload each, one behind the other, and returns them.
fn cut<'a>(layout: &Layout, frame: &[u8], size: usize, train: &'a mut [u8]) -> &'a [u8] {
    let mut length = 0;
    for (number, start) in (layout.payload..layout.end).step_by(size).enumerate() {
        let range = start..(start + size).min(layout.end);
        let end = length + layout.payload + range.len();
        // A message takes no more.
        let Some(segment) = train.get_mut(length..end) else { break };
        layout.write_segment(segment, frame, &range, number as u16);
        length = end;
    }
    &train[..length]
}
