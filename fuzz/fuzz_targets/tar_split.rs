//! Reads any lines as a tar-split. It is on a volume that another machine might have written.
#![no_main]

use std::io::{self, Read as _};

use flate2::Compression;
use flate2::read::GzEncoder;
use larder_layer::tar_split::{Assembler, TarSplitReader};
use libfuzzer_sys::fuzz_target;

/// Maximum number of bytes that are read back, whatever size the files claim.
const MAX_READ: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = Vec::new();
    GzEncoder::new(bytes, Compression::fast()).read_to_end(&mut lines).expect("memory can be read");
    for split in [bytes, &lines] {
        let _ = TarSplitReader::new(split).collect::<Result<Vec<_>, _>>();
        let assembler = Assembler::new(TarSplitReader::new(split), |_: &[u8]| Ok(io::repeat(7)));
        let _ = assembler.take(MAX_READ).read_to_end(&mut Vec::new());
    }
});
