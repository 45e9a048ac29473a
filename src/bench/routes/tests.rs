//! What the bench of routes measures comes about, with few nodes.

use super::*;

#[test]
fn nodes_that_share_an_etcd_have_each_others_routes_and_every_change() {
    let figures = measure(4).unwrap();
    let rows: Vec<&str> = figures.iter().map(|figure| &*figure.row).collect();
    assert_eq!(rows, ["claimed", "cold-start", "change/p50", "change/p99", "memory"]);
    let value = |row: &str| figures.iter().find(|figure| figure.row == row).unwrap().value;
    assert!(0.0 < value("claimed") && value("claimed") <= value("cold-start"), "{figures:?}");
    assert!(0.0 < value("change/p50") && value("change/p50") <= value("change/p99"), "{figures:?}");
    assert!(table(&figures).contains("cold-start"));
}
