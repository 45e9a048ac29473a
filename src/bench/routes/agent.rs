//! A node without pods: it claims a subnet, follows the others' leases, and has them as routes in a table of the engine's.
//!
//! `routes.rs` starts as many as are asked for. Invariant: what it does is what `flatnet node --etcd` does, on a connection, a thread and a watch of
//! its own; only where packets would be, nobody is.
//!
//! May depend on agents and [`crate::network`]. Read first: `network/shared.rs`.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;

use flatnet_agents::cluster::{Change, watch_cluster};
use flatnet_agents::lease::DEFAULT_PREFIX;
use flatnet_agents::node::NodeError;
use flatnet_agents::store::etcd::Options;
use flatnet_agents::{Embedded, Etcd};
use flatnet_engine::clock::Instant;
use flatnet_engine::tables::Writer;
use flatnet_engine::tunnel::Encapsulation;
use futures::future::{Either, select};

use super::board::Board;
use crate::bench::BenchError;
use crate::network::{Joining, MARGIN, Part, SharedError, claim};

/// The first node's address.
const FIRST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// A node's address.
pub(super) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST.to_bits() + number)
}

/// Lives as a node until it cannot any more.
pub(super) async fn live(
    options: &Options,
    number: u32,
    board: &Rc<RefCell<Board>>,
) -> Result<(), BenchError> {
    let store = Etcd::open(options)?;
    let address = address(number);
    let joining = Joining {
        prefix: DEFAULT_PREFIX,
        address,
        public_ip: address,
        wish: None,
        wanted: None,
        margin: None,
    };
    let claimed = loop {
        match claim(&store, &joining, options.seed).await {
            Ok(claimed) => break claimed,
            Err(SharedError::Claim(NodeError::Store(error))) => board.borrow_mut().trouble(&error),
            Err(error) => return Err(Box::new(error).into()),
        }
    };
    board.borrow_mut().claim();
    let part = Part::new(store, claimed, MARGIN, Instant::ZERO);
    let into = Embedded::new();
    let follow = async {
        loop {
            if let Err(error) = part.follow(&into).await {
                board.borrow_mut().trouble(&error);
            }
        }
    };
    let mut tables = Writer::default();
    let sink = |change| {
        if let Change::Lease { subnet, holder } = change {
            let is_new = tables.current().leases.get(subnet).is_none();
            tables.publish(|tables| tables.set_lease(subnet, Some(holder)));
            board.borrow_mut().hear(subnet, holder.public_ip, is_new);
        }
    };
    let watch = watch_cluster(&into, DEFAULT_PREFIX, Some(Encapsulation::Udp), sink);
    let (follow, watch) = (std::pin::pin!(follow), std::pin::pin!(watch));
    match select(follow, watch).await {
        Either::Left((never, _)) => never,
        Either::Right((ended, _)) => Ok(ended.map(drop)?),
    }
}
