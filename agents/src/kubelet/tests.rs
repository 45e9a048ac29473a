//! A pod's life, call by call.

use serde_json::{Value, json};

use super::*;

const SECOND: u64 = 1_000_000_000;

fn pod(policy: &str, containers: &[&str]) -> Pod {
    let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
    let pod = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"nodeName": "node", "containers": containers, "restartPolicy": policy},
        "status": {"podIP": "10.1.15.2", "conditions": [{"type": "Ready", "status": "False"}]},
    });
    serde_json::from_value(pod).unwrap()
}

fn adopted(pod: &Pod, starts: &[Start]) -> Kubelet {
    let mut kubelet = Kubelet::default();
    kubelet.adopt(&Arc::new(PodView::read(pod).unwrap()), starts.to_vec(), Instant::ZERO);
    kubelet
}

fn exit(code: i32) -> Exit {
    Exit { code, message: String::new() }
}

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * SECOND)
}

/// The phase, whether the pod is ready, and a word for each container.
fn seen(kubelet: &Kubelet, pod: &Pod) -> String {
    let status = kubelet.status(pod).unwrap();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").unwrap();
    let mut text = format!("{} {}", status.phase.unwrap(), ready.status);
    for container in status.container_statuses.unwrap() {
        let state = container.state.unwrap();
        let word = state.waiting.and_then(|waiting| waiting.reason).or(state
            .terminated
            .map(|terminated| format!("{}({})", terminated.reason.unwrap(), terminated.exit_code)));
        text = format!("{text} {}*{}", word.as_deref().unwrap_or("runs"), container.restart_count);
    }
    text
}

#[test]
fn a_running_pod_is_ready_and_keeps_its_address() {
    let mut pod = pod("Always", &["a", "b"]);
    let mut kubelet = adopted(&pod, &[Start::Runs, Start::Runs]);
    assert_eq!(seen(&kubelet, &pod), "Running True runs*0 runs*0");
    assert_eq!(kubelet.take_unreported().len(), 1);
    assert_eq!(kubelet.take_unreported().len(), 0);
    pod.status = kubelet.status(&pod);
    assert_eq!(crate::pods::address(&pod), Some([10, 1, 15, 2].into()));
    assert_eq!(pod.status, kubelet.status(&pod));
    assert!(crate::pods::is_ready(&pod));
}

/// Kubernetes, "Container restarts": at once, then 10, 20, 40, 80, 160, 300, 300 seconds after each end; forgotten
/// after ten minutes of running.
#[test]
fn back_off_doubles_to_five_minutes_and_is_forgotten_after_ten() {
    let pod = pod("Always", &["a"]);
    let mut kubelet = adopted(&pod, &[Start::Runs]);
    let mut now = at(1);
    for wait in [0, 10, 20, 40, 80, 160, 300, 300] {
        kubelet.ended("n/p", "a", exit(1), now);
        let restart = now + Duration::from_secs(wait);
        assert_eq!(kubelet.next(), Some(restart));
        assert_eq!(kubelet.take_due(Instant::from_nanos(restart.as_nanos() - 1)), None);
        let (name, index, container) = kubelet.take_due(restart).unwrap();
        assert_eq!((&*name, index, &*container.name), ("n/p", 0, "a"));
        assert_eq!(seen(&kubelet, &pod).split('*').next(), Some("Running False CrashLoopBackOff"));
        kubelet.restarted(&name, index, Start::Runs, restart);
        now = restart + Duration::from_secs(599);
    }
    assert_eq!(seen(&kubelet, &pod), "Running True runs*8");
    kubelet.ended("n/p", "a", exit(0), now + Duration::from_secs(1));
    assert_eq!(kubelet.next(), Some(now + Duration::from_secs(1)));
}

#[test]
fn the_policy_says_which_ends_are_for_good() {
    for (policy, code, expected) in [
        ("Always", 0, "Running False CrashLoopBackOff*0 runs*0"),
        ("OnFailure", 0, "Running False Completed(0)*0 runs*0"),
        ("OnFailure", 3, "Running False CrashLoopBackOff*0 runs*0"),
        ("Never", 0, "Running False Completed(0)*0 runs*0"),
        ("Never", 3, "Running False Error(3)*0 runs*0"),
    ] {
        let pod = pod(policy, &["a", "b"]);
        let mut kubelet = adopted(&pod, &[Start::Runs, Start::Runs]);
        kubelet.ended("n/p", "a", exit(code), at(1));
        assert_eq!(seen(&kubelet, &pod), expected, "{policy} {code}");
        assert_eq!(kubelet.next().is_some(), expected.contains("BackOff"));
    }
}

#[test]
fn a_pod_whose_containers_have_all_ended_is_finished() {
    for (codes, phase) in [([0, 0], "Succeeded"), ([0, 1], "Failed"), ([1, 0], "Failed")] {
        let mut pod = pod("Never", &["a", "b"]);
        let mut kubelet = adopted(&pod, &[Start::Runs, Start::Runs]);
        kubelet.ended("n/p", "a", exit(codes[0]), at(1));
        kubelet.ended("n/p", "b", exit(codes[1]), at(1));
        pod.status = kubelet.status(&pod);
        assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some(phase));
        assert!(crate::pods::is_finished(&pod) && PodView::read(&pod).is_none());
    }
}

