//! What becomes of real pods and their containers, as their processes say it.
//!
//! The publisher asks between rounds of the agents. Invariants: what a program wrote before its end is in its log before that is told;
//! a pod has ended when all of its processes have.
//!
//! May depend on `ear` and [`super::container`]. Read first: `ear.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Runtime;
use super::ear::Ear;
use crate::kubelet::Exit;
use crate::pods::PodView;

/// How long programs are listened to before the control thread has other things to do.
const SHARE: Duration = Duration::from_millis(2);

/// What became of a real pod.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A container's program ended that nobody had told to.
    Ended {
        /// The pod.
        pod: Arc<PodView>,
        /// The container.
        container: String,
        /// How.
        exit: Exit,
    },
    /// What held a pod together ended, which nobody had told to; so have all of its processes. What is left of it is kept:
    /// [`Runtime::make_again`].
    Died {
        /// The pod.
        pod: Arc<PodView>,
    },
    /// A pod that was told to stop has.
    Stopped {
        /// The pod.
        pod: Arc<PodView>,
    },
}

impl Runtime {
    /// Takes what became of the pods since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        let Some(ear) = &mut self.ear else { return Vec::new() };
        ear.hear();
        let (mut news, end) = (Vec::new(), Instant::now() + SHARE);
        while let Some((uid, index)) = self.ear.as_mut().and_then(Ear::take_next) {
            match index {
                Some(index) => news.extend(self.look_at_container(uid, index)),
                None => news.extend(self.look_at_pod(uid)),
            }
            if Instant::now() >= end {
                break;
            }
        }
        for uid in self.stopping.clone() {
            news.extend(self.look_at_pod(uid));
        }
        news
    }

    fn look_at_container(&mut self, uid: String, index: usize) -> Option<News> {
        let (pod, ear) = (self.pods.get_mut(&uid)?, self.ear.as_mut()?);
        let (token, container) = pod.containers.get_mut(&index)?;
        let Some(exit) = container.look() else {
            if container.has_more() {
                ear.look_again((uid, Some(index)));
            }
            return None;
        };
        ear.forget(*token);
        let (_, container) = pod.containers.remove(&index)?;
        // With the pod all end.
        let is_news = pod.deadline.is_none() && !pod.sandbox.has_ended();
        is_news.then(|| News::Ended { pod: Arc::clone(&pod.view), container: container.name.clone(), exit })
    }

    fn look_at_pod(&mut self, uid: String) -> Option<News> {
        let pod = self.pods.get_mut(&uid)?;
        let has_ended = pod.sandbox.has_ended();
        if has_ended || pod.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            pod.containers.values_mut().for_each(|(_, container)| container.kill());
        }
        if !has_ended || !pod.containers.is_empty() {
            if pod.deadline.is_some() && pod.containers.is_empty() {
                // That takes the system a while, for many pods no longer than for one.
                pod.sandbox.end();
            }
            if has_ended {
                self.stopping.insert(uid);
            } else if pod.deadline.is_none() && !self.stirred.contains(&uid) {
                // Nothing else is heard of it.
                self.stirred.push_back(uid);
            }
            return None;
        }
        let pod = self.pods.remove(&uid)?;
        self.stopping.remove(&uid);
        if let Some(ear) = &mut self.ear {
            ear.forget(pod.token);
        }
        let (view, directory) = (Arc::clone(&pod.view), pod.directory.clone());
        if pod.deadline.is_none() {
            self.lose(pod);
            return Some(News::Died { pod: view });
        }
        // The one that waits for it is buried first.
        drop(pod);
        self.forget_files(directory);
        Some(News::Stopped { pod: view })
    }
}
