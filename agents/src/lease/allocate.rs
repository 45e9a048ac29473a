//! Which subnet a node should claim. Pure.
//!
//! The node agent calls it with a fresh list of leases and carries the plan out with create-only transactions.
//!
//! Invariants: a planned subnet overlaps no lease of another holder, also when the subnet's length was changed; the
//! same list and seed give the same plan.
//!
//! May depend on [`crate::lease`] and the engine's generator.
//!
//! Read first: flannel's `pkg/subnet/etcd/local_manager.go` (`tryAcquireLease`).

use std::{collections::BTreeSet, net::Ipv4Addr};

use flatnet_engine::random::Random;
use flatnet_proxy::Ipv4Prefix;
use thiserror::Error;

use crate::lease::{Lease, NetworkConfig};

/// Among how many free subnets a node chooses at least: flannel's number. It grows with the cluster, so that nodes
/// which start together seldom want the same.
const WINDOW: usize = 100;

/// What a node should do to get its subnet.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Own leases that no longer fit the configuration; remove them first.
    pub stale: Vec<Ipv4Prefix>,
    /// How to get the subnet.
    pub claim: Claim,
}

/// How a node gets its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The lease exists and names this node: renew it.
    Renew(Ipv4Prefix),
    /// The subnet is free: create the lease.
    Create(Ipv4Prefix),
}

impl Claim {
    /// Gives the subnet.
    pub const fn subnet(self) -> Ipv4Prefix {
        match self {
            Self::Renew(subnet) | Self::Create(subnet) => subnet,
        }
    }
}

/// Why a node gets no subnet.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AllocateError {
    /// Every subnet between the limits is leased.
    #[error("no free subnet of length {length} in {network}: all {leases} are leased")]
    OutOfSubnets {
        /// The subnet's length.
        length: u8,
        /// The pod network.
        network: Ipv4Prefix,
        /// How many leases there are.
        leases: usize,
    },
    /// The subnet that the node is to have is another's, or overlaps it.
    #[error("subnet {subnet} overlaps {held}, which {holder} holds")]
    Held {
        /// The wanted subnet.
        subnet: Ipv4Prefix,
        /// The other's lease.
        held: Ipv4Prefix,
        /// The other's address.
        holder: Ipv4Addr,
    },
    /// The subnet that the node is to have is not in the pod network.
    #[error("subnet {subnet} is not in the pod network {network}")]
    Outside {
        /// The wanted subnet.
        subnet: Ipv4Prefix,
        /// The pod network.
        network: Ipv4Prefix,
    },
}

/// What a node wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Any subnet; the previous one if it is known and free.
    Any {
        /// What the node had before.
        previous: Option<Ipv4Prefix>,
    },
    /// Exactly this one, of whatever length.
    Exactly(Ipv4Prefix),
}

/// Plans how the node at `public_ip` gets a subnet, in flannel's order: its lease, its previous subnet, a random one.
///
/// # Errors
/// Each variant of [`AllocateError`].
pub fn plan(
    config: &NetworkConfig,
    leases: &[Lease],
    public_ip: Ipv4Addr,
    wish: Wish,
    random: &mut Random,
) -> Result<Plan, AllocateError> {
    let (own, others): (Vec<&Lease>, Vec<&Lease>) =
        leases.iter().partition(|lease| lease.attributes.public_ip == public_ip);
    let fits = |subnet: Ipv4Prefix| match wish {
        Wish::Any { .. } => config.fits(subnet),
        Wish::Exactly(wanted) => subnet == wanted,
    };
    let kept = own.iter().map(|lease| lease.subnet).find(|&subnet| fits(subnet));
    let stale = own.iter().map(|lease| lease.subnet).filter(|&subnet| Some(subnet) != kept).collect();
    let claim = match (kept, wish) {
        (Some(subnet), _) => Claim::Renew(subnet),
        (None, Wish::Exactly(subnet)) => Claim::Create(fixed_subnet(config, &others, subnet)?),
        (None, Wish::Any { previous }) => Claim::Create(free_subnet(config, &others, previous, random)?),
    };
    Ok(Plan { stale, claim })
}

