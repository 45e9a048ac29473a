//! The node's part in a pod's life: which containers run, which start again and when, and the status that says so.
//!
//! Whoever runs pods tells a [`Kubelet`] what was placed, what ended and what started again; it tells what is to start
//! when, and writes the status. Pure: no store, no clock, no engine.
//!
//! Invariants: a pod whose containers have all ended for good is `Succeeded` or `Failed` and stays so; a container that
//! may start again does so at once the first time, then after 10, 20, 40, 80, 160 and 300 seconds; after ten minutes
//! without an end the count begins anew. The file has its lines because the calls of one life are read together.
//!
//! May depend on [`crate::cluster`], `k8s-openapi`.
//!
//! Read first: the pod lifecycle of Kubernetes, "Container restarts".

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flatnet_engine::clock::Instant;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, Pod, PodCondition, PodStatus,
};

use crate::{
    objects::{self, ObjectError, pod_name},
    pods::{PodView, RestartPolicy},
    store::{Revision, Store},
};

/// The wait before a container's second restart; it doubles with each.
const BACK_OFF: Duration = Duration::from_secs(10);
/// The longest wait.
const BACK_OFF_LIMIT: Duration = Duration::from_secs(300);
/// A container that ran for so long has its waits forgotten.
const BACK_OFF_RESET: Duration = Duration::from_secs(600);
/// Exit code of what ends with its pod, as SIGKILL gives.
pub(crate) const KILLED: i32 = 137;

/// How a container's start went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It runs.
    Runs,
    /// Its image is not known; trying again would not help.
    NoImage {
        /// What people should read.
        message: String,
    },
    /// Its pod cannot be made.
    NoPod {
        /// What people should read.
        message: String,
    },
    /// It ended before it ran.
    Failed(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code.
    pub code: i32,
    /// What people should read; may be empty.
    pub message: String,
}

/// The pods of the nodes that this process runs.
#[derive(Debug, Default)]
pub struct Kubelet {
    /// By `[NAMESPACE/]POD`.
    pods: BTreeMap<String, Life>,
    /// Whose status is to be written.
    unreported: BTreeSet<String>,
    /// Which containers start again when.
    waiting: BTreeSet<(Instant, String, usize)>,
}

#[derive(Debug)]
struct Life {
    view: Arc<PodView>,
    containers: Vec<Tracked>,
}

/// A container in its pod's life.
#[derive(Debug)]
struct Tracked {
    state: State,
    restarts: i32,
    /// How it ended last.
    last: Option<Exit>,
    /// When it started last.
    since: Instant,
    /// The wait before its next restart.
    wait: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Running,
    /// Its image is not known.
    NoImage(String),
    /// Its pod is not there.
    NoPod(String),
    /// It starts again after this wait.
    BackingOff(Duration),
    /// It ended for good.
    Ended,
}

impl Kubelet {
    /// Takes a pod that was placed; `starts` has one entry for each of its containers, in order.
    pub fn adopt(&mut self, view: &Arc<PodView>, starts: Vec<Start>, now: Instant) {
        let name = pod_name(&view.namespace, &view.name);
        self.forget(&name);
        let fresh =
            || Tracked { state: State::Running, restarts: 0, last: None, since: now, wait: Duration::ZERO };
        let containers = starts.iter().map(|_| fresh()).collect();
        self.pods.insert(name.clone(), Life { view: Arc::clone(view), containers });
        for (index, start) in starts.into_iter().enumerate() {
            self.started(&name, index, start, now);
        }
        self.unreported.insert(name);
    }

    /// Forgets a pod that is no longer on the network.
    pub fn forget(&mut self, name: &str) {
        self.pods.remove(name);
        self.unreported.remove(name);
        self.waiting.retain(|(_, waiting, _)| waiting != name);
    }

    /// Says that a container that ran has ended; one that did not run is left as it is.
    pub fn ended(&mut self, name: &str, container: &str, exit: Exit, now: Instant) {
        let Some(life) = self.pods.get(name) else { return };
        let Some(index) = life.view.containers.iter().position(|other| other.name == container) else {
            return;
        };
        self.end(name, index, exit, now);
    }

    /// Says that what held a real pod together died, and with it the containers that ran. Those that may start again do, each after
    /// its wait, in what the pod is given then; without one that may the pod is given nothing, and has ended.
    pub fn lost(&mut self, name: &str, now: Instant) {
        let count = self.pods.get(name).map_or(0, |life| life.containers.len());
        for index in 0..count {
            self.end(name, index, Exit { code: KILLED, message: String::new() }, now);
        }
    }

