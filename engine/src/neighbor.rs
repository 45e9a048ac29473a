//! Next hops' MACs: what is known, who is being asked, and which frames wait for the answer.
//!
//! `decide` looks up; the worker lets frames wait, sends the requests and learns from ARP. Invariants: at most
//! [`WAITING_LIMIT`] frames wait for one neighbour, [`WAITING_LEAST`] while [`HELD_LIMIT`] wait in all, and at most [`REQUESTS`]
//! requests ask for it, one a second.
//! What one worker learns the others are told. Allowed dependencies: `frame`, `tables`, `wire`, `clock`.
//! Read first: RFC 826; RFC 1122, 2.3.2.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clock::Instant;
use crate::frame::Frame;
use crate::tables::NodeId;
use crate::wire::MacAddress;

/// Frames that wait for one neighbour, Linux' `unres_qlen`: a datagram's fragments wait whole.
pub const WAITING_LIMIT: usize = 101;
/// Frames that wait for one whatever waits for others (RFC 1122, 2.3.2.2 asks for one).
pub const WAITING_LEAST: usize = 3;
/// Frames that wait in all before that is all.
pub const HELD_LIMIT: usize = 4096;
/// Neighbours that a worker asks for at once: a scan of a network must not hold all buffers.
pub const ASKING_LIMIT: usize = 1024;
/// Neighbours that a worker knows: strangers may claim any address.
pub const KNOWN_LIMIT: usize = 1 << 16;
/// Requests sent before a neighbour is given up.
pub const REQUESTS: u32 = 3;
/// How long a real network's neighbour is believed to be where it was, as in Linux (`base_reachable_time`, 30 s, halved at least).
pub const BELIEVED: Duration = Duration::from_secs(15);
/// Time between requests, and how long a failure is remembered.
pub const REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// Where a neighbour is: on the node's bridge, or on an interface's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attachment {
    /// On the bridge.
    Bridge,
    /// On the network of the interface with this index.
    Interface(u8),
}

/// Whose MAC it is. Ordered by address first: that tells most neighbours apart by one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbor {
    /// The neighbour's address.
    pub address: Ipv4Addr,
    /// The node that asks.
    pub node: NodeId,
    /// Where.
    pub attachment: Attachment,
}

/// What is known of a neighbour.
#[derive(Debug)]
enum State {
    Asking { sent: u32, next: Instant, waiting: VecDeque<Frame> },
    Known { mac: MacAddress, since: Instant },
}

/// What letting a frame wait asks of the worker.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Whether a request is to be sent now.
    pub request: bool,
    /// The frame that had to make room.
    pub displaced: Option<Frame>,
}

/// A worker's neighbours.
#[derive(Debug, Default)]
pub struct Neighbors {
    states: BTreeMap<Neighbor, State>,
    asking: usize,
    /// Frames that wait.
    held: usize,
    /// Interfaces at real networks, whose machines come and go by themselves.
    renewed: Vec<(NodeId, Attachment)>,
    /// When their neighbours are looked at next.
    renewal: Option<Instant>,
}

impl Neighbors {
    /// Returns a neighbour's MAC.
    #[must_use]
    pub fn lookup(&self, neighbor: &Neighbor) -> Option<MacAddress> {
        match self.states.get(neighbor)? {
            State::Known { mac, .. } => Some(*mac),
            State::Asking { .. } => None,
        }
    }

    /// Lets a frame wait for a neighbour.
    pub fn wait(&mut self, neighbor: Neighbor, frame: Frame, now: Instant) -> Waiting {
        let asked_for = matches!(self.states.get(&neighbor), Some(State::Asking { .. }));
        if !asked_for && self.asking >= ASKING_LIMIT {
            return Waiting { request: false, displaced: Some(frame) };
        }
        let limit = if self.held < HELD_LIMIT { WAITING_LIMIT } else { WAITING_LEAST };
        self.held += 1;
        match self.states.get_mut(&neighbor) {
            Some(State::Asking { waiting, .. }) => {
                let displaced = if waiting.len() >= limit { waiting.pop_front() } else { None };
                self.held -= usize::from(displaced.is_some());
                waiting.push_back(frame);
                Waiting { request: false, displaced }
            }
            // Its MAC is known, but not its port. Who has just answered is not asked at once again, or a station
            // that the bridge cannot find would be asked for ever (RFC 1122, 2.3.2.1: one a second).
            Some(State::Known { since, .. }) if now < *since + REQUEST_INTERVAL => {
                let next = *since + REQUEST_INTERVAL;
                self.states
                    .insert(neighbor, State::Asking { sent: 0, next, waiting: VecDeque::from([frame]) });
                self.asking += 1;
                Waiting { request: false, displaced: None }
            }
            Some(State::Known { .. }) | None => {
                let asking =
                    State::Asking { sent: 1, next: now + REQUEST_INTERVAL, waiting: VecDeque::from([frame]) };
                self.states.insert(neighbor, asking);
                self.asking += 1;
                Waiting { request: true, displaced: None }
            }
        }
    }

