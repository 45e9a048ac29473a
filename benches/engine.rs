//! The packet path under criterion: the rows of `flatnet bench engine`, whose conditions it prints.
//!
//! A figure is a round of 4,096 frames through the worker, without generator and sink; of service-change, a change until all
//! workers work by it; of idle-latency, a frame from ring to ring.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flatnet::bench::conditions;
use flatnet::bench::lab::{BUFFERS, Waiting};
use flatnet::bench::rows::{CASES, Row, Traffic};

fn rows(criterion: &mut Criterion) {
    println!("{}", conditions(1, BUFFERS as u32));
    for case in CASES {
        let mut traffic = Traffic::new(case).unwrap();
        traffic.settle().unwrap();
        let mut measure = |count: u32| -> Duration {
            if case.row == Row::ServiceChange {
                (0..count).map(|_| traffic.round_with_change().unwrap().1).sum()
            } else if case.row == Row::IdleLatency {
                traffic.one_by_one(count as usize, Waiting::Spinning).unwrap().iter().sum()
            } else {
                traffic.rounds(count).unwrap().iter().map(|round| round.time).sum()
            }
        };
        let packets = if matches!(case.row, Row::ServiceChange | Row::IdleLatency) { 1 } else { BUFFERS };
        let mut group = criterion.benchmark_group(case.name);
        group.throughput(Throughput::Elements(packets as u64));
        group.bench_function(format!("{} flows/{}", case.flows, case.frame_bytes), |bencher| {
            bencher.iter_custom(|count| measure(u32::try_from(count).unwrap()));
        });
        group.finish();
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);