    /// Says that a container cannot start again yet because its pod cannot be made; that is tried after its wait, and is no start.
    pub fn put_off(&mut self, name: &str, index: usize, message: &str, now: Instant) {
        let tracked = self.pods.get_mut(name).and_then(|life| life.containers.get_mut(index));
        let Some(tracked) = tracked else { return };
        tracked.state = State::NoPod(message.to_owned());
        self.waiting.insert((now + tracked.wait, name.to_owned(), index));
        tracked.wait = (tracked.wait * 2).clamp(BACK_OFF, BACK_OFF_LIMIT);
        self.unreported.insert(name.to_owned());
    }

    /// Says that a simulated pod died whole; whatever its policy, it stays dead.
    pub fn died(&mut self, name: &str) {
        let Some(life) = self.pods.get_mut(name) else { return };
        for tracked in &mut life.containers {
            if tracked.state != State::Ended {
                tracked.last = Some(Exit { code: KILLED, message: String::new() });
            }
            tracked.state = State::Ended;
        }
        self.waiting.retain(|(_, waiting, _)| waiting != name);
        self.unreported.insert(name.to_owned());
    }

    fn end(&mut self, name: &str, index: usize, exit: Exit, now: Instant) {
        let Some(life) = self.pods.get_mut(name) else { return };
        let policy = life.view.restart_policy;
        let Some(tracked) = life.containers.get_mut(index).filter(|tracked| tracked.state == State::Running)
        else {
            return;
        };
        if now.saturating_duration_since(tracked.since) >= BACK_OFF_RESET {
            tracked.wait = Duration::ZERO;
        }
        let again = match policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit.code != 0,
            RestartPolicy::Never => false,
        };
        tracked.last = Some(exit);
        if again {
            tracked.state = State::BackingOff(tracked.wait);
            self.waiting.insert((now + tracked.wait, name.to_owned(), index));
            tracked.wait = (tracked.wait * 2).clamp(BACK_OFF, BACK_OFF_LIMIT);
        } else {
            tracked.state = State::Ended;
        }
        self.unreported.insert(name.to_owned());
    }

    /// Returns a pod's uid.
    pub fn uid(&self, name: &str) -> Option<String> {
        self.pods.get(name).map(|life| life.view.uid.clone())
    }

    /// Tells whether it was said of a pod that it is not there, with these words.
    pub fn misses(&self, name: &str, uid: &str, words: &str) -> bool {
        let life = self.pods.get(name).filter(|life| life.view.uid == uid);
        let says = |tracked: &Tracked| matches!(&tracked.state, State::NoPod(said) if said == words);
        life.is_some_and(|life| life.containers.iter().all(says))
    }

    /// Tells whether a pod's containers have all ended for good.
    pub fn has_ended(&self, name: &str) -> bool {
        self.pods
            .get(name)
            .is_some_and(|life| life.containers.iter().all(|tracked| tracked.state == State::Ended))
    }

    /// Returns when a container is to start again.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.first().map(|&(when, _, _)| when)
    }

    /// Takes the next container that is to start again by now: its pod, its place in the pod, what it runs. How that
    /// went is to be said by [`Kubelet::restarted`].
    pub fn take_due(&mut self, now: Instant) -> Option<(String, usize, Container)> {
        while self.waiting.first().is_some_and(|&(when, _, _)| when <= now) {
            let (_, name, index) = self.waiting.pop_first()?;
            let container = self.pods.get(&name).and_then(|life| life.view.containers.get(index)).cloned();
            if let Some(container) = container {
                return Some((name, index, container));
            }
        }
        None
    }

    /// Says how a container's restart went.
    pub fn restarted(&mut self, name: &str, index: usize, start: Start, now: Instant) {
        if let Some(tracked) = self.pods.get_mut(name).and_then(|life| life.containers.get_mut(index)) {
            tracked.restarts += 1;
            self.started(name, index, start, now);
            self.unreported.insert(name.to_owned());
        }
    }

    fn started(&mut self, name: &str, index: usize, start: Start, now: Instant) {
        let tracked = self.pods.get_mut(name).and_then(|life| life.containers.get_mut(index));
        let Some(tracked) = tracked else { return };
        tracked.since = now;
        match start {
            Start::Runs => tracked.state = State::Running,
            Start::NoImage { message } => tracked.state = State::NoImage(message),
            Start::NoPod { message } => tracked.state = State::NoPod(message),
            Start::Failed(exit) => {
                tracked.state = State::Running;
                self.end(name, index, exit, now);
            }
        }
    }

    /// Has the status of all pods written, where somebody wrote another.
    pub fn report_all(&mut self) {
        self.unreported.extend(self.pods.keys().cloned());
    }

    /// Takes the pods whose status is to be written.
    pub fn take_unreported(&mut self) -> Vec<Arc<PodView>> {
        let names = std::mem::take(&mut self.unreported);
        names.iter().filter_map(|name| Some(Arc::clone(&self.pods.get(name)?.view))).collect()
    }

    /// Makes a pod's status; address and other fields stay. `None` if it is not one of these pods.
    pub fn status(&self, pod: &Pod) -> Option<PodStatus> {
        let life = self.pods.get(&pod_name(objects::namespace(pod), objects::name(pod)))?;
        if pod.metadata.uid.as_deref().unwrap_or_default() != life.view.uid {
            return None;
        }
        let mut status = pod.status.clone().unwrap_or_default();
        let phase = life.phase();
        let ready = life.containers.iter().all(|tracked| tracked.state == State::Running);
        let conditions = status.conditions.get_or_insert_default();
        for (kind, value) in
            [("PodScheduled", true), ("Initialized", true), ("ContainersReady", ready), ("Ready", ready)]
        {
            set_condition(conditions, kind, value, (!value).then(|| unready_reason(phase)));
        }
        status.phase = Some(phase.into());
        let containers = life.view.containers.iter().zip(&life.containers);
        status.container_statuses =
            Some(containers.map(|(container, tracked)| life.container_status(container, tracked)).collect());
        Some(status)
    }
}

