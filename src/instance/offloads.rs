//! What links leave to the host's system, while the network runs: how it is, and how to change it.
//!
//! `http` answers `/v1/offloads` with it. Invariant: a request is understood whole before any of it holds.
//!
//! May depend on engine. Read first: `engine/src/link/feature.rs`.

use flatnet_engine::link::feature::{Feature, FeatureError};
use flatnet_engine::tables::PortId;
use flatnet_engine::trace::Point;

use super::{Instance, RequestError};
use crate::point::{self, Resolved};
use crate::views::{OffloadEntry, OffloadRequest};

impl Instance {
    /// Lists what the link at a point leaves to the system, or what all do that leave it something.
    ///
    /// # Errors
    /// [`RequestError::Point`], [`RequestError::Offload`], [`RequestError::Drive`].
    pub fn offloads(&mut self, point: Option<&str>) -> Result<Vec<OffloadEntry>, RequestError> {
        let publisher = &self.drive.network.publisher;
        let points = match point {
            Some(point) => vec![point::resolve(publisher, point)?],
            None => point::all(publisher),
        };
        let mut entries = Vec::new();
        for resolved in points {
            let entry = self.offloads_at(resolved, Vec::new())?;
            if !entry.features.is_empty() {
                entries.push(entry);
            } else if point.is_some() {
                return Err(RequestError::Offload(format!("{} leaves nothing to this host", entry.point)));
            }
        }
        Ok(entries)
    }

    /// Switches features of the link at a point; returns how it is then.
    ///
    /// # Errors
    /// [`RequestError::Point`], [`RequestError::Offload`], [`RequestError::Drive`].
    pub fn change_offloads(&mut self, request: &OffloadRequest) -> Result<Vec<OffloadEntry>, RequestError> {
        let settings: Result<Vec<_>, _> = request.settings.iter().map(|word| setting(word)).collect();
        let resolved = point::resolve(&self.drive.network.publisher, &request.point)?;
        Ok(vec![self.offloads_at(resolved, settings.map_err(RequestError::Offload)?)?])
    }

    fn offloads_at(
        &mut self,
        at: Resolved,
        settings: Vec<(Feature, bool)>,
    ) -> Result<OffloadEntry, RequestError> {
        let none = |point| OffloadEntry { point, features: Default::default() };
        let Some((port, worker)) = self.port_at(&at) else { return Ok(none(at.name)) };
        let answer = self.drive.ask(worker, move |worker| -> Result<_, FeatureError> {
            let Some(link) = worker.link(port) else { return Ok(Vec::new()) };
            settings.into_iter().try_for_each(|(feature, on)| link.set_feature(feature, on))?;
            Ok(link.features())
        })?;
        let features = answer.map_err(|error| RequestError::Offload(format!("{}: {error}", at.name)))?;
        let features = features.into_iter().map(|(feature, on)| (feature.name().to_owned(), on)).collect();
        Ok(OffloadEntry { point: at.name, features })
    }

    /// Returns the port whose link a point is at, and who has it.
    fn port_at(&self, at: &Resolved) -> Option<(PortId, u8)> {
        let tables = self.drive.network.publisher.control.tables.current();
        let port = match at.point {
            Point::Port(port) => port,
            Point::Interface(index) => tables.node(at.node)?.interfaces.get(usize::from(index))?.port,
            Point::Bridge | Point::Tunnel | Point::Loopback(_) => return None,
        };
        Some((port, tables.ports.get(&port)?.worker))
    }
}

/// Reads `FEATURE=on` or `FEATURE=off`.
fn setting(word: &str) -> Result<(Feature, bool), String> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    let feature = Feature::ALL.into_iter().find(|feature| feature.name() == name);
    match (feature, value) {
        (Some(feature), "on") => Ok((feature, true)),
        (Some(feature), "off") => Ok((feature, false)),
        (Some(_), _) => Err(format!("{word:?} says neither on nor off")),
        (None, _) => Err(format!("there is no feature {name:?}")),
    }
}
