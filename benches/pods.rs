//! Simulated pods under criterion: the rows of `flatnet bench pods`, whose conditions it prints, but for 100,000 pods.
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
/// Pods.
const PODS: u32 = 10_000;

fn streams(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pods");
    group.throughput(Throughput::Bytes(OCTETS));
    let (mut stream, mut bare) = (Stream::new().unwrap(), Bare::new());
    group.bench_function("stream", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| stream.carry(OCTETS).unwrap()).sum::<Duration>());
    });
    group.bench_function("stream-bare", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| bare.carry(OCTETS).unwrap()).sum::<Duration>());
    });
    group.finish();
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pods");
    group.throughput(Throughput::Elements(REQUESTS));
    let mut requests = Requests::new(1000).unwrap();
    group.bench_function("requests", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| requests.answer(REQUESTS).unwrap()).sum::<Duration>());
    });
    group.finish();
}

fn idle_pods(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pods");
    group.throughput(Throughput::Elements(u64::from(PODS))).sample_size(10);
    group.bench_function("idle-10k", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| idle::measure(PODS).unwrap().ready).sum::<Duration>());
    });
    group.finish();
}

criterion_group!(benches, streams, requests, idle_pods);
criterion_main!(benches);
