//! What becomes of pods' containers: ended ones are told to the kubelet, those that start again are started.
//!
//! [`crate::drive`] asks the workers and calls this between rounds of the agents. Invariants: a pod's status is written
//! after every change of its containers; a simulated pod whose pause container ended is dead and stays so, a real one whose sandbox
//! died has another when the first of its containers is to start again.
//!
//! May depend on agents and engine. Read first: `agents/src/kubelet.rs`.

use std::sync::Arc;
use std::time::Duration;

use flatnet_agents::kubelet::{Exit, Start};
use flatnet_agents::objects::pod_name;
use flatnet_agents::pods::PodView;
use flatnet_agents::publisher::{MadePod, Place, PublishError};
use flatnet_agents::runtime::News;
use flatnet_engine::clock::Instant;
use flatnet_engine::pod::ContainerState;
use flatnet_engine::worker::EndedContainers;
use k8s_openapi::api::core::v1::Container;

use super::{Agent, Network, with_sources};

/// How often it is looked whether what somebody else made is there.
const LOOK: Duration = Duration::from_millis(500);

/// A container that is to start again.
#[derive(Debug)]
pub struct Restart {
    /// Where its pod is.
    pub place: Place,
    /// What it runs.
    pub container: Container,
    /// How that went, if it was not for the pod's worker to try.
    pub start: Option<Start>,
    pod: String,
    index: usize,
}

impl Network {
    /// Takes what a worker tells of pods of which a container ended.
    pub fn take_ended(&mut self, ended: Vec<EndedContainers>, now: Instant) {
        let mut kubelet = self.kubelet.borrow_mut();
        for EndedContainers { namespace, name, containers } in ended {
            let name = pod_name(&namespace, &name);
            for (index, (container, state)) in containers.into_iter().enumerate() {
                match state {
                    ContainerState::Running => {}
                    ContainerState::Exited(_) if index == 0 => {
                        kubelet.died(&name);
                        break;
                    }
                    ContainerState::Exited(code) => {
                        kubelet.ended(&name, &container, Exit { code, message: String::new() }, now);
                    }
                }
            }
        }
    }

    /// Returns the uid of a pod, as `[NAMESPACE/]POD`, if it is a real one that lives.
    pub fn real_pod(&self, name: &str) -> Option<String> {
        self.kubelet.borrow().uid(name).filter(|uid| self.publisher.runtime.has(uid))
    }

    /// Tells whether a pod, `[NAMESPACE/]POD`, has ended for good.
    pub fn has_ended(&self, pod: &str) -> bool {
        self.kubelet.borrow().has_ended(pod)
    }

    /// Takes what became of pods that are not simulated; tells whether there was anything.
    pub fn take_runtime_news(&mut self, now: Instant) -> bool {
        let mut made = self.publisher.take_made_pods();
        if now >= self.next_look {
            self.next_look = now + LOOK;
            made.append(&mut self.publisher.follow_attached());
            let faults = self.publisher.follow_interfaces();
            self.warnings.extend(faults.iter().map(|error| with_sources(error)));
        }
        let any_made = !made.is_empty();
        for MadePod { pod, starts, again } in made {
            match (starts, again) {
                (Ok(starts), None) => {
                    self.warn_of_starts(&pod, &starts);
                    self.kubelet.borrow_mut().adopt(&pod, starts, now);
                }
                (Err(error), None) => self.give_up(&pod, &error, now),
                (Ok(starts), Some(again)) => {
                    let (name, mut kubelet) =
                        (pod_name(&pod.namespace, &pod.name), self.kubelet.borrow_mut());
                    let started = again.into_iter().zip(starts);
                    started.for_each(|(index, start)| kubelet.restarted(&name, index, start, now));
                }
                (Err(error), Some(again)) => {
                    self.put_off(&pod_name(&pod.namespace, &pod.name), &again, &error, now);
                }
            }
        }
        let news = match self.publisher.take_runtime_news() {
            Ok(news) => news,
            Err(error) => {
                self.warnings.push(with_sources(&error));
                return true;
            }
        };
        let mut kubelet = self.kubelet.borrow_mut();
        for piece in &news {
            match piece {
                News::Ended { pod, container, exit } => {
                    kubelet.ended(&pod_name(&pod.namespace, &pod.name), container, exit.clone(), now);
                }
                News::Died { pod } => kubelet.lost(&pod_name(&pod.namespace, &pod.name), now),
                News::Stopped { .. } => {}
            }
        }
        any_made || !news.is_empty()
    }

