//! The data path of flatnet: what moves packets.
//!
//! The files below stand in the order in which a packet meets them.

pub mod worker;

pub mod frame;

pub mod sys;

pub mod clock;

pub mod link;

pub mod wire;

pub mod parse;

pub mod flow;

mod hash;

pub mod decide;

pub mod binding;

pub mod load;

pub mod bridge;

pub mod neighbor;

pub mod route;

pub mod masquerade;

pub mod fragment;

pub mod path_mtu;

pub mod icmp;

pub mod rewrite;

pub mod segment;

pub mod tunnel;

pub mod ledger;

pub mod trace;

pub mod ring;

pub mod alarm;

pub mod mailbox;

pub mod control;

pub mod tables;

pub mod random;

pub mod pod;
