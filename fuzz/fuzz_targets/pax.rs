//! Parses any bytes as the body of a pax extended header in front of a file with content.
#![no_main]

mod rebuild;

use larder_layer::tar::BLOCK;
use larder_testing::layer::{LayerBuilder, fix_checksum};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let mut header = [0; BLOCK];
    header[..5].copy_from_slice(b"pax/x");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
    header[156] = b'x';
    header[257..265].copy_from_slice(b"ustar\x0000");
    fix_checksum(&mut header);
    // A PAX 1.0 map with one region, so that sparse files are also covered.
    let content = [&b"1\n0\n100\n"[..], &[0; 504], &[b'c'; 100]].concat();
    rebuild::check(&LayerBuilder::new().raw_header(header, body).file("file", content).tar());
});
