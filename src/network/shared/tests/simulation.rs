//! Nodes that share an etcd, in virtual time, and all that can happen to it, to them and to the way between, by seed.
//!
//! Nodes claim subnets, keep and lose them, and follow each other's, by the code that `flatnet node` runs; an embedded store is the etcd. Invariants
//! that are looked at after each step, of `notes/reliability`'s: nobody writes over another's lease; nobody believes to have what another has, once things
//! are calm; no route goes whose lease is there all the time. And at the end, within a bound after the last fault: each node's routes are the
//! leases that stand, and each wrong key has been named.
//!
//! Above 400 lines because what may happen and what must hold is one list.
//!
//! `FLATNET_SEEDS` says how many runs there are, `FLATNET_SEED` which is the only one.

mod etcd;

use std::collections::BTreeSet;
use std::rc::Rc;

use flatnet_agents::cluster::{Change, watch_cluster};
use flatnet_agents::store::{KeyValue, Op};
use flatnet_engine::tunnel::Encapsulation;
use futures::executor::LocalPool;
use futures::future::{Either, select};

use super::super::join::MARGIN;
use super::super::*;
use super::PREFIX;
use etcd::{Client, Way, World, now, standing};

/// Runs of a test run.
const SEEDS: u64 = 300;
const NETWORK: &str = "10.7.0.0/16";
const NODES: usize = 4;
/// How long after the last fault what nodes know is current: a route that has gone stays for ten seconds.
const CURRENT: Duration = Duration::from_secs(25);
/// How long after it each has its subnet again: a claim that failed is tried again after a minute.
const SETTLED: Duration = Duration::from_secs(100);

fn address(node: usize) -> Ipv4Addr {
    [192, 168, 66, 11 + u8::try_from(node).unwrap()].into()
}

fn key(name: &str) -> Arc<str> {
    format!("{}{name}", lease::subnets_prefix(PREFIX)).into()
}

/// What a process of a node's has; a kill drops it all, wherever each task of it waits.
struct Process {
    pool: LocalPool,
    claimed: Rc<RefCell<Option<Claimed>>>,
    part: Option<Rc<Part<Client>>>,
    into: Embedded,
    /// Each with when it came.
    routes: Rc<RefCell<BTreeMap<Ipv4Prefix, (Ipv4Addr, Instant)>>>,
    said: Vec<String>,
}

impl Process {
    /// Starts to claim a subnet, as often as it takes: whoever supervises it starts it again.
    fn start(world: &World, node: usize) -> Self {
        let (pool, claimed) = (LocalPool::new(), Rc::new(RefCell::new(None)));
        let (world, into) = (world.clone(), Rc::clone(&claimed));
        let seed = world.below(1 << 30) as u64;
        let claims = async move {
            let public_ip = address(node);
            let (wish, wanted, margin) = (None, None, None);
            let joining = Joining { prefix: PREFIX, address: public_ip, public_ip, wish, wanted, margin };
            loop {
                let client = world.client(node);
                if let Ok(claimed) = claim(&client, &joining, seed).await {
                    *into.borrow_mut() = Some(claimed);
                    return;
                }
                world.sleep(Duration::from_secs(1)).await;
            }
        };
        pool.spawner().spawn_local(claims).unwrap();
        Self { pool, claimed, part: None, into: Embedded::new(), routes: Rc::default(), said: Vec::new() }
    }

    /// Does what there is to do now.
    fn run(&mut self, world: &World, node: usize) {
        let claimed = self.claimed.borrow_mut().take();
        if let Some(claimed) = claimed {
            self.take_part(world, node, claimed);
        }
        let at = world.state().now;
        if let Some(part) = &self.part {
            self.said.extend(part.renew(&self.into, &self.pool.spawner(), at));
        }
        self.pool.run_until_stalled();
    }

