//! Compresses the lines, with ISA-L if this program has it, else with zlib-rs.

#[cfg(all(feature = "isal", target_arch = "x86_64"))]
pub(super) use self::isal::GzipWriter;
#[cfg(not(all(feature = "isal", target_arch = "x86_64")))]
pub(super) use self::zlib::GzipWriter;

#[cfg(all(feature = "isal", target_arch = "x86_64"))]
mod isal {
    use std::io::{self, Write};

    use larder_isal::GzipEncoder;

    /// Size of the buffer of compressed bytes, bytes. A batch of lines compresses to less than half of it.
    const BUFFER: usize = 16 << 10;

    /// Writes a gzip stream to `W`.
    pub(in crate::tar_split) struct GzipWriter<W> {
        encoder: GzipEncoder,
        buffer: Box<[u8]>,
        out: W,
    }

    impl<W: Write> GzipWriter<W> {
        pub(in crate::tar_split) fn new(out: W) -> Self {
            GzipWriter { encoder: GzipEncoder::new(), buffer: vec![0; BUFFER].into(), out }
        }

        pub(in crate::tar_split) fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
            while !bytes.is_empty() {
                let deflated =
                    self.encoder.deflate(bytes, &mut self.buffer, false).map_err(io::Error::other)?;
                bytes = &bytes[deflated.read..];
                self.out.write_all(&self.buffer[..deflated.written])?;
            }
            Ok(())
        }

        /// Writes the end of the stream.
        pub(in crate::tar_split) fn finish(mut self) -> io::Result<W> {
            loop {
                let deflated = self.encoder.deflate(&[], &mut self.buffer, true).map_err(io::Error::other)?;
                self.out.write_all(&self.buffer[..deflated.written])?;
                if deflated.ended {
                    return Ok(self.out);
                }
            }
        }
    }
}

#[cfg(any(test, not(all(feature = "isal", target_arch = "x86_64"))))]
mod zlib {
    use std::io::{self, Write};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    /// Writes a gzip stream to `W`.
    pub(in crate::tar_split) struct GzipWriter<W: Write>(GzEncoder<W>);

    impl<W: Write> GzipWriter<W> {
        pub(in crate::tar_split) fn new(out: W) -> Self {
            GzipWriter(GzEncoder::new(out, Compression::fast()))
        }

        pub(in crate::tar_split) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.write_all(bytes)
        }

        /// Writes the end of the stream.
        pub(in crate::tar_split) fn finish(self) -> io::Result<W> {
            self.0.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::{GzipWriter, zlib};

    fn gunzip(gzip: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut decoder = flate2::bufread::GzDecoder::new(gzip);
        decoder.read_to_end(&mut bytes).unwrap();
        assert!(decoder.into_inner().is_empty(), "one member, and nothing after it");
        bytes
    }

    fn written<W>(mut writer: W, pieces: &[Vec<u8>], write_all: impl Fn(&mut W, &[u8])) -> W {
        pieces.iter().for_each(|piece| write_all(&mut writer, piece));
        writer
    }

    fn fastest(pieces: &[Vec<u8>]) -> Vec<u8> {
        let write_all = |writer: &mut GzipWriter<_>, bytes: &[u8]| writer.write_all(bytes).unwrap();
        written(GzipWriter::new(Vec::new()), pieces, write_all).finish().unwrap()
    }

    fn portable(pieces: &[Vec<u8>]) -> Vec<u8> {
        let write_all = |writer: &mut zlib::GzipWriter<_>, bytes: &[u8]| writer.write_all(bytes).unwrap();
        written(zlib::GzipWriter::new(Vec::new()), pieces, write_all).finish().unwrap()
    }

    /// Returns bytes of which about one in `period` is not predictable.
    fn bytes(length: usize, period: usize) -> Vec<u8> {
        let mut state = 1u32;
        let next = |at| {
            state = state.wrapping_mul(0x9e37_79b1).rotate_left(11) ^ 5;
            if at % period == 0 { state.to_le_bytes()[3] } else { b'A' }
        };
        (0..length).map(next).collect()
    }

    #[test]
    fn every_length_and_every_cut() {
        for length in 0..300 {
            let all = bytes(length, 3);
            for cut in 0..=length {
                let pieces = [all[..cut].to_vec(), all[cut..].to_vec()];
                assert!(gunzip(&fastest(&pieces)) == all, "{length} bytes, cut at {cut}");
            }
        }
    }

    #[test]
    fn the_output_is_the_same_each_time() {
        let pieces: Vec<_> = (1..40).map(|n| bytes(n * 1999, n)).collect();
        assert!(fastest(&pieces) == fastest(&pieces));
    }

    #[test]
    fn a_writer_that_fails_is_reported() {
        let mut room = [0; 100];
        let mut full = GzipWriter::new(&mut room[..]);
        assert!((0..100).any(|n| full.write_all(&bytes(1 << 16, n + 1)).is_err()));
        let mut room = [0; 5];
        assert!(GzipWriter::new(&mut room[..]).finish().is_err());
    }

    proptest! {
        #[test]
        fn any_content_in_any_cuts(pieces in prop::collection::vec((0usize..200_000, 1usize..2000), 0..8)) {
            let pieces: Vec<_> = pieces.into_iter().map(|(length, period)| bytes(length, period)).collect();
            let all = pieces.concat();
            prop_assert!(gunzip(&fastest(&pieces)) == all);
            prop_assert!(gunzip(&portable(&pieces)) == all);
        }
    }
}
