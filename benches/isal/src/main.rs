//! Inflates a gzip file from memory by ISA-L and by zlib-rs in turns; prints medians in MB/s of output.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Turns for each.
const TURNS: usize = 9;

/// Reads `decoder` to its end through one buffer; bytes and time.
fn drain(mut decoder: impl Read) -> io::Result<(u64, Duration)> {
    let (mut buffer, mut size, start) = (vec![0; 256 << 10], 0, Instant::now());
    loop {
        match decoder.read(&mut buffer)? {
            0 => return Ok((size, start.elapsed())),
            written => size += written as u64,
        }
        std::hint::black_box(&buffer);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: inflate-isal FILE.gz")?;
    let blob = std::fs::read(path)?;
    let mut times = [Vec::new(), Vec::new()];
    let mut size = 0;
    for _ in 0..TURNS {
        let (by_zlib, zlib) = drain(flate2::bufread::GzDecoder::new(&blob[..]))?;
        // Boxed: it keeps a pointer into itself and must not move between reads.
        let mut isal = Box::new(isal::read::Decoder::new(&blob[..], isal::Codec::Gzip));
        let (by_isal, isal) = drain(&mut *isal)?;
        if by_zlib != by_isal {
            return Err(format!("zlib-rs gave {by_zlib} bytes, ISA-L {by_isal}").into());
        }
        size = by_zlib;
        times[0].push(zlib);
        times[1].push(isal);
    }
    for (name, mut times) in ["zlib-rs", "isa-l"].into_iter().zip(times) {
        times.sort();
        println!("{name:8} {:5.0} MB/s", size as f64 / 1e6 / times[TURNS / 2].as_secs_f64());
    }
    Ok(())
}
