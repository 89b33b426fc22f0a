//! Reads any bytes as a tar, after correcting the checksums so that the fuzzer gets past them.
#![no_main]

mod archive;
mod rebuild;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    archive::fix_checksums(&mut tar);
    rebuild::check(&tar);
});
