//! Simulated pods under criterion: the rows of `flatnet bench pods`, whose conditions it prints, but for 100,000 pods.
//!
//! Sizes in ids are bytes of the longest packet, connections, pods.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flatnet::bench::pods::idle;
use flatnet::bench::pods::requests::Requests;
use flatnet::bench::pods::stream::{Bare, Stream};

/// Octets of a stream.
const OCTETS: u64 = 1 << 26;
/// Requests of an iteration.
const REQUESTS: u64 = 10_000;
/// Connections that are kept.
const CONNECTIONS: u16 = 1000;
/// Pods.
const PODS: u32 = 10_000;

fn streams(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pods");
    group.throughput(Throughput::Bytes(OCTETS));
    let (mut stream, mut bare) = (Stream::new().unwrap(), Bare::new());
    group.bench_function("stream/1472", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| stream.carry(OCTETS).unwrap()).sum::<Duration>());
    });
    group.bench_function("stream-bare/1472", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| bare.carry(OCTETS).unwrap()).sum::<Duration>());
    });
    group.finish();
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pods");
    group.throughput(Throughput::Elements(REQUESTS));
    let mut requests = Requests::new(CONNECTIONS).unwrap();
    group.bench_function(format!("requests/{CONNECTIONS}"), |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| requests.answer(REQUESTS).unwrap()).sum::<Duration>());
    });
    group.finish();
}

fn idle_pods(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pods");
    group.throughput(Throughput::Elements(u64::from(PODS))).sample_size(10);
    group.bench_function(format!("idle/{PODS}"), |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| idle::measure(PODS).unwrap().ready).sum::<Duration>());
    });
    group.finish();
}

criterion_group!(benches, streams, requests, idle_pods);
criterion_main!(benches);
