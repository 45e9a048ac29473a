//! The data path of flatnet: what moves packets.
//!
//! The files below stand in the order in which a packet meets them.

pub mod frame;

pub mod clock;

pub mod link;

pub mod wire;

pub mod ledger;

pub mod ring;
