//! A pod's containers: what runs in each, what it holds of the pod, and how it ended.
//!
//! [`super::Pod`] keeps them and hands them events. Invariant: a container's place never changes, so that it can own sockets.
//! Allowed dependencies: `app`, `files`, `stack`. Read first: `image.rs`.

use super::Pod;
use super::app::App;
use super::config::{ContainerConfig, PodError, Transport};
use super::files::{self, Mounted};
use super::image::Image;
use super::socket::Owner;
use super::volume::Volume;
use crate::clock::Instant;

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

impl Pod {
    /// Gives a container what it sees of the volumes, over a layer of its own that is new at each start.
    pub(super) fn mount(&mut self, index: usize, config: &ContainerConfig) -> Result<Vec<Mounted>, PodError> {
        // Pause, at place 0, has none.
        let layer = self.config.volumes.len() + index - 1;
        let missing = (layer + 1).saturating_sub(self.volumes.len());
        self.volumes.reserve_exact(missing);
        self.volumes.extend(std::iter::repeat_with(Volume::layer).take(missing));
        self.volumes[layer] = Volume::layer();
        files::mount(&config.name, layer, &config.mounts, &mut self.volumes)
    }

    /// Gives a container all its ports or none.
    pub(super) fn take_ports(
        &mut self,
        index: usize,
        name: &str,
        ports: &[(Transport, u16)],
    ) -> Result<(), PodError> {
        let owner = Owner::Container(index);
        for &(transport, port) in ports {
            let result = match transport {
                Transport::Tcp => self.stack.tcp.listen(port, owner),
                Transport::Udp => self.stack.udp.bind(port, owner),
            };
            if let Err(taken) = result {
                self.stack.close_owner(owner, false, self.now);
                let holder = match taken.holder {
                    Owner::Container(holder) if holder == index => name.to_owned(),
                    Owner::Container(holder) => self
                        .containers
                        .get(holder)
                        .map(|container| container.config.name.clone())
                        .unwrap_or_default(),
                    Owner::Program(_) | Owner::Relays => String::from("(a program)"),
                };
                return Err(PodError::AddressInUse { container: name.to_owned(), holder, port });
            }
        }
        Ok(())
    }

    /// Ends a container with an exit code; its connections end in order. The pod dies with its pause container.
    ///
    /// # Errors
    /// [`PodError::NoSuchContainer`] when none of the name runs.
    pub fn stop_container(&mut self, name: &str, exit_code: i32, now: Instant) -> Result<(), PodError> {
        let running = |container: &Container| {
            container.config.name == name && container.state == ContainerState::Running
        };
        let Some(index) = self.containers.iter().position(running) else {
            return Err(PodError::NoSuchContainer { container: name.to_owned() });
        };
        self.now = now;
        if self.containers[index].config.image == Image::Pause && index == 0 {
            self.kill();
            return Ok(());
        }
        self.end_container(index, exit_code);
        Ok(())
    }

    /// Notes that a container ended, and takes back what it held.
    pub(super) fn end_container(&mut self, index: usize, code: i32) {
        if let Some(container) = self.containers.get_mut(index) {
            container.state = ContainerState::Exited(code);
        }
        self.has_news = true;
        let owner = Owner::Container(index);
        self.stack.close_owner(owner, false, self.now);
        self.set_wake(owner, None);
    }
}
