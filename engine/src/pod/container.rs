//! A pod's containers: what runs in each, and how it ended.
//!
//! [`super::Pod`] keeps them and hands them events. Invariant: a container's place never changes, so that it can own sockets.
//! Allowed dependencies: `app`. Read first: `image.rs`.

use super::app::App;
use super::config::{ContainerConfig, Transport};
use super::files::Mounted;
use super::image::Image;

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Its program runs.
    Running,
    /// Its program ended with this code.
    Exited(i32),
}

/// A container as the control side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it runs.
    pub image: Image,
    /// What it is doing.
    pub state: ContainerState,
    /// Where it listens.
    pub ports: &'a [(Transport, u16)],
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) config: ContainerConfig,
    pub(super) ports: Vec<(Transport, u16)>,
    pub(super) app: App,
    pub(super) state: ContainerState,
    /// What it sees of the pod's volumes, its own layer first.
    pub(super) mounts: Vec<Mounted>,
}

impl Container {
    /// Describes the container.
    pub(super) fn status(&self) -> ContainerStatus<'_> {
        ContainerStatus {
            name: &self.config.name,
            image: self.config.image,
            state: self.state,
            ports: &self.ports,
        }
    }
}
