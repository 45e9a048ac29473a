//! The rows, by what they are about. Each names a rule and what one must see of it.

mod bridge;

mod fragments;

mod links;

mod masquerade;

mod pods;

mod services;

mod tunnel;

use crate::Row;

/// All rows.
pub fn all() -> Vec<&'static Row> {
    let parts = [masquerade::ROWS, fragments::ROWS, bridge::ROWS, tunnel::ROWS, services::ROWS, links::ROWS];
    let parts = parts.into_iter().chain([pods::ROWS]);
    parts.flatten().collect()
}
