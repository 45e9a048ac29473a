//! The hops of followed frames: from the events that workers noted to ways that can be read.
//!
//! [`crate::check`] and [`crate::trace`] send a probe, take the events and sort them here.
//!
//! Invariant: events of one frame, and of the request for the MAC that it waits for, are in the order of its way.
//!
//! May depend on [`crate::drive`] and the engine. Read first: `engine/src/trace.rs`.

use std::collections::BTreeMap;

use flatnet_agents::publisher::Place;
use flatnet_engine::ledger::DropReason;
use flatnet_engine::pod::{Probe, ProbeOutcome, ProgramId};
use flatnet_engine::trace::{Action, Event};

use crate::drive::{Drive, DriveError};

/// Has a pod or host send a probe; `None` if it is gone.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn send(drive: &mut Drive, from: &Place, probe: Probe) -> Result<Option<ProgramId>, DriveError> {
    let port = from.port;
    drive.ask(from.worker, move |worker| worker.with_pod(port, |pod, now| pod.probe(probe, now)))
}

/// Tells what a probe found, once it has; `None` also if its pod is gone.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn outcome(drive: &mut Drive, from: &Place, id: ProgramId) -> Result<Option<ProbeOutcome>, DriveError> {
    let port = from.port;
    let visit = move |worker: &mut flatnet_engine::worker::Worker| {
        worker.with_pod(port, |pod, _| pod.probe_outcome(id))
    };
    Ok(drive.ask(from.worker, visit)?.flatten())
}

/// Takes what all workers noted.
///
/// # Errors
/// [`DriveError::Silent`].
pub fn take_events(drive: &mut Drive) -> Result<Vec<Event>, DriveError> {
    Ok(drive.ask_all(|worker| std::mem::take(&mut worker.observer.events))?.concat())
}

/// Sorts what was noted of frames by their marks, and by hop; `event` reads the event of each.
pub fn by_mark<'a, T>(
    noted: impl Iterator<Item = &'a T>,
    event: impl Fn(&T) -> &Event,
) -> BTreeMap<u32, Vec<&'a T>> {
    let mut marks: BTreeMap<u32, Vec<&T>> = BTreeMap::new();
    noted.for_each(|one| marks.entry(event(one).mark).or_default().push(one));
    marks.values_mut().for_each(|hops| hops.sort_by_key(|one| event(one).hop));
    marks
}

/// Tells why a frame was dropped, from its hops.
pub fn reason(hops: &[&Event]) -> Option<DropReason> {
    if let Action::Drop(reason) = hops.last()?.action { Some(reason) } else { None }
}

/// Picks the way of a request to where it was dropped: of one that was asked again, and flooded, a hop of each number.
pub fn until_drop<'a>(request: &[&'a Event]) -> Option<Vec<&'a Event>> {
    let dropped = request.iter().rev().find(|event| matches!(event.action, Action::Drop(_)))?;
    let mut hops: Vec<&Event> = request.iter().filter(|event| event.hop < dropped.hop).copied().collect();
    hops.dedup_by_key(|event| event.hop);
    hops.push(dropped);
    Some(hops)
}
