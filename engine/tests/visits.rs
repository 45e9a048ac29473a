//! Visits to a worker that runs on a thread of its own.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flatnet_engine::clock::Clock;
use flatnet_engine::control::{Control, EngineConfig};
use flatnet_engine::link::{Link, rings};
use flatnet_engine::mailbox::Post;
use flatnet_engine::tables::{Port, PortId, Role};
use flatnet_engine::worker::Worker;

#[test]
fn a_visit_sees_what_was_published_before_it_was_sent() {
    let config = EngineConfig { workers: 1, small_buffers: 16, large_buffers: 0, ..EngineConfig::default() };
    let (mut control, mut workers) = Control::build(&config).unwrap();
    let node = control.add_switch("switch").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (mut worker, stopped) = (workers.pop().unwrap(), Arc::clone(&stop));
    let thread = std::thread::spawn(move || worker.run(&Clock::start(), &stopped));
    let mut unseen = 0;
    for number in 0..20_000 {
        // Odd pauses, so that visits arrive at every moment of a batch.
        for _ in 0..number % 97 {
            std::hint::spin_loop();
        }
        let port = PortId(number);
        let role = Role::Bridge(None);
        control.tables.publish(|tables| {
            tables.remove_port(PortId(number.wrapping_sub(1)));
            tables.add_port(port, Port { node, worker: 0, name: Arc::from("machine"), role });
        });
        let (link, _peer) = rings(1);
        let attached = control.posts[0].visit(move |worker| {
            let attached = worker.attach(port, Link::Rings(link));
            worker.detach(port);
            attached
        });
        unseen += u32::from(!attached.unwrap().recv_timeout(Duration::from_secs(5)).unwrap());
    }
    stop.store(true, Ordering::Release);
    thread.join().unwrap();
    assert_eq!(unseen, 0, "ports that were published and could not be attached");
}

/// How often the worker's thread has slept so far, as it says itself.
fn sleeps(post: &Post) -> u64 {
    let count = |_: &mut Worker| {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    post.visit(count).unwrap().recv().unwrap()
}

/// How often at most a thread waits that does not sleep.
const OTHER_WAITS: u64 = 20;

#[test]
fn a_worker_without_work_sleeps_when_it_has_looked_for_long_enough() {
    for poll in [Duration::ZERO, Duration::from_secs(3600)] {
        let config = EngineConfig { workers: 1, poll, ..EngineConfig::default() };
        let (control, mut workers) = Control::build(&config).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (mut worker, stopped) = (workers.remove(0), Arc::clone(&stop));
        let thread = std::thread::spawn(move || worker.run(&Clock::start(), &stopped));
        let post = &control.posts[0];
        let (first, end) = (sleeps(post), Instant::now() + Duration::from_secs(10));
        let mut asked = 0;
        let has_slept = loop {
            asked += 1;
            // The system has a thread wait for other things, too, such as memory.
            if sleeps(post) > first + OTHER_WAITS {
                break true;
            }
            let is_enough = if poll > Duration::ZERO { asked >= 1000 } else { Instant::now() > end };
            if is_enough {
                break false;
            }
        };
        stop.store(true, Ordering::Release);
        post.alarm.ring();
        thread.join().unwrap();
        assert_eq!(has_slept, poll == Duration::ZERO, "{poll:?}");
    }
}