    /// Learns a neighbour's MAC; returns the frames that waited, and whether cached flows may use another MAC.
    pub fn learn(&mut self, neighbor: Neighbor, mac: MacAddress, now: Instant) -> (VecDeque<Frame>, bool) {
        if self.states.len() >= KNOWN_LIMIT && !self.states.contains_key(&neighbor) {
            return (VecDeque::new(), false);
        }
        match self.states.insert(neighbor, State::Known { mac, since: now }) {
            Some(State::Asking { waiting, .. }) => {
                self.asking -= 1;
                self.held -= waiting.len();
                (waiting, false)
            }
            Some(State::Known { mac: old, .. }) => (VecDeque::new(), old != mac),
            None => (VecDeque::new(), false),
        }
    }

    /// Tells whether a neighbour is known or asked for: only then does an ARP packet about it teach something.
    #[must_use]
    pub fn concerns(&self, neighbor: &Neighbor) -> bool {
        self.states.contains_key(neighbor)
    }

    /// Returns the frames that wait for a neighbour, oldest first.
    pub fn waiting(&self, neighbor: &Neighbor) -> impl Iterator<Item = &Frame> {
        let waiting = match self.states.get(neighbor) {
            Some(State::Asking { waiting, .. }) => Some(waiting),
            Some(State::Known { .. }) | None => None,
        };
        waiting.into_iter().flatten()
    }

    /// Returns the neighbours to ask again, and the frames whose neighbour did not answer.
    pub fn poll(&mut self, now: Instant) -> (Vec<Neighbor>, Vec<(Neighbor, Frame)>) {
        let (mut again, mut failed) = (Vec::new(), Vec::new());
        if self.asking == 0 {
            return (again, failed);
        }
        let mut given_up = Vec::new();
        for (neighbor, state) in &mut self.states {
            let State::Asking { sent, next, waiting } = state else { continue };
            if *next > now {
                continue;
            }
            if *sent < REQUESTS {
                *sent += 1;
                *next = now + REQUEST_INTERVAL;
                again.push(*neighbor);
            } else {
                self.held -= waiting.len();
                failed.extend(waiting.drain(..).map(|frame| (*neighbor, frame)));
                given_up.push(*neighbor);
            }
        }
        for neighbor in given_up {
            self.states.remove(&neighbor);
            self.asking -= 1;
        }
        (again, failed)
    }

    /// Begins to ask for an interface's neighbours again and again: another machine may have their addresses, and say nothing.
    pub fn keep_asking(&mut self, node: NodeId, attachment: Attachment, now: Instant) {
        self.renewed.push((node, attachment));
        self.renewal = Some(now + REQUEST_INTERVAL);
    }

    /// Returns the neighbours to ask once more, and how many are forgotten because they do not answer any more: cached flows use
    /// their MACs. None before its time.
    pub fn renew(&mut self, now: Instant) -> Option<(Vec<Neighbor>, usize)> {
        self.renewal.filter(|&at| at <= now)?;
        self.renewal = Some(now + REQUEST_INTERVAL);
        let (mut again, mut silent) = (Vec::new(), Vec::new());
        for (neighbor, state) in &self.states {
            let State::Known { since, .. } = state else { continue };
            if !self.renewed.contains(&(neighbor.node, neighbor.attachment)) || now < *since + BELIEVED {
                continue;
            }
            let is_silent = now >= *since + BELIEVED + REQUEST_INTERVAL * REQUESTS;
            if is_silent { &mut silent } else { &mut again }.push(*neighbor);
        }
        // The others' turn comes.
        again.truncate(ASKING_LIMIT);
        silent.iter().for_each(|neighbor| drop(self.states.remove(neighbor)));
        Some((again, silent.len()))
    }

