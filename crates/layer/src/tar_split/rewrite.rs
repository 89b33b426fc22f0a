use std::io::{self, BufRead, Read, Write};

use super::assemble::File;
use super::{Error, Record, TarSplit, TarSplitReader};
use crate::tar::Record as _;

/// Copies a tar-split and embeds the content of files that later members replaced.
///
/// `replaced` is called once for each file with content, in tar order, so the nth call for a name is its nth
/// occurrence. It returns the content if the layer's tree no longer contains it.
///
/// # Errors
/// Errors of reading; [`Error::Io`] for errors of writing; [`Error::File`] if the content differs from that
/// of the tar.
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
