//! Any lines as a tar-split, which lies on a volume that another machine may have written.
#![no_main]

use std::io::{self, Read as _};

use larder_layer::tar_split::{Assembler, TarSplitReader};
use larder_testing::layer::gzip;
use libfuzzer_sys::fuzz_target;

/// More is not read back, however long the files say that they are, bytes.
const MOST: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let lines = gzip(bytes);
    for split in [bytes, &lines] {
        let _ = TarSplitReader::new(split).collect::<Result<Vec<_>, _>>();
        let assembler = Assembler::new(TarSplitReader::new(split), |_: &[u8]| Ok(io::repeat(7)));
        let _ = assembler.take(MOST).read_to_end(&mut Vec::new());
    }
});
