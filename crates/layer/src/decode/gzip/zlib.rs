//! zlib-rs through flate2: pure Rust, for every architecture.

use flate2::{Decompress, FlushDecompress, Status};

use super::{Inflate, Inflated, Surplus};

pub(super) struct Zlib(Decompress);

impl Zlib {
    pub(super) fn new() -> Self {
        Zlib(Decompress::new(false))
    }
}

impl Inflate for Zlib {
    fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<Inflated, String> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let status = self
            .0
            .decompress(input, output, FlushDecompress::None)
            .map_err(|error| error.message().unwrap_or("damaged data").to_owned())?;
        let advance = |now: u64, before: u64| usize::try_from(now - before).map_err(|e| e.to_string());
        Ok(Inflated {
            read: advance(self.0.total_in(), read)?,
            written: advance(self.0.total_out(), written)?,
            end: (status == Status::StreamEnd).then(Surplus::default),
        })
    }

    fn reset(&mut self) {
        self.0.reset(false);
    }
}
