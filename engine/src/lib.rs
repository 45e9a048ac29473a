//! What moves packets: buffers, wire formats, bridge, routes, overlay, NAT, links and pods.

pub mod wire;
