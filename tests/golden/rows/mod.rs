//! The rows, by what they are about. Each names a rule and what one must see of it.

mod bridge;

mod fragments;

mod links;

mod masquerade;

mod services;

mod tunnel;

use crate::Row;

/// All rows.
pub fn all() -> Vec<&'static Row> {
    let parts = [masquerade::ROWS, fragments::ROWS, bridge::ROWS, tunnel::ROWS, services::ROWS, links::ROWS];
    parts.into_iter().flatten().collect()
}
