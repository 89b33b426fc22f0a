//! SHA-256 of one stream, of two streams in turns, and of two streams interleaved.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use larder_model::digest::{Algorithm, Hasher};
use larder_sha256::{Sha256, update_both};

/// Size of a piece, bytes, as in the decoder: it stays in L2.
const PIECE: usize = 256 << 10;

fn two_streams(criterion: &mut Criterion) {
    let piece = |factor: usize| (0..PIECE).map(|i| (i * factor).to_le_bytes()[1]).collect::<Vec<u8>>();
    let (one, two) = (piece(7), piece(11));
    let mut group = criterion.benchmark_group("sha256");
    group.throughput(Throughput::Bytes(PIECE as u64));
    let mut hasher = Hasher::new(Algorithm::Sha256);
    group.bench_function("one stream", |bencher| bencher.iter(|| hasher.update(black_box(&one))));
    group.throughput(Throughput::Bytes(2 * PIECE as u64));
    let (mut a, mut b) = (Sha256::new(), Sha256::new());
    group.bench_function("two in turns", |bencher| {
        bencher.iter(|| {
            a.update(black_box(&one));
            b.update(black_box(&two));
        });
    });
    group.bench_function("two interleaved", |bencher| {
        bencher.iter(|| update_both(&mut a, black_box(&one), &mut b, black_box(&two)));
    });
    group.finish();
    black_box((hasher.finish(), a.finish(), b.finish()));
}

criterion_group!(benches, two_streams);
criterion_main!(benches);
