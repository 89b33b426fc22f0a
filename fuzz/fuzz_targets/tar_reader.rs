//! Any bytes as a tar, their checksums put right, so that what comes after the checksum is reached.
#![no_main]

mod rebuild;

use larder_layer::tar::BLOCK;
use larder_testing::layer::fix_checksum;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    for block in tar.chunks_exact_mut(BLOCK) {
        // A block whose checksum is wanted right has something in that field; the others stay data.
        if let Ok(block) = <&mut [u8; BLOCK]>::try_from(block)
            && block[148] != 0
        {
            fix_checksum(block);
        }
    }
    rebuild::check(&tar);
});
