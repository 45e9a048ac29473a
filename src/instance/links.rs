//! Links of a network that runs: their settings, their counts, and how to change them.
//!
//! `http` answers `/v1/links` with it. Invariants: a change is checked whole before any of it holds; settings that are
//! not named stay as they are.
//!
//! May depend on agents and engine. Read first: [`crate::impairment`], `agents/src/publisher/links.rs`.

use flatnet_agents::publisher::{PublishError, Publisher};
use flatnet_engine::link::impairment::{Impairment, LinkCounts, QueueLimit};

use super::{Instance, RequestError};
use crate::impairment;
use crate::views::{LinkCounters, LinkEntry, LinkRequest};

impl Instance {
    /// Lists the directions that differ from perfect ones, or both of one pair.
    ///
    /// # Errors
    /// [`RequestError::Link`], [`RequestError::Drive`].
    pub fn links(&mut self, pair: Option<(&str, &str)>) -> Result<Vec<LinkEntry>, RequestError> {
        let ends: Vec<(String, String)> = match pair {
            Some((from, to)) => [(from, to), (to, from)].map(|(from, to)| (from.into(), to.into())).into(),
            None => {
                let publisher = &self.drive.network.publisher;
                publisher.impaired_links().map(|(from, to, _)| (from.into(), to.into())).collect()
            }
        };
        ends.into_iter().map(|(from, to)| self.link(from, to)).collect()
    }

    fn link(&mut self, from: String, to: String) -> Result<LinkEntry, RequestError> {
        let publisher = &self.drive.network.publisher;
        let impairment = publisher.impairment(&from, &to);
        // A pod that is gone leaves its link's settings to whoever gets its name.
        let counts = match publisher.link(&from, &to) {
            Ok(place) => {
                self.drive.ask(place.worker, move |worker| worker.link_counts(place.port, place.direction))?
            }
            Err(_) if !impairment.is_perfect() => LinkCounts::default(),
            Err(error) => return Err(refused(publisher, error)),
        };
        Ok(entry(from, to, &impairment, &counts))
    }

    /// Changes the settings between two machines, both ways unless the request says one; returns both directions.
    ///
    /// # Errors
    /// [`RequestError::Link`], [`RequestError::Setting`], [`RequestError::Drive`].
    pub fn change_link(&mut self, request: &LinkRequest) -> Result<Vec<LinkEntry>, RequestError> {
        let LinkRequest { from, to, one_way, settings } = request;
        if let Some(problem) = impairment::conflict(settings) {
            return Err(RequestError::Setting(problem));
        }
        let publisher = &mut self.drive.network.publisher;
        let directions = if *one_way { vec![(from, to)] } else { vec![(from, to), (to, from)] };
        let mut changed = Vec::new();
        for &(from, to) in &directions {
            publisher.link(from, to).map_err(|error| refused(publisher, error))?;
            let mut impairment = publisher.impairment(from, to);
            for word in settings {
                change(&mut impairment, publisher.configured_impairment(from, to), word)?;
            }
            if let Some((name, problem)) = impairment::contradiction(&impairment) {
                return Err(RequestError::Setting(format!("{name} {problem}")));
            }
            changed.push(impairment);
        }
        for ((from, to), impairment) in directions.into_iter().zip(changed) {
            publisher
                .impair(from, to, impairment)
                .map_err(|error| RequestError::Link { error, known: Vec::new() })?;
        }
        self.links(Some((from, to)))
    }
}

/// Does what one word of a command says.
fn change(impairment: &mut Impairment, configured: Impairment, word: &str) -> Result<(), RequestError> {
    match (word, word.split_once('=')) {
        ("reset", None) => *impairment = configured,
        ("up", None) => impairment.down = false,
        ("down", None) => impairment.down = true,
        (_, Some((name, value))) => {
            let failed = |problem: String| {
                let is_known = impairment::NAMES.contains(&name);
                RequestError::Setting(if is_known { format!("{name}: {problem}") } else { problem })
            };
            impairment::set(impairment, name, value).map_err(failed)?;
        }
        (_, None) => return Err(RequestError::Setting(format!("{word:?} says nothing of a link"))),
    }
    Ok(())
}

fn refused(publisher: &Publisher, error: PublishError) -> RequestError {
    let is_machine = |name: &str| publisher.place(name).is_none_or(|place| place.node.is_none());
    let machines = publisher.machines().map(str::to_owned);
    let pods = publisher.places().filter(|(name, _)| !is_machine(name));
    let pods = pods.filter_map(|(name, place)| {
        Some(format!("{} on {}", name.strip_prefix("default/").unwrap_or(name), place.node.as_ref()?))
    });
    RequestError::Link { error, known: machines.chain(pods).collect() }
}

fn entry(from: String, to: String, impairment: &Impairment, counts: &LinkCounts) -> LinkEntry {
    let Impairment { delay, jitter, loss, duplicate, reorder, corrupt, rate, queue, mtu, down } = *impairment;
    let (queue_frames, queue_bytes) = match queue {
        Some(QueueLimit::Frames(frames)) => (Some(frames), None),
        Some(QueueLimit::Bytes(bytes)) => (None, Some(bytes)),
        None => (None, None),
    };
    LinkEntry {
        from,
        to,
        settings: impairment::text(impairment),
        delay_ns: delay.as_nanos() as u64,
        jitter_ns: jitter.as_nanos() as u64,
        loss_ppm: loss,
        duplicate_ppm: duplicate,
        reorder_ppm: reorder,
        corrupt_ppm: corrupt,
        rate_bps: rate.map(std::num::NonZeroU64::get),
        queue_frames,
        queue_bytes,
        mtu,
        down,
        counters: LinkCounters {
            frames: counts.frames,
            bytes: counts.bytes,
            lost: counts.lost,
            duplicated: counts.duplicated,
            reordered: counts.reordered,
            corrupted: counts.corrupted,
            queue_full: counts.queue_full,
            too_long: counts.too_long,
            refused: counts.refused,
        },
    }
}