fn fixed_subnet(
    config: &NetworkConfig,
    others: &[&Lease],
    subnet: Ipv4Prefix,
) -> Result<Ipv4Prefix, AllocateError> {
    if !config.network.covers(subnet) {
        return Err(AllocateError::Outside { subnet, network: config.network });
    }
    match others.iter().find(|lease| lease.subnet.overlaps(subnet)) {
        Some(lease) => {
            Err(AllocateError::Held { subnet, held: lease.subnet, holder: lease.attributes.public_ip })
        }
        None => Ok(subnet),
    }
}

fn free_subnet(
    config: &NetworkConfig,
    others: &[&Lease],
    previous: Option<Ipv4Prefix>,
    random: &mut Random,
) -> Result<Ipv4Prefix, AllocateError> {
    let held: BTreeSet<Ipv4Prefix> = others.iter().map(|lease| lease.subnet).collect();
    if let Some(subnet) = previous.filter(|&subnet| config.fits(subnet) && is_free(&held, subnet)) {
        return Ok(subnet);
    }
    let window = WINDOW.max(4 * (others.len() + 1));
    let step = 1usize << (32 - config.subnet_len);
    let free: Vec<Ipv4Prefix> = (u32::from(config.subnet_min)..=u32::from(config.subnet_max))
        .step_by(step)
        .filter_map(|address| Ipv4Prefix::new(address.into(), config.subnet_len).ok())
        .filter(|&subnet| is_free(&held, subnet))
        .take(window)
        .collect();
    free.get(random.below(free.len())).copied().ok_or(AllocateError::OutOfSubnets {
        length: config.subnet_len,
        network: config.network,
        leases: others.len(),
    })
}