#[test]
fn a_pod_that_dies_whole_stays_dead() {
    let pod = pod("Always", &["a", "b"]);
    let mut kubelet = adopted(&pod, &[Start::Runs, Start::Runs]);
    kubelet.ended("n/p", "a", exit(1), at(1));
    kubelet.died("n/p");
    assert_eq!(seen(&kubelet, &pod), "Failed False Error(137)*0 Error(137)*0");
    assert_eq!(kubelet.next(), None);
}

/// As Kubernetes' kubelet does (`computePodActions`): another sandbox, unless no container may start; in it start all that may.
#[test]
fn a_pod_whose_sandbox_dies_goes_on_as_its_policy_says() {
    for (policy, expected, again) in [
        ("Always", "Running False CrashLoopBackOff*0 CrashLoopBackOff*0", &[0, 1][..]),
        ("OnFailure", "Running False Completed(0)*0 CrashLoopBackOff*0", &[1]),
        ("Never", "Failed False Completed(0)*0 Error(137)*0", &[]),
    ] {
        let pod = pod(policy, &["a", "b"]);
        let mut kubelet = adopted(&pod, &[Start::Runs, Start::Runs]);
        kubelet.ended("n/p", "a", exit(0), at(1));
        kubelet.lost("n/p", at(2));
        assert_eq!(seen(&kubelet, &pod), expected, "{policy}");
        assert_eq!(kubelet.has_ended("n/p"), again.is_empty());
        for &index in again {
            let (name, due, _) = kubelet.take_due(at(2)).unwrap();
            assert_eq!((&*name, due), ("n/p", index), "{policy}");
            kubelet.restarted("n/p", index, Start::Runs, at(2));
        }
        assert_eq!(kubelet.next(), None, "{policy}");
    }
}

#[test]
fn a_pod_whose_sandbox_dies_again_waits_and_has_the_waits_of_its_containers() {
    let pod = pod("Always", &["a", "b"]);
    let mut kubelet = adopted(&pod, &[Start::Runs, Start::Runs]);
    kubelet.ended("n/p", "a", exit(1), at(1));
    kubelet.take_due(at(1)).unwrap();
    kubelet.restarted("n/p", 0, Start::Runs, at(1));
    kubelet.lost("n/p", at(5));
    assert_eq!(kubelet.take_due(at(5)).unwrap().1, 1, "the one that had not ended before waits for nothing");
    kubelet.restarted("n/p", 1, Start::Runs, at(5));
    assert_eq!(seen(&kubelet, &pod), "Running False CrashLoopBackOff*1 runs*1");
    kubelet.lost("n/p", at(6));
    assert_eq!(kubelet.next(), Some(at(15)), "the other waits on");
    kubelet.forget("n/p");
    assert_eq!(kubelet.next(), None);
}

#[test]
fn a_pod_that_cannot_be_made_again_says_so_and_is_tried_later() {
    let pod = pod("Always", &["a"]);
    let mut kubelet = adopted(&pod, &[Start::Runs]);
    kubelet.lost("n/p", at(1));
    for (when, next) in [(1, 11), (11, 31), (31, 71)] {
        assert_eq!(kubelet.take_due(at(when)).unwrap().1, 0);
        kubelet.put_off("n/p", 0, "no namespaces", at(when));
        assert_eq!(seen(&kubelet, &pod), "Running False FailedCreatePodSandBox*0");
        assert_eq!(kubelet.next(), Some(at(next)));
    }
    kubelet.take_due(at(71)).unwrap();
    kubelet.restarted("n/p", 0, Start::Runs, at(71));
    assert_eq!(seen(&kubelet, &pod), "Running True runs*1", "only a start counts");
}

#[test]
fn a_container_that_cannot_start_says_why_and_tries_again_if_that_may_help() {
    let pod = pod("Always", &["a", "b"]);
    let failed = Start::Failed(Exit { code: 1, message: "address in use".into() });
    let mut kubelet = adopted(&pod, &[Start::Runs, failed.clone()]);
    assert_eq!(seen(&kubelet, &pod), "Running False runs*0 CrashLoopBackOff*0");
    let (name, index, _) = kubelet.take_due(Instant::ZERO).unwrap();
    kubelet.restarted(&name, index, failed, Instant::ZERO);
    assert_eq!(kubelet.next(), Some(at(10)));
    let containers = kubelet.status(&pod).unwrap().container_statuses.unwrap();
    let last = containers[1].last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.message.as_deref(), Some("address in use"));

    let unknown = Start::NoImage { message: "image x is not known".into() };
    let kubelet = adopted(&pod, &[Start::Runs, unknown]);
    assert_eq!(seen(&kubelet, &pod), "Pending False runs*0 ImagePullBackOff*0");
    assert_eq!(kubelet.next(), None);
    let unmade = Start::NoPod { message: "no namespaces".into() };
    let kubelet = adopted(&pod, &[unmade.clone(), unmade]);
    assert_eq!(seen(&kubelet, &pod), "Pending False FailedCreatePodSandBox*0 FailedCreatePodSandBox*0");
    assert_eq!(kubelet.next(), None);
}

#[test]
fn another_pod_of_the_name_is_not_spoken_for() {
    let pod = pod("Always", &["a"]);
    let mut kubelet = adopted(&pod, &[Start::Runs]);
    let mut successor = pod.clone();
    successor.metadata.uid = Some("v".into());
    assert_eq!(kubelet.status(&successor), None);
    kubelet.ended("n/p", "a", exit(1), at(1));
    kubelet.forget("n/p");
    assert_eq!((kubelet.next(), kubelet.status(&pod)), (None, None));
}
