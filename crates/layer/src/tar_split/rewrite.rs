use std::io::{self, BufRead, Read, Write};

use super::assemble::File;
use super::{Error, Record, TarSplit, TarSplitReader};
use crate::tar::Record as _;

/// Copies a tar-split, with the content of some files moved into it, because a later member took their place.
///
/// `replaced` is asked once for each file with content, in the order of the tar, so that the n-th question about a name
/// is its n-th occurrence; it gives the content where the layer's tree no longer has it.
///
/// # Errors
/// Those of reading, and of writing as [`Error::Io`]; [`Error::File`] where the content is not that of the tar.
pub fn rewrite<R: BufRead, W: Write, T: Read>(
    mut input: TarSplitReader<R>,
    output: W,
    mut replaced: impl FnMut(&[u8]) -> io::Result<Option<T>>,
) -> Result<W, Error> {
    let mut output = TarSplit::new(output);
    let mut buffer = vec![0; 32 << 10];
    loop {
        let position = input.position();
        let io = |source| Error::Io { position, source };
        match input.next().transpose()? {
            None => return output.finish().map_err(io),
            Some(Record::Segment(segment)) => {
                output.raw(&segment).map_err(io)?;
                output.header().map_err(io)?;
            }
            Some(Record::File { name, size, crc }) => {
                let Some(content) = replaced(&name).map_err(io)? else {
                    output.file_with_crc(&name, size, crc).map_err(io)?;
                    continue;
                };
                let mut file = File::new(content, name, size, crc);
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        read => output.raw(&buffer[..read]).map_err(io)?,
                    }
                }
            }
        }
    }
}