    /// Returns when [`Neighbors::poll`] or [`Neighbors::renew`] has something to do.
    #[must_use]
    pub fn next_poll(&self) -> Option<Instant> {
        if self.asking == 0 {
            return self.renewal;
        }
        let asking = self.states.values();
        asking
            .filter_map(|state| if let State::Asking { next, .. } = state { Some(*next) } else { None })
            .chain(self.renewal)
            .min()
    }

    /// Counts the frames of a node that wait.
    #[must_use]
    pub fn held(&self, node: NodeId) -> usize {
        let of_node = self.states.iter().filter(|(neighbor, _)| neighbor.node == node);
        of_node
            .map(|(_, state)| if let State::Asking { waiting, .. } = state { waiting.len() } else { 0 })
            .sum()
    }

    /// Takes all waiting frames, to end.
    pub fn drain(&mut self) -> Vec<(Neighbor, Frame)> {
        (self.asking, self.held) = (0, 0);
        let states = std::mem::take(&mut self.states);
        let waiting = states.into_iter().filter_map(|(neighbor, state)| match state {
            State::Asking { waiting, .. } => Some(waiting.into_iter().map(move |frame| (neighbor, frame))),
            State::Known { .. } => None,
        });
        waiting.flatten().collect()
    }

    /// Lists a node's neighbours; `None` for one that is being asked for.
    pub fn list(&self, node: NodeId) -> impl Iterator<Item = (Neighbor, Option<MacAddress>)> {
        self.states.iter().filter(move |(neighbor, _)| neighbor.node == node).map(|(neighbor, state)| {
            match state {
                State::Known { mac, .. } => (*neighbor, Some(*mac)),
                State::Asking { .. } => (*neighbor, None),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Arena;

    const NEIGHBOR: Neighbor = Neighbor {
        node: NodeId(0),
        attachment: Attachment::Interface(0),
        address: Ipv4Addr::new(192, 168, 66, 1),
    };

    /// RFC 1122, 2.3.2.2: at least the latest packet is kept.
    #[test]
    fn frames_wait_for_the_answer_and_the_oldest_makes_room() {
        let (_arena, mut pools) = Arena::new(1, 2 * WAITING_LIMIT as u32, 0).unwrap();
        let mut neighbors = Neighbors::default();
        let mut wait = || {
            let frame = pools[0].allocate(60).unwrap();
            neighbors.wait(NEIGHBOR, frame, Instant::ZERO)
        };
        assert!(wait().request);
        assert!((1..WAITING_LIMIT).all(|_| {
            let waiting = wait();
            !waiting.request && waiting.displaced.is_none()
        }));
        assert!(wait().displaced.is_some());
        assert_eq!(neighbors.held(NodeId(0)), WAITING_LIMIT);
        let (released, _) = neighbors.learn(NEIGHBOR, MacAddress::BROADCAST, Instant::ZERO);
        assert_eq!((released.len(), neighbors.next_poll()), (WAITING_LIMIT, None));
    }

    /// Linux' `unres_qlen`, 101: two of the longest datagrams wait for their next hop in all their fragments.
    #[test]
    fn the_longest_datagram_waits_whole() {
        let longest = 65_535_usize.div_ceil(1480);
        let (_arena, mut pools) = Arena::new(1, 256, 0).unwrap();
        let mut neighbors = Neighbors::default();
        for _ in 0..2 * longest {
            let waiting = neighbors.wait(NEIGHBOR, pools[0].allocate(60).unwrap(), Instant::ZERO);
            assert!(waiting.displaced.is_none());
        }
        assert_eq!(neighbors.waiting(&NEIGHBOR).count(), 2 * longest);
    }

    /// RFC 1122, 2.3.2.1: at most one request a second.
    #[test]
    fn who_has_just_answered_is_not_asked_at_once_again() {
        let (_arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut neighbors = Neighbors::default();
        neighbors.learn(NEIGHBOR, MacAddress::BROADCAST, Instant::ZERO);
        let waiting = neighbors.wait(NEIGHBOR, pools[0].allocate(60).unwrap(), Instant::ZERO);
        assert!(!waiting.request);
        let next = neighbors.next_poll().unwrap();
        assert_eq!((next, neighbors.poll(next).0), (Instant::ZERO + REQUEST_INTERVAL, vec![NEIGHBOR]));
    }

    #[test]
    fn a_scan_of_a_network_holds_no_more_than_its_share_of_buffers() {
        let (_arena, mut pools) = Arena::new(1, 2 * ASKING_LIMIT as u32, 0).unwrap();
        let mut neighbors = Neighbors::default();
        let refused = (0..2 * ASKING_LIMIT as u32).filter(|&number| {
            let neighbor = Neighbor { address: Ipv4Addr::from_bits(number), ..NEIGHBOR };
            let waiting = neighbors.wait(neighbor, pools[0].allocate(60).unwrap(), Instant::ZERO);
            waiting.displaced.is_some() && !waiting.request
        });
        assert_eq!(refused.count(), ASKING_LIMIT);
        assert_eq!(neighbors.held(NodeId(0)), ASKING_LIMIT);
    }

    /// RFC 1122, 2.3.2.2.
    #[test]
    fn who_has_many_frames_waiting_leaves_others_some() {
        let (_arena, mut pools) = Arena::new(1, 4 * HELD_LIMIT as u32, 0).unwrap();
        let mut neighbors = Neighbors::default();
        for number in 0..ASKING_LIMIT as u32 {
            let neighbor = Neighbor { address: Ipv4Addr::from_bits(number), ..NEIGHBOR };
            for _ in 0..WAITING_LIMIT {
                let displaced =
                    neighbors.wait(neighbor, pools[0].allocate(60).unwrap(), Instant::ZERO).displaced;
                displaced.into_iter().for_each(|frame| pools[0].free(frame));
            }
            assert!(neighbors.waiting(&neighbor).count() >= WAITING_LEAST);
        }
        let held = neighbors.held(NodeId(0));
        assert!(held <= HELD_LIMIT + WAITING_LEAST * ASKING_LIMIT && held == neighbors.held, "{held}");
        for number in 0..ASKING_LIMIT as u32 {
            let neighbor = Neighbor { address: Ipv4Addr::from_bits(number), ..NEIGHBOR };
            neighbors.learn(neighbor, MacAddress::BROADCAST, Instant::ZERO);
        }
        assert_eq!((neighbors.held(NodeId(0)), neighbors.held), (0, 0));
    }

    /// RFC 1122, 2.3.2.1, (2) and (4).
    #[test]
    fn neighbours_of_a_real_network_are_asked_again_and_forgotten_when_they_are_silent() {
        let mut neighbors = Neighbors::default();
        let simulated = Neighbor { attachment: Attachment::Interface(1), ..NEIGHBOR };
        neighbors.keep_asking(NEIGHBOR.node, NEIGHBOR.attachment, Instant::ZERO);
        for neighbor in [NEIGHBOR, simulated] {
            neighbors.learn(neighbor, MacAddress::BROADCAST, Instant::ZERO);
        }
        let mut asked = Vec::new();
        let mut answers = 1;
        while let Some(next) = neighbors.next_poll().filter(|_| neighbors.concerns(&NEIGHBOR)) {
            let (again, forgotten) = neighbors.renew(next).unwrap();
            assert_eq!(forgotten, usize::from(!neighbors.concerns(&NEIGHBOR)));
            assert!(neighbors.renew(next).is_none(), "once a second");
            asked.extend(again.iter().map(|neighbor| (*neighbor, next)));
            if !again.is_empty() && answers > 0 {
                answers -= 1;
                neighbors.learn(NEIGHBOR, MacAddress::BROADCAST, next);
            }
        }
        let at = |seconds| (NEIGHBOR, Instant::ZERO + Duration::from_secs(seconds));
        assert_eq!(asked, [at(15), at(30), at(31), at(32)]);
        assert!(neighbors.concerns(&simulated), "nobody asks for those");
    }

    /// RFC 1122, 2.3.2.1.
    #[test]
    fn a_silent_neighbour_is_given_up_after_three_requests() {
        let (_arena, mut pools) = Arena::new(1, 8, 0).unwrap();
        let mut neighbors = Neighbors::default();
        neighbors.wait(NEIGHBOR, pools[0].allocate(60).unwrap(), Instant::ZERO);
        let mut asked = 1;
        while let Some(next) = neighbors.next_poll() {
            let (again, failed) = neighbors.poll(next);
            asked += again.len() as u32;
            assert_eq!(failed.len(), usize::from(again.is_empty()));
        }
        assert_eq!((asked, neighbors.held(NodeId(0))), (REQUESTS, 0));
        assert!(!neighbors.concerns(&NEIGHBOR));
    }
}
