//! Where frames come from and go.

pub mod pod_ring;
