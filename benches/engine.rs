//! The packet path under criterion: the rows of `flatnet bench engine`, whose conditions it prints.
//!
//! A figure here is a round of 4,096 frames through the worker; generator and sink are not measured.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flatnet::bench::lab::BUFFERS;
use flatnet::bench::rows::{CASES, Traffic};

fn rows(criterion: &mut Criterion) {
    for case in CASES {
        let mut traffic = Traffic::new(case).unwrap();
        let mut group = criterion.benchmark_group(case.name);
        group.throughput(Throughput::Elements(BUFFERS as u64));
        group.bench_function(format!("{} flows/{}", case.flows, case.frame_bytes), |bencher| {
            bencher.iter_custom(|rounds| {
                let rounds = traffic.rounds(u32::try_from(rounds).unwrap()).unwrap();
                rounds.iter().map(|round| round.time).sum::<Duration>()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);
