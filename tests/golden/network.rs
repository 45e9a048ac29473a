//! A topology brought up as the command does, in virtual time, whose machines are silent: they send what a row records, and
//! what comes to them is recorded.
//!
//! Instead of a simulated pod there is a pair of rings at its port. So nobody listens at a point, and known flows take the
//! cached path.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use flatnet::drive::Drive;
use flatnet::ledger;
use flatnet::topology::{self, TimeMode, Topology};
use flatnet::views::LedgerReport;
use flatnet_engine::clock::Instant;
use flatnet_engine::link::{Link, RingsPeer, rings};
use flatnet_engine::tables::{NodeId, PortId};
use flatnet_engine::trace::Point;
use pnet_base::MacAddr;

use crate::frames::{self, Machine, Packet, Recorded, mac};

/// What a ring of a machine holds.
const RING: usize = 8192;

/// Counters of nodes by name, those that are not zero.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;

pub struct Network {
    pub drive: Drive,
    /// In the order in which frames of one instant are recorded.
    machines: BTreeMap<String, RingsPeer>,
    seen: Vec<Recorded>,
    began: Instant,
}

impl Network {
    /// Brings a topology up, makes its machines silent but for those that stay alive, and lets its hosts and neighbours know each other.
    pub fn start(name: &str, workers: u16, alive: &[&str]) -> Self {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/topologies/{name}.yaml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let (mut topology, _) = topology::parse(&[(path, text)]).unwrap_or_else(|error| panic!("{error:?}"));
        topology.workers = Some(workers);
        let drive = Drive::start(&topology, TimeMode::Virtual).unwrap();
        let mut network = Self { drive, machines: BTreeMap::new(), seen: Vec::new(), began: Instant::ZERO };
        let places: Vec<_> = network
            .drive
            .network
            .publisher
            .places()
            .map(|(name, place)| (name.to_owned(), place.clone()))
            .collect();
        for (name, place) in places.into_iter().filter(|(name, _)| !alive.contains(&name.as_str())) {
            network.take_over(&name, place.port, place.worker);
        }
        network.introduce(&topology);
        network.pass(Duration::from_secs(1));
        network.seen.clear();
        network.began = network.drive.now();
        network
    }

    /// Has everybody meet everybody once, so that no row has to wait for ARP: hosts ask for whom they reach, and every
    /// machine sends an echo to every other by way of the nodes.
    fn introduce(&mut self, topology: &Topology) {
        let routers = topology.routers.iter().flat_map(|router| &router.interfaces);
        let nodes: Vec<_> = topology.nodes.iter().map(|node| &node.interface).collect();
        let near: Vec<_> = routers.chain(nodes.iter().copied()).map(|it| (it.address, it.network)).collect();
        let mut frames = Vec::new();
        for host in &topology.hosts {
            let own = host.interface.address;
            for &(address, _) in near.iter().filter(|(_, network)| network.contains(own)) {
                frames.push((host.name.clone(), frames::arp(1, (mac(own), own), (MacAddr::zero(), address))));
            }
            for node in &nodes {
                let gateway = host.gateway.unwrap_or(node.address);
                frames.push((host.name.clone(), echo(own, gateway, node.address)));
            }
        }
        let publisher = &self.drive.network.publisher;
        let pods = publisher.places().filter(|(_, place)| place.node.is_some());
        let pods: Vec<_> = pods.map(|(name, place)| (name.to_owned(), place.address)).collect();
        for (name, own) in &pods {
            let [a, b, c, _] = own.octets();
            let others = pods.iter().filter(|(_, other)| other.octets()[..3] != [a, b, c]);
            frames.extend(
                others.map(|(_, other)| (name.clone(), echo(*own, Ipv4Addr::new(a, b, c, 1), *other))),
            );
        }
        frames.retain(|(machine, _)| self.machines.contains_key(machine));
        frames.iter().for_each(|(machine, bytes)| self.send(machine, bytes));
    }

    /// Puts a pair of rings in the place of whoever is at a port.
    fn take_over(&mut self, name: &str, port: PortId, worker: u8) {
        let (link, peer) = rings(RING);
        assert!(self.drive.ask(worker, move |worker| worker.attach(port, Link::Rings(link))).unwrap());
        self.machines.insert(name.to_owned(), peer);
    }

    /// Attaches a machine that nobody has declared to node-1's docker0.
    pub fn attach_stranger(&mut self, machine: Machine) {
        let (link, peer) = rings(RING);
        let publisher = &mut self.drive.network.publisher;
        let node = publisher.node("node-1").unwrap();
        publisher.control.attach(node, machine.name, None, 0, Link::Rings(link)).unwrap();
        self.machines.insert(machine.name.to_owned(), peer);
        self.drive.settle();
    }

    /// Has every frame decided about and applied step by step: somebody listens everywhere.
    pub fn decide_always(&mut self) {
        let nodes = self.drive.network.publisher.control.tables.current().nodes.len();
        for node in (0..nodes as u16).map(NodeId) {
            for point in [Point::Bridge, Point::Interface(0), Point::Interface(1)] {
                self.drive.ask_all(move |worker| worker.listen(u32::MAX, node, point)).unwrap();
            }
        }
    }

