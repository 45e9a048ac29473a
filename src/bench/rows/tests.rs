//! Every row at a small size, and what its flows are.

use super::*;

/// A round fails when a frame is lost, so that this is the rows' test of themselves.
#[test]
fn every_row_forwards_all_that_it_sends() {
    for (case, workers) in CASES.iter().flat_map(|case| [(case, 1), (case, 2)]) {
        let small = Case { workers, flows: 500, nodes: 10, services: 20, ..*case };
        let mut traffic = Traffic::new(&small).unwrap();
        traffic.rounds(3).unwrap();
        let directions = match case.row {
            _ if case.new => 0,
            Row::Masquerade | Row::Service | Row::ServiceChange | Row::ScaleServices | Row::NewFlows => 2,
            Row::Bridge | Row::Encapsulate | Row::Decapsulate | Row::ScaleRoutes | Row::IdleLatency => 1,
        };
        let flows: Vec<_> = traffic.packets.iter().map(Vec::len).collect();
        assert_eq!(flows, vec![500 * directions; usize::from(workers)], "{}", case.name);
    }
}

#[test]
fn one_flow_is_enough_for_a_row() {
    for case in CASES.iter().filter(|case| !case.new) {
        let mut traffic = Traffic::new(&Case { flows: 1, nodes: 10, services: 20, ..*case }).unwrap();
        traffic.rounds(1).unwrap();
    }
}

#[test]
fn services_change_under_traffic_and_no_frame_is_lost() {
    let case = Case { flows: 500, nodes: 10, services: 5, ..case(Row::ServiceChange, "service-change", 0) };
    let mut traffic = Traffic::new(&case).unwrap();
    for _ in 0..20 {
        traffic.round_with_change().unwrap();
        traffic.rounds(1).unwrap();
    }
}

#[test]
fn frames_pass_one_by_one_whether_the_worker_is_awake_or_not() {
    let mut traffic = Traffic::new(&case(Row::IdleLatency, "idle-latency", 100)).unwrap();
    for waiting in [Waiting::Spinning, Waiting::Sleeping] {
        assert_eq!(traffic.one_by_one(10, waiting).unwrap().len(), 10);
    }
}

#[test]
fn no_two_flows_of_a_row_are_one() {
    let rows: [&dyn Fn(u32) -> Packet; 5] = [
        &|flow| bridged(0, flow),
        &|flow| to_node(1, flow, 2..100),
        &|flow| to_node(0, flow, 1..100).from_there(VXLAN),
        &|flow| outward(&CASES[0], 0, flow),
        &|flow| to_service(&CASES[0], 0, flow),
    ];
    for row in rows {
        let mut tuples: Vec<_> = (0..100_000).map(|flow| row(flow).tuple).collect();
        tuples.sort_unstable();
        tuples.dedup();
        assert_eq!(tuples.len(), 100_000);
    }
}
