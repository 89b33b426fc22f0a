//! Parses any bytes as the body of a pax extended header in front of a file with content.
#![no_main]

mod archive;
mod rebuild;

use archive::header;
use larder_layer::tar::BLOCK;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    // A PAX 1.0 map with one region, so that sparse files are also covered.
    let content = [&b"1\n0\n100\n"[..], &[0; 504], &[b'c'; 100]].concat();
    let mut tar = Vec::new();
    for (name, kind, content) in [("pax/x", b'x', body), ("file", b'0', &content)] {
        tar.extend(header(name, kind, content.len()));
        tar.extend(content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.extend([0; 2 * BLOCK]);
    rebuild::check(&tar);
});
