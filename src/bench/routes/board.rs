//! What the agents have come to, for who measures it.
//!
//! Agents write, `routes.rs` waits. Invariants: all on one thread; who waits is woken by each change of what is waited for, and gives up
//! once something has failed [`LIMIT`] after it began.
//!
//! May depend on agents. Read first: `bench/routes.rs`.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use flatnet_proxy::Ipv4Prefix;

use crate::bench::BenchError;

/// How long anything may take once it has failed.
const LIMIT: Duration = Duration::from_secs(300);

/// What the agents have come to.
#[derive(Debug)]
pub(super) struct Board {
    nodes: u32,
    /// Nodes without a subnet.
    pub(super) unclaimed: u32,
    /// Routes that nodes have not heard of.
    pub(super) unknown: u64,
    /// Nodes that have not heard of the change.
    pub(super) unheard: u32,
    change: Option<(Ipv4Prefix, Ipv4Addr)>,
    error: Option<BenchError>,
    /// What etcd said last when it did not do as asked; it was asked again.
    trouble: Option<String>,
    waits: Option<Waker>,
}

impl Board {
    /// Begins with nodes that know nothing.
    pub(super) fn new(nodes: u32) -> Self {
        let unknown = u64::from(nodes) * u64::from(nodes.saturating_sub(1));
        Self {
            nodes,
            unclaimed: nodes,
            unknown,
            unheard: 0,
            change: None,
            error: None,
            trouble: None,
            waits: None,
        }
    }

    /// A node has its subnet.
    pub(super) fn claim(&mut self) {
        self.unclaimed -= 1;
        self.wake(self.unclaimed == 0);
    }

    /// A node has a route; it is new to it, or another holder's.
    pub(super) fn hear(&mut self, subnet: Ipv4Prefix, holder: Ipv4Addr, is_new: bool) {
        match self.change {
            Some(change) if change == (subnet, holder) => {
                self.unheard -= 1;
                self.wake(self.unheard == 0);
            }
            Some(_) => {}
            None => {
                self.unknown -= u64::from(is_new);
                self.wake(self.unknown == 0);
            }
        }
    }

    /// Says which route all nodes are to have next.
    pub(super) fn expect(&mut self, subnet: Ipv4Prefix, holder: Ipv4Addr) {
        (self.change, self.unheard) = (Some((subnet, holder)), self.nodes);
    }

    /// Etcd did not do as asked, and is asked again.
    pub(super) fn trouble(&mut self, error: &dyn std::error::Error) {
        self.trouble = Some(crate::network::with_sources(error));
        self.wake(true);
    }

    /// A node has ended, which none should.
    pub(super) fn fail(&mut self, error: BenchError) {
        self.error.get_or_insert(error);
        self.wake(true);
    }

    fn wake(&mut self, is_worth_it: bool) {
        if is_worth_it && let Some(waker) = self.waits.take() {
            waker.wake();
        }
    }

    /// Waits until something is so.
    pub(super) async fn until(
        board: &Rc<RefCell<Self>>,
        what: &'static str,
        is_done: fn(&Self) -> bool,
    ) -> Result<(), BenchError> {
        let start = Instant::now();
        poll_fn(|context| {
            let mut board = board.borrow_mut();
            if let Some(error) = board.error.take() {
                return Poll::Ready(Err(error));
            }
            if is_done(&board) {
                return Poll::Ready(Ok(()));
            }
            if start.elapsed() > LIMIT {
                let trouble = board.trouble.clone().unwrap_or_default();
                return Poll::Ready(Err(BenchError::Late { what, trouble }));
            }
            board.waits = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