    /// Takes the next container that is to start again by now.
    pub fn take_restart(&mut self, now: Instant) -> Option<Restart> {
        loop {
            let (pod, index, container) = self.kubelet.borrow_mut().take_due(now)?;
            let lost = self.real_pod(&pod).filter(|uid| self.publisher.runtime.lost(uid).is_some());
            if let Some(uid) = lost {
                if let Err(error) = self.publisher.order_again(&uid, index) {
                    self.put_off(&pod, &[index], &error, now);
                }
                continue;
            }
            if let Some(place) = self.publisher.place(&pod).cloned() {
                let start = match self.real_pod(&pod) {
                    Some(uid) => Some(self.publisher.runtime.start(&uid, index)),
                    None => self.publisher.without_volume(&pod, &container),
                };
                return Some(Restart { place, container, start, pod, index });
            }
        }
    }

    /// Says that a pod whose sandbox died has no other one yet, for containers that were to start in it.
    fn put_off(&mut self, pod: &str, containers: &[usize], error: &PublishError, now: Instant) {
        let (message, mut kubelet) = (with_sources(error), self.kubelet.borrow_mut());
        containers.iter().for_each(|&index| kubelet.put_off(pod, index, &message, now));
        self.warnings.push(message);
    }

    /// Says how a restart went.
    pub fn restarted(&mut self, restart: &Restart, start: Start, now: Instant) {
        self.kubelet.borrow_mut().restarted(&restart.pod, restart.index, start, now);
    }

    /// Returns when a container is to start again.
    pub fn next_restart(&self) -> Option<Instant> {
        self.kubelet.borrow().next()
    }

    /// Has the status of pods written whose containers changed; tells whether there are any.
    pub(super) fn report_pods(&mut self) -> bool {
        let changed = self.kubelet.borrow_mut().take_unreported();
        let any = !changed.is_empty();
        changed.into_iter().for_each(|pod| self.start(Agent::Kubelet(pod)));
        any
    }

    /// Says why a pod is not there, here and in its status.
    pub(super) fn give_up(&mut self, pod: &Arc<PodView>, error: &PublishError, now: Instant) {
        let message = with_sources(error);
        let name = pod_name(&pod.namespace, &pod.name);
        if self.kubelet.borrow().misses(&name, &pod.uid, &message) {
            return;
        }
        let starts = pod.containers.iter().map(|_| Start::NoPod { message: message.clone() }).collect();
        self.kubelet.borrow_mut().adopt(pod, starts, now);
        // What this process lacks it lacks for all of them.
        let lacks = matches!(error, PublishError::Capabilities { .. });
        if !lacks || !std::mem::replace(&mut self.lacks_capabilities, true) {
            self.warnings.push(message);
        }
    }

    pub(super) fn warn_of_starts(&mut self, pod: &PodView, starts: &[Start]) {
        for (container, start) in pod.containers.iter().zip(starts) {
            let message = match start {
                Start::Runs => continue,
                Start::NoImage { message }
                | Start::NoPod { message }
                | Start::Failed(Exit { message, .. }) => message,
            };
            let pod = pod_name(&pod.namespace, &pod.name);
            self.warnings.push(format!("{pod}: container {} does not start: {message}", container.name));
        }
    }
}
