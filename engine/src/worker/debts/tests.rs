//! Who asks whom, who is answered, and who is forgotten.

use super::*;
use crate::clock::Instant;
use crate::control::{Control, EngineConfig};
use crate::link::{Link, RingsPeer, rings};
use crate::worker::SMALL_BATCH;

/// Two workers, and a port with rings that is the first's.
fn port() -> (Control, Vec<Worker>, PortId, RingsPeer) {
    let config = EngineConfig { workers: 2, small_buffers: 256, ..EngineConfig::default() };
    let (mut control, mut workers) = Control::build(&config).unwrap();
    let switch = control.add_switch("192.168.66.0/24").unwrap();
    let (link, peer) = rings(64);
    let port = control.attach(switch, "pod", None, 0, Link::Rings(link)).unwrap();
    workers[0].run_batch(Instant::ZERO);
    (control, workers, port, peer)
}

#[test]
fn a_port_waits_for_all_whom_it_owes() {
    let mut creditors = [1, 2].map(|worker| Creditor { worker, state: Asked::Allowed });
    creditors[1].state = Asked::Waits;
    assert!(!spend(&mut creditors));
    assert_eq!(creditors[0].state, Asked::Allowed, "what is allowed is kept meanwhile");
    creditors[1].state = Asked::Allowed;
    assert!(spend(&mut creditors));
    assert!(!spend(&mut creditors), "each batch anew");
}

#[test]
fn each_answer_is_for_a_small_batch() {
    let (mut control, mut workers, port, mut peer) = port();
    for _ in 0..BATCH_LIMIT {
        peer.to_node.push(control.pool.allocate(60).unwrap()).unwrap();
    }
    let (worker, mut frames) = (&mut workers[0], Vec::new());
    worker.begin_to_ask(port, 1);
    let mut take = |worker: &mut Worker| {
        worker.ready.clear();
        worker.take_batch(port, 0, &mut frames);
        let count = frames.len();
        frames.drain(..).for_each(|frame| worker.pool.free(frame));
        count
    };
    for _ in 0..2 {
        assert_eq!((take(worker), worker.ready.len()), (0, 0), "it waits");
        worker.hear_answer(port, 1, Permission::Batch);
        assert_eq!(worker.ready, [port], "it goes on, though nothing else comes");
        assert_eq!(take(worker), SMALL_BATCH);
    }
    assert_eq!((take(worker), worker.ready.len()), (0, 0));
    worker.hear_answer(port, 1, Permission::Free);
    assert_eq!(worker.ready, [port]);
    assert_eq!(take(worker), BATCH_LIMIT - 2 * SMALL_BATCH, "it need not ask any more");
}

#[test]
fn who_asks_is_answered_before_the_worker_sleeps() {
    let (_control, mut workers, port, _peer) = port();
    let worker = &mut workers[1];
    worker.run_batch(Instant::ZERO);
    assert_eq!(worker.next_event(Instant::ZERO), None);
    worker.hear_question(port);
    assert_eq!(worker.next_event(Instant::ZERO), Some(Instant::ZERO));
    assert_eq!(worker.run_batch(Instant::ZERO), 1, "the answer");
    assert!(!worker.strangers.are_asking());
}

/// What each owes is little when the next one comes.
#[test]
fn several_floods_are_told_apart() {
    let (mut strangers, mut told) = (Strangers::default(), [0; 3]);
    for _ in 0..BATCH_LIMIT {
        for (port, told) in (0..).zip(&mut told) {
            *told += u32::from(strangers.charge(PortId(port), NEW_FLOW, 0));
        }
    }
    assert_eq!(told, [1; 3], "each once");
}

#[test]
fn who_owes_little_is_forgotten_for_others() {
    let mut strangers = Strangers::default();
    for _ in 0..BATCH_LIMIT {
        strangers.charge(PortId(0), NEW_FLOW, 0);
    }
    for port in 1..10_000 {
        strangers.charge(PortId(port), 1, 0);
        assert!(strangers.debtors.len() <= DEBTORS);
    }
    assert!(strangers.debtors.contains_key(&PortId(0)), "who owes much is not");
}

/// What was on its way when the port was told to ask is owed, too, and once only.
#[test]
fn a_burst_is_owed_until_the_port_asks() {
    let (mut strangers, port) = (Strangers::default(), PortId(0));
    let owed = |strangers: &mut Strangers| {
        let mut debt = std::mem::take(&mut strangers.debtors.get_mut(&port).unwrap().debt);
        let work = (0..).step_by(1 << 12).find(|&work| debt.batch_limit(work) == BATCH_LIMIT);
        work.unwrap()
    };
    // More than both limits.
    let flood = |strangers: &mut Strangers| {
        for _ in 0..3_000 {
            strangers.charge(port, NEW_FLOW, 0);
        }
        owed(strangers)
    };
    let before = flood(&mut strangers);
    strangers.ask(port);
    let after = flood(&mut strangers);
    assert!(before > BURST_LIMIT / 2 && after < DEBT_LIMIT, "{before}, {after}");
}