    /// Begins the recording, with the counters as they are.
    pub fn begin(&mut self) -> Counters {
        self.collect();
        self.seen.clear();
        self.began = self.drive.now();
        self.counters()
    }

    /// Lets time pass to so long after the beginning.
    pub fn pass_to(&mut self, time: Duration) {
        let left = (self.began + time).saturating_duration_since(self.drive.now());
        self.pass(left);
    }

    pub fn pass(&mut self, duration: Duration) {
        let mut machines = std::mem::take(&mut self.machines);
        let (mut seen, began) = (std::mem::take(&mut self.seen), self.began);
        self.drive.wait_for(duration, |drive| {
            take(drive, &mut machines, &mut seen, began);
            None::<()>
        });
        (self.machines, self.seen) = (machines, seen);
    }

    /// Has a machine send a frame.
    pub fn send(&mut self, machine: &str, bytes: &[u8]) {
        let control = &mut self.drive.network.publisher.control;
        control.collect_buffers();
        let mut frame = control.pool.allocate(bytes.len()).unwrap();
        control.arena().open(&mut frame).bytes_mut().copy_from_slice(bytes);
        self.machines.get_mut(machine).unwrap().to_node.push(frame).unwrap();
        self.collect();
    }

    /// Does what there is to do now and takes what comes to the machines.
    fn collect(&mut self) {
        self.drive.settle();
        take(&mut self.drive, &mut self.machines, &mut self.seen, self.began);
    }

    pub fn counters(&self) -> Counters {
        let publisher = &self.drive.network.publisher;
        let nodes = publisher.nodes().into_iter();
        nodes.map(|(name, node)| (name, count(&publisher.control.ledger(node)))).collect()
    }

    /// Ends the network; what its machines received, and its ledger.
    pub fn close(mut self) -> (Vec<Recorded>, LedgerReport) {
        self.collect();
        (self.seen, ledger::close(self.drive))
    }

    /// Has a pod begin to end, as Kubernetes does when somebody deletes it: it serves until it is gone.
    pub fn terminate(&mut self, pod: &str) {
        use flatnet_agents::objects;
        use flatnet_agents::store::Store as _;
        use k8s_openapi::api::core::v1::Pod;
        let store = self.drive.network.store.clone();
        futures::executor::block_on(async {
            let key = objects::key::<Pod>("default", pod);
            let mut pod: Pod = objects::decode(&store.get(&key).await.unwrap().unwrap()).unwrap();
            pod.metadata.deletion_timestamp = serde_json::from_value("2026-01-01T00:00:00Z".into()).unwrap();
            let (compare, write) = objects::write_op(&pod).unwrap();
            let outcome = store.transact(vec![compare], vec![write]).await.unwrap();
            assert!(matches!(outcome, flatnet_agents::store::Outcome::Done(_)));
        });
        self.drive.settle();
    }

    /// Says who holds a subnet, as another node's lease in the store would.
    pub fn lease(&mut self, subnet: &str, holder: Option<Ipv4Addr>) {
        use flatnet_agents::cluster::Change;
        use flatnet_agents::node::Holder;
        let subnet = subnet.parse().unwrap();
        let change = match holder {
            Some(public_ip) => Change::Lease { subnet, holder: Holder { public_ip, vtep: None } },
            None => Change::LeaseRemoved { subnet },
        };
        self.drive.network.publisher.apply(&change).unwrap();
        self.drive.settle();
    }
}

fn echo(from: Ipv4Addr, next: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    frames::ethernet(mac(from), mac(next), 0x0800, &Packet::echo(from, to, 8, 1, 1).bytes())
}

fn count(ledger: &flatnet_engine::ledger::Ledger) -> BTreeMap<String, u64> {
    use flatnet_engine::ledger::{DropReason, Term};
    let terms = Term::ALL.into_iter().map(|term| (term.name().to_owned(), ledger.term(term)));
    let drops = DropReason::ALL.iter().map(|&reason| (reason.name().to_owned(), ledger.drops(reason)));
    terms.chain(drops).chain([("held".to_owned(), ledger.held)]).collect()
}

/// Takes what has come to the machines.
fn take(
    drive: &mut Drive,
    machines: &mut BTreeMap<String, RingsPeer>,
    seen: &mut Vec<Recorded>,
    began: Instant,
) {
    let time = drive.now().saturating_duration_since(began);
    for (machine, peer) in machines {
        let mut arrived = Vec::new();
        peer.from_node.pop(usize::MAX, |frame| arrived.push(frame));
        let control = &mut drive.network.publisher.control;
        for frame in arrived {
            let bytes = control.arena().bytes(&frame).to_vec();
            seen.push(Recorded { time, machine: machine.clone(), bytes });
            control.pool.free(frame);
        }
    }
    for worker in 0..drive.workers() {
        let foreign: Vec<_> =
            drive.network.publisher.control.pool.homebound(worker.into()).drain(..).collect();
        if !foreign.is_empty() {
            drive
                .ask(worker, move |worker| foreign.into_iter().for_each(|frame| worker.adopt(frame)))
                .unwrap();
        }
    }
}
