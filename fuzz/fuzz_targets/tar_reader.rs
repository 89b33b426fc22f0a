//! Reads any bytes as a tar, after correcting the checksums so that the fuzzer gets past them.
#![no_main]

mod rebuild;

use larder_layer::tar::BLOCK;
use larder_testing::layer::fix_checksum;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    for block in tar.chunks_exact_mut(BLOCK) {
        // A block with a non-zero checksum field gets a correct checksum; all others remain data.
        if let Ok(block) = <&mut [u8; BLOCK]>::try_from(block)
            && block[148] != 0
        {
            fix_checksum(block);
        }
    }
    rebuild::check(&tar);
});