impl Life {
    /// The phase, as Kubernetes' kubelet finds it.
    fn phase(&self) -> &'static str {
        let mut states = self.containers.iter().map(|tracked| &tracked.state);
        // One that ran before waits in a pod that runs.
        let mut pending = self.containers.iter().filter(|tracked| tracked.last.is_none());
        let codes = || self.containers.iter().filter_map(|tracked| tracked.last.as_ref());
        if states.all(|state| *state == State::Ended) {
            if codes().all(|exit| exit.code == 0) { "Succeeded" } else { "Failed" }
        } else if pending.any(|tracked| matches!(tracked.state, State::NoImage(_) | State::NoPod(_))) {
            "Pending"
        } else {
            "Running"
        }
    }

    fn container_status(&self, container: &Container, tracked: &Tracked) -> ContainerStatus {
        let running = tracked.state == State::Running;
        let last = tracked.last.as_ref().map(terminated);
        let (state, last_state) = match &tracked.state {
            State::Running => {
                let running = Some(ContainerStateRunning::default());
                (ContainerState { running, ..ContainerState::default() }, last)
            }
            State::NoImage(message) => (waiting("ImagePullBackOff", message.clone()), last),
            State::NoPod(message) => (waiting("FailedCreatePodSandBox", message.clone()), last),
            State::BackingOff(wait) => {
                let PodView { namespace, name, uid, .. } = &*self.view;
                let message = format!(
                    "back-off {}s restarting failed container={} pod={name}_{namespace}({uid})",
                    wait.as_secs(),
                    container.name
                );
                (waiting("CrashLoopBackOff", message), last)
            }
            State::Ended => (last.unwrap_or_default(), None),
        };
        ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            ready: running,
            started: Some(running),
            restart_count: tracked.restarts,
            state: Some(state),
            last_state,
            ..ContainerStatus::default()
        }
    }
}

fn unready_reason(phase: &str) -> &'static str {
    match phase {
        "Succeeded" => "PodCompleted",
        "Failed" => "PodFailed",
        _ => "ContainersNotReady",
    }
}

fn set_condition(conditions: &mut Vec<PodCondition>, kind: &str, value: bool, reason: Option<&str>) {
    let condition = PodCondition {
        type_: kind.into(),
        status: if value { "True" } else { "False" }.into(),
        reason: reason.map(Into::into),
        ..PodCondition::default()
    };
    match conditions.iter_mut().find(|other| other.type_ == kind) {
        Some(other) => *other = condition,
        None => conditions.push(condition),
    }
}

fn waiting(reason: &str, message: String) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.into()), message: Some(message) };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(exit: &Exit) -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: exit.code,
        reason: Some(if exit.code == 0 { "Completed" } else { "Error" }.into()),
        message: (!exit.message.is_empty()).then(|| exit.message.clone()),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// Writes a pod's status as `status` makes it from the pod. `None` if there is no such pod or nothing changes.
///
/// # Errors
/// [`ObjectError::Conflict`] if somebody else wrote the pod meanwhile: call again; [`ObjectError::Store`].
pub async fn report(
    store: &impl Store,
    namespace: &str,
    name: &str,
    status: impl FnOnce(&Pod) -> Option<PodStatus>,
) -> Result<Option<Revision>, ObjectError> {
    let Some(mut pod) = objects::get::<Pod>(store, namespace, name).await? else { return Ok(None) };
    let status = status(&pod);
    if status.is_none() || pod.status == status {
        return Ok(None);
    }
    pod.status = status;
    objects::update(store, &pod).await.map(Some)
}