/// Prefixes are nested or apart, so a subnet overlaps a set if a member begins inside it or one covers it.
pub(super) fn is_free(held: &BTreeSet<Ipv4Prefix>, subnet: Ipv4Prefix) -> bool {
    let covered = (0..=subnet.length())
        .filter_map(|length| Ipv4Prefix::containing(subnet.address(), length).ok())
        .any(|wider| held.contains(&wider));
    let inside = held.range(subnet..).next().is_some_and(|next| subnet.contains(next.address()));
    !covered && !inside
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lease::Attributes;

    const SELF: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 11);

    fn config() -> NetworkConfig {
        NetworkConfig::new("10.3.0.0/16".parse().unwrap()).unwrap()
    }

    fn lease(subnet: &str, holder: [u8; 4]) -> Lease {
        Lease { subnet: subnet.parse().unwrap(), attributes: Attributes::udp(holder.into()) }
    }

    fn any_plan(leases: &[Lease], previous: Option<&str>, seed: u64) -> Result<Plan, AllocateError> {
        let previous = previous.map(|text| text.parse().unwrap());
        plan(&config(), leases, SELF, Wish::Any { previous }, &mut Random::new(seed))
    }

    #[test]
    fn own_lease_is_renewed() {
        let leases = [lease("10.3.9.0/24", SELF.octets()), lease("10.3.8.0/24", [1, 1, 1, 1])];
        let plan = any_plan(&leases, Some("10.3.7.0/24"), 1).unwrap();
        assert_eq!(plan, Plan { stale: vec![], claim: Claim::Renew("10.3.9.0/24".parse().unwrap()) });
    }

    #[test]
    fn own_lease_that_no_longer_fits_is_given_up() {
        let plan = any_plan(&[lease("10.4.9.0/24", SELF.octets())], Some("10.3.7.0/24"), 1).unwrap();
        assert_eq!(plan.stale, ["10.4.9.0/24".parse().unwrap()]);
        assert_eq!(plan.claim, Claim::Create("10.3.7.0/24".parse().unwrap()));
    }

    #[test]
    fn previous_subnet_is_preferred_while_it_is_free_and_fits() {
        let subnet = |leases: &[Lease], previous| any_plan(leases, Some(previous), 1).unwrap().claim.subnet();
        assert_eq!(subnet(&[], "10.3.7.0/24").to_string(), "10.3.7.0/24");
        assert_ne!(subnet(&[lease("10.3.7.0/24", [1, 1, 1, 1])], "10.3.7.0/24").to_string(), "10.3.7.0/24");
        assert!(config().fits(subnet(&[], "10.4.7.0/24")));
        assert!(config().fits(subnet(&[], "10.3.7.0/25")));
    }

    #[test]
    fn exhausted_network_is_named() {
        let config = NetworkConfig::new("10.3.0.0/28".parse().unwrap()).unwrap();
        let leases: Vec<Lease> =
            [4u8, 8, 12].map(|last| lease(&format!("10.3.0.{last}/30"), [1, 1, 1, last])).into();
        let error =
            plan(&config, &leases, SELF, Wish::Any { previous: None }, &mut Random::new(1)).unwrap_err();
        assert_eq!(error.to_string(), "no free subnet of length 30 in 10.3.0.0/28: all 3 are leased");
    }

    #[test]
    fn fixed_subnet_names_its_holder() {
        let fixed = |leases: &[Lease], subnet: &str| {
            plan(&config(), leases, SELF, Wish::Exactly(subnet.parse().unwrap()), &mut Random::new(1))
        };
        assert_eq!(fixed(&[], "10.3.0.0/25").unwrap().claim, Claim::Create("10.3.0.0/25".parse().unwrap()));
        let error = fixed(&[lease("10.3.4.0/22", [1, 2, 3, 4])], "10.3.5.0/24").unwrap_err();
        assert_eq!(error.to_string(), "subnet 10.3.5.0/24 overlaps 10.3.4.0/22, which 1.2.3.4 holds");
        let error = fixed(&[], "10.4.5.0/24").unwrap_err();
        assert_eq!(error.to_string(), "subnet 10.4.5.0/24 is not in the pod network 10.3.0.0/16");
    }

    #[test]
    fn window_grows_with_the_cluster() {
        let config = NetworkConfig::new("10.0.0.0/8".parse().unwrap()).unwrap();
        let leases: Vec<Lease> =
            (0..200u8).map(|third| lease(&format!("10.200.{third}.0/24"), [1, 1, 1, third])).collect();
        let farthest = (0..60)
            .map(|seed| {
                let wish = Wish::Any { previous: None };
                plan(&config, &leases, SELF, wish, &mut Random::new(seed)).unwrap().claim.subnet()
            })
            .max()
            .unwrap();
        // 201 nodes choose among 804; the first ones are 10.0.1.0, and all below 10.200.0.0 are free.
        assert!(farthest.contains([10, 3, 36, 0].into()) || farthest.address() < Ipv4Addr::new(10, 3, 36, 0));
        assert!(farthest.address() > Ipv4Addr::new(10, 2, 100, 0), "{farthest}");
    }

    proptest! {
        #[test]
        fn chosen_subnet_overlaps_nobody(
            held in prop::collection::vec((any::<u16>(), 17u8..31), 0..60), seed in any::<u64>(),
        ) {
            let leases: Vec<Lease> = held
                .into_iter()
                .map(|(low, length)| Lease {
                    subnet: Ipv4Prefix::containing((0x0a03_0000 | u32::from(low)).into(), length).unwrap(),
                    attributes: Attributes::udp([1, 1, 1, 1].into()),
                })
                .collect();
            let free = (1..=255).filter(|third| {
                let subnet: Ipv4Prefix = format!("10.3.{third}.0/24").parse().unwrap();
                !leases.iter().any(|lease| lease.subnet.overlaps(subnet))
            }).count();
            match any_plan(&leases, None, seed) {
                Ok(plan) => {
                    let subnet = plan.claim.subnet();
                    prop_assert!(config().fits(subnet));
                    prop_assert!(!leases.iter().any(|lease| lease.subnet.overlaps(subnet)));
                }
                Err(_) => prop_assert_eq!(free, 0),
            }
        }
    }
}