    fn take_part(&mut self, world: &World, node: usize, claimed: Claimed) {
        world.say(format!("node {node} has {}", claimed.lease.subnet));
        let at = world.state().now;
        let part = Rc::new(Part::new(world.client(node), claimed, MARGIN, at));
        self.part = Some(Rc::clone(&part));
        let (time, into) = (world.clone(), self.into.clone());
        // As the network starts an agent again that the store failed.
        let restarts = async move {
            loop {
                let _ = part.follow(&into).await;
                time.sleep(Duration::from_secs(1)).await;
            }
        };
        let (world, into, routes) = (world.clone(), self.into.clone(), Rc::clone(&self.routes));
        let watches = async move {
            let sink = |change| match change {
                Change::Lease { subnet, holder } => {
                    let at = world.state().now;
                    routes.borrow_mut().insert(subnet, (holder.public_ip, at));
                }
                Change::LeaseRemoved { subnet } => {
                    let (_, since) = routes.borrow_mut().remove(&subnet).unwrap();
                    let mut state = world.state();
                    if state.absent.get(&subnet).is_some_and(|absent| *absent < since) {
                        let text = format!("node {node} drops the route to {subnet}, whose lease is there");
                        state.wrong.push(text);
                    }
                }
                Change::Node { .. }
                | Change::NodeRemoved { .. }
                | Change::Pod(_)
                | Change::PodRemoved(_)
                | Change::Service { .. }
                | Change::ServiceRemoved { .. }
                | Change::Warning(_) => {}
            };
            watch_cluster(&into, DEFAULT_PREFIX, Some(Encapsulation::Udp), sink).await
        };
        let tasks = async move {
            let (restarts, watches) = (std::pin::pin!(restarts), std::pin::pin!(watches));
            match select(restarts, watches).await {
                Either::Left((never, _)) => never,
                Either::Right((ended, _)) => drop(ended.unwrap()),
            }
        };
        self.pool.spawner().spawn_local(tasks).unwrap();
    }

    /// The subnet that it believes to have.
    fn believes(&self, at: Instant) -> Option<Ipv4Prefix> {
        let part = self.part.as_ref()?;
        let own = part.own.borrow();
        (!own.lost && own.until.is_none_or(|until| until > at)).then_some(part.subnet)
    }
}

