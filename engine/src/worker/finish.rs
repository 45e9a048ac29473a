//! The end of a worker: where its buffers are when nothing runs any more.
//!
//! Called once, after the last batch; TAPs are closed here. Invariants: every frame that waits somewhere is found once and its buffer given
//! back; nothing is counted as dropped, since what waits is accounted for where it waits. Read first: `ledger.rs`.

use super::{Frame, Link, Replay, Worker};
use crate::ledger::Buffers;
use crate::link::tap::Tap;
use crate::mailbox::Parcel;

impl Worker {
    /// Takes all frames from where they wait and tells what became of the buffers; all workers must have stopped.
    pub fn finish(&mut self) -> Buffers {
        for attached in self.links.iter_mut().flatten() {
            if let Link::TunnelSocket(socket) = &mut attached.link {
                socket.take_idle().for_each(|frame| self.pool.free(frame));
            }
        }
        let (allocated, freed) = self.pool.turnover();
        let waiting = self.take_all_waiting();
        let held = waiting.len() as u64;
        for frame in waiting {
            self.pool.free(frame);
        }
        let taps = self
            .links
            .iter_mut()
            .filter_map(|slot| slot.take_if(|attached| matches!(attached.link, Link::Tap(_))));
        Tap::close_all(
            taps.filter_map(|attached| match attached.link {
                Link::Tap(tap) => Some(tap),
                Link::Wire { .. } | Link::Pod(_) | Link::Rings(_) | Link::TunnelSocket(_) => None,
            })
            .collect(),
        );
        Buffers { allocated, freed, held }
    }

    fn take_all_waiting(&mut self) -> Vec<Frame> {
        let mut found: Vec<Frame> = Vec::new();
        for attached in self.links.iter_mut().flatten() {
            found.extend(attached.waiting.drain(..));
            match &mut attached.link {
                Link::Wire { wire, .. } => found.extend(std::iter::from_fn(|| wire.drain())),
                Link::Pod(pod) => {
                    found.extend(std::iter::from_fn(|| pod.wire.drain()));
                    if let Some(uplink) = &mut pod.uplink {
                        found.extend(uplink.outbox.drain(..));
                        found.extend(std::iter::from_fn(|| uplink.wire.drain()));
                    }
                }
                Link::Rings(rings) => {
                    rings.incoming.pop(usize::MAX, |frame| found.push(frame));
                }
                Link::Tap(tap) => found.extend(tap.unwritten()),
                Link::TunnelSocket(socket) => found.append(&mut socket.outbox),
            }
        }
        found.extend(self.replays.iter_mut().flat_map(Replay::drain));
        found.extend(self.neighbors.drain().into_iter().map(|(_, frame)| frame));
        found.extend(self.fragments.drain());
        found.extend(self.waiting_for_ports.drain(..).map(|waiting| waiting.frame));
        for incoming in &mut self.incoming {
            incoming.parcels.pop(usize::MAX, |parcel| match parcel {
                Parcel::Ingress(frame) | Parcel::Egress(frame) => found.push(frame),
                Parcel::Home(frame) => self.pool.welcome(frame),
            });
        }
        found
    }
}
