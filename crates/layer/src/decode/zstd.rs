//! Zstandard (RFC 8878): any number of frames, with skippable frames anywhere (zstd:chunked stores its table
//! in one).

use std::io;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::{Codec, Step};

/// Maximum window size, as a power of two: 128 MiB, the limit of zstd's own tool.
const WINDOW_LOG_MAX: u32 = 27;

pub(super) struct Zstd {
    decoder: Decoder<'static>,
    between_frames: bool,
}

impl Zstd {
    pub(super) fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Zstd { decoder, between_frames: true })
    }
}

impl Codec for Zstd {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, String> {
        // libzstd would treat a call without input as the start of another frame.
        if self.between_frames && input.is_empty() {
            return Ok(Step { read: 0, written: 0 });
        }
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around(output);
        let hint = self.decoder.run(&mut input, &mut output).map_err(|error| error.to_string())?;
        self.between_frames = hint == 0;
        Ok(Step { read: input.pos(), written: output.pos() })
    }

    fn may_end(&self) -> bool {
        self.between_frames
    }
}