/// A run.
struct Simulation {
    world: World,
    nodes: Vec<Option<Process>>,
    /// When the last fault ended or began.
    fault: Instant,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let world = World::new(seed, NODES);
        let config = lease::NetworkConfig::new(NETWORK.parse().unwrap()).unwrap();
        let config = Op::Put {
            key: lease::config_key(PREFIX).into(),
            value: config.to_json().into_bytes().into(),
            lease: None,
        };
        world.by_hand(vec![config]);
        let nodes = (0..NODES).map(|node| Some(Process::start(&world, node))).collect();
        Self { world, nodes, fault: Instant::ZERO }
    }

    fn now(&self) -> Instant {
        self.world.state().now
    }

    /// Lets time pass, and everybody act.
    fn pass(&mut self, time: Duration, step: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.world.advance(self.now() + step);
            for (node, process) in self.nodes.iter_mut().enumerate() {
                if let Some(process) = process {
                    process.run(&self.world, node);
                }
            }
            self.look();
        }
    }

    fn is_calm_for(&self, time: Duration) -> bool {
        let quiet = self.world.state().ways.iter().all(|way| *way == Way::default());
        quiet && self.now() >= self.fault + time
    }

    /// Looks at what must be so at any time.
    fn look(&self) {
        if self.is_calm_for(CURRENT) {
            let mut held = BTreeSet::new();
            for subnet in self.nodes.iter().flatten().filter_map(|process| process.believes(self.now())) {
                assert!(held.insert(subnet), "{subnet} has two owners");
            }
        }
        let wrong = self.world.state().wrong.clone();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// The key of a node's lease, if it has had one.
    fn key_of(&self, node: usize) -> Option<Arc<str>> {
        let part = self.nodes[node].as_ref()?.part.as_ref()?;
        Some(lease::subnet_key(PREFIX, part.subnet).into())
    }

    /// Has one thing happen.
    #[allow(clippy::too_many_lines, reason = "a few lines for each thing, as in a table")]
    fn happen(&mut self) {
        let world = self.world.clone();
        let (node, third) = (world.below(NODES), 100 + world.below(8));
        let other = key(&format!("10.7.{third}.0-24"));
        let put =
            |key: Arc<str>, value: String| Op::Put { key, value: value.into_bytes().into(), lease: None };
        let by = |last: usize| format!(r#"{{"PublicIP":"192.168.66.{}","PublicIPv6":null}}"#, 200 + last);
        let said = match world.below(16) {
            0 | 1 => {
                let is_cut = !world.state().ways[node].is_cut;
                world.state().ways[node].is_cut = is_cut;
                format!("node {node} is {}", if is_cut { "cut off" } else { "back" })
            }
            2 => {
                let mut state = world.state();
                let is_cut = !state.ways.iter().any(|way| way.is_cut);
                state.ways.iter_mut().for_each(|way| way.is_cut = is_cut);
                format!("the etcd is {}", if is_cut { "away" } else { "back" })
            }
            3 => {
                let (is_slow, is_lossy) = (world.below(2) == 0, world.below(2) == 0);
                let mut state = world.state();
                (state.ways[node].is_slow, state.ways[node].is_lossy) = (is_slow, is_lossy);
                format!("way of node {node}: slow {is_slow}, lossy {is_lossy}")
            }
            4 => {
                world.break_watches(node);
                format!("watch of node {node} breaks")
            }
            5 => {
                let store = world.state().store.clone();
                // What is forgotten already stays so.
                let _ = now(store.compact(store.revision()));
                "compaction".into()
            }
            6 => {
                world.keep_snapshot();
                "a snapshot is kept".into()
            }
            7 => format!("the snapshot is restored: {}", world.restore()),
            8 => match self.lease_of(node) {
                Some(lease) => {
                    now(world.state().store.clone().revoke(lease)).unwrap();
                    world.look();
                    format!("lease of node {node} is revoked")
                }
                None => return,
            },
            9 => match self.key_of(node) {
                Some(key) => {
                    world.by_hand(vec![Op::Delete { key: Arc::clone(&key) }]);
                    format!("{key} of node {node} is deleted")
                }
                None => return,
            },
            10 | 11 => {
                self.nodes[node] = match self.nodes[node] {
                    Some(_) => None,
                    None => Some(Process::start(&world, node)),
                };
                format!("node {node} is {}", if self.nodes[node].is_some() { "started" } else { "killed" })
            }
            12 => {
                let last = world.below(3);
                world.by_hand(vec![put(Arc::clone(&other), by(last))]);
                format!("{other} is put by {last}")
            }
            13 => {
                world.by_hand(vec![Op::Delete { key: Arc::clone(&other) }]);
                format!("{other} is deleted")
            }
            14 => self.litter(&other),
            _ => {
                world.say("hours pass".into());
                let hours = 1 + world.below(30) as u64;
                self.pass(Duration::from_secs(3600 * hours), Duration::from_secs(300));
                format!("{hours} hours have passed")
            }
        };
        self.world.say(said);
        self.fault = self.now();
    }

    fn lease_of(&self, node: usize) -> Option<LeaseId> {
        let key = self.key_of(node)?;
        let store = self.world.state().store.clone();
        now(store.get(&key)).unwrap()?.lease
    }

    /// Somebody writes what no node would have written, or removes it.
    fn litter(&self, other: &str) -> String {
        let good = r#"{"PublicIP":"192.168.66.250"}"#;
        let rubbish: [(Arc<str>, &str); 10] = [
            (key("garbage"), good),
            (key("10.7.0.0-16"), good),
            (key("0.0.0.0-0"), good),
            (key("10.7.100.0-22"), good),
            (key("10.7.101.128-25"), good),
            (key("192.168.0.0-24"), good),
            (key("10.7.300.0-24"), good),
            (key("10.7.150.0-24"), "{"),
            (key("10.7.151.0-24"), r#"{"PublicIP":"300.1.1.1"}"#),
            (other.into(), "\u{0}"),
        ];
        let (key, value) = rubbish[self.world.below(rubbish.len())].clone();
        let op = match self.world.below(3) {
            0 => Op::Delete { key: Arc::clone(&key) },
            _ => Op::Put { key: Arc::clone(&key), value: value.as_bytes().into(), lease: None },
        };
        self.world.by_hand(vec![op]);
        format!("{key} gets {value:?}, or goes")
    }

    /// Ends all faults, and looks at what all have come to.
    fn settle(&mut self) {
        self.world.state().ways.fill(Way::default());
        for node in 0..NODES {
            if self.nodes[node].is_none() {
                self.nodes[node] = Some(Process::start(&self.world, node));
            }
        }
        self.fault = self.now();
        self.world.say("all is well from here on".into());
        let before = self.world.entries();
        self.pass(CURRENT, Duration::from_millis(500));
        self.compare(|key| before.iter().any(|entry| entry.key == *key));
        self.pass(SETTLED - CURRENT, Duration::from_millis(500));
        self.compare(|_| true);
        let entries = self.world.entries();
        let standing = standing(&entries, None);
        for (node, process) in self.nodes.iter().enumerate() {
            let process = process.as_ref().unwrap();
            let Some(part) = &process.part else {
                let is_full = standing.contains_key(&NETWORK.parse().unwrap());
                assert!(is_full, "node {node} has no subnet");
                continue;
            };
            let subnet = part.subnet;
            let has = |entry: &KeyValue| lease::parse_lease(PREFIX, &entry.key, &entry.value).ok();
            let is_own =
                |lease: lease::Lease| lease.subnet == subnet && lease.attributes.public_ip == address(node);
            let is_held = entries.iter().filter_map(has).any(is_own);
            assert_eq!(process.believes(self.now()).is_some(), is_held, "node {node}: {:?}", process.said);
        }
    }

    /// Each node has the routes whose leases stand, among those to be looked at, and has named what is no lease.
    fn compare(&self, is_looked_at: impl Fn(&Arc<str>) -> bool) {
        let entries = self.world.entries();
        for (node, process) in self.nodes.iter().enumerate() {
            let process = process.as_ref().unwrap();
            let Some(part) = &process.part else { continue };
            let expected = standing(&entries, Some(part.subnet));
            let routes = process.routes.borrow();
            for entry in entries.iter().filter(|entry| is_looked_at(&entry.key)) {
                let subnet = lease::parse_subnet_key(PREFIX, &entry.key);
                let is_readable = Attributes::from_json(&entry.value).is_ok();
                let is_own = subnet.as_ref().is_ok_and(|subnet| *subnet == part.subnet);
                let Some(holder) = subnet.as_ref().ok().and_then(|subnet| expected.get(subnet)) else {
                    let is_named = process.said.iter().any(|said| said.contains(&*entry.key));
                    assert!(is_own || is_named, "node {node} has not named {}", entry.key);
                    continue;
                };
                let route = routes.get(subnet.as_ref().unwrap()).map(|(holder, _)| holder);
                assert!(!is_readable || route == Some(holder), "node {node}: {} is {route:?}", entry.key);
            }
            for (subnet, holder) in routes.iter() {
                // What cannot be read is as it was read last, and so is what that overlaps.
                let is_unreadable = |key: &str| {
                    lease::parse_subnet_key(PREFIX, key).is_ok_and(|other| other.overlaps(*subnet))
                        && entries
                            .iter()
                            .any(|entry| *entry.key == *key && Attributes::from_json(&entry.value).is_err())
                };
                let is_excused = entries.iter().any(|entry| is_unreadable(&entry.key));
                assert!(
                    is_excused || expected.contains_key(subnet),
                    "node {node} has {subnet} by {holder:?}"
                );
            }
        }
    }
}

/// Runs one seed.
fn run(seed: u64) {
    let mut simulation = Simulation::new(seed);
    let world = simulation.world.clone();
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..5 + world.below(20) {
            let time = Duration::from_millis(100 << world.below(9));
            simulation.pass(time, Duration::from_millis(100));
            simulation.happen();
        }
        simulation.settle();
    }));
    if let Err(failed) = failed {
        let trail = world.state().trail.join("\n");
        eprintln!("{trail}\nFLATNET_SEED={seed} cargo test --lib simulation repeats it");
        std::panic::resume_unwind(failed);
    }
}

#[test]
fn whatever_happens_no_subnet_has_two_owners_and_routes_are_what_leases_say() {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match setting("FLATNET_SEED") {
        Some(seed) => run(seed),
        None => (0..setting("FLATNET_SEEDS").unwrap_or(SEEDS)).for_each(run),
    }
}
