//! Decompressing and hashing a layer: the candidate decoders alone, and our decoder.
//!
//! The layers consist of this machine's own files: `/usr/lib` (programs and libraries) and `/usr/share`
//! (text).

use std::hint::black_box;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use flate2::{Decompress, FlushDecompress, Status};
use larder_layer::cores::Cores;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::limits::Ratio;
use larder_model::digest::{Algorithm, Hasher};
use larder_testing::image;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};

/// Size of a network chunk, in bytes.
const CHUNK: usize = 64 << 10;

/// Size of the output buffer, in bytes, as in our decoder.
const BUFFER: usize = 256 << 10;

/// Size of the header before the deflate stream, in bytes: a gzip header without a name.
const GZIP_HEADER: usize = 10;

/// A layer in all compression forms.
struct Sample {
    tar: Bytes,
    gzip: Bytes,
    zstd: Bytes,
}

impl Sample {
    /// Creates a layer of the files below `path`, compressed as an image builder does it.
    fn of(path: &str, limit: u64) -> io::Result<Self> {
        let layer = image::from_files(&[Path::new(path)], limit)?.remove(0);
        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&layer.blob[..]).read_to_end(&mut tar)?;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        gzip.write_all(&tar)?;
        let zstd = zstd::encode_all(&tar[..], 3)?;
        Ok(Sample { tar: tar.into(), gzip: gzip.finish()?.into(), zstd: zstd.into() })
    }
}

/// A blob as it arrives from a registry, without copying.
struct Chunks(Bytes);

impl ChunkSource for Chunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.0.split_to(CHUNK.min(self.0.len()));
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

fn layer_decoder(blob: &Bytes) -> Decoder<'static> {
    Decoder::new(Chunks(blob.clone()), Algorithm::Sha256, Ratio::default())
}

/// Reads the whole layer and checks its digests. Returns its size.
fn drain(mut decoder: Decoder<'static>) -> u64 {
    loop {
        let length = decoder.fill_buf().expect("the sample is whole").len();
        if length == 0 {
            return decoder.finish().expect("the sample is whole").size;
        }
        decoder.consume(length);
    }
}

fn flate2(mut inflate: Decompress, blob: &[u8], buffer: &mut [u8]) -> u64 {
    loop {
        let start = usize::try_from(inflate.total_in()).expect("the sample is in memory");
        let end = blob.len().min(start + CHUNK);
        let status = inflate.decompress(&blob[start..end], buffer, FlushDecompress::None);
        black_box(&buffer);
        if status.expect("the sample is whole") == Status::StreamEnd {
            return inflate.total_out();
        }
    }
}

fn miniz(mut blob: &[u8], buffer: &mut [u8]) -> u64 {
    let mut state = InflateState::new_boxed(DataFormat::Raw);
    let mut size = 0;
    loop {
        let step = inflate(&mut state, &blob[..blob.len().min(CHUNK)], buffer, MZFlush::None);
        black_box(&buffer);
        blob = &blob[step.bytes_consumed..];
        size += step.bytes_written as u64;
        if step.status.expect("the sample is whole") == MZStatus::StreamEnd {
            return size;
        }
    }
}

fn zstd(blob: &[u8], buffer: &mut [u8]) -> u64 {
    let mut decoder = zstd::Decoder::with_buffer(blob).expect("a zstd context can be created");
    let mut size = 0;
    loop {
        match decoder.read(buffer).expect("the sample is whole") {
            0 => return size,
            written => size += written as u64,
        }
        black_box(&buffer);
    }
}

fn sha256(tar: &[u8]) -> Hasher {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    tar.chunks(BUFFER).for_each(|chunk| hasher.update(chunk));
    hasher
}

/// Measures one decoder, after checking that it returns the whole tar.
fn case(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, size: usize, mut run: impl FnMut() -> u64) {
    assert_eq!(run(), size as u64, "{name}");
    group.bench_function(name, |bencher| bencher.iter(&mut run));
}

fn decode(criterion: &mut Criterion) {
    let limit = if std::env::args().any(|arg| arg == "--test") { 4 << 20 } else { 160 << 20 };
    let mut buffer = vec![0; BUFFER];
    for path in ["/usr/lib", "/usr/share"] {
        let sample = Sample::of(path, limit).expect("the machine's own files can be read");
        let (size, deflate) = (sample.tar.len(), &sample.gzip[GZIP_HEADER..]);
        let mut group = criterion.benchmark_group(format!("decode{path}"));
        group.throughput(Throughput::Bytes(size as u64));
        group.sample_size(10).measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_secs(1));
        case(&mut group, "deflate/zlib-rs", size, || flate2(Decompress::new(false), deflate, &mut buffer));
        case(&mut group, "deflate/miniz_oxide", size, || miniz(deflate, &mut buffer));
        case(&mut group, "gzip/zlib-rs", size, || {
            flate2(Decompress::new_gzip(15), &sample.gzip, &mut buffer)
        });
        case(&mut group, "zstd", size, || zstd(&sample.zstd, &mut buffer));
        // On x86-64 with the feature `isal`, `decoder/gzip` uses ISA-L. The portable decoder is the one for
        // other machines.
        case(&mut group, "decoder/gzip, portable", size, || drain(layer_decoder(&sample.gzip).portable()));
        for (form, blob) in [("gzip", &sample.gzip), ("zstd", &sample.zstd), ("tar", &sample.tar)] {
            case(&mut group, &format!("decoder/{form}"), size, || drain(layer_decoder(blob)));
            let cores = Cores::new(1);
            case(&mut group, &format!("decoder/{form}, parallel hashing"), size, || {
                drain(layer_decoder(blob).with_cores(cores.clone()))
            });
        }
        group.bench_function("sha256", |bencher| bencher.iter(|| sha256(&sample.tar)));
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
