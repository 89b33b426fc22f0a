//! Check that is shared by the targets of the tar reader: every accepted tar must be rebuilt bit for bit.

use std::collections::HashMap;
use std::io::{self, Cursor, Read as _};

use larder_layer::limits::Limits;
use larder_layer::tar::{Error, Kind, Reader};
use larder_layer::tar_split::{Assembler, TarSplit, TarSplitReader};

type Files = HashMap<Vec<u8>, Vec<u8>>;

/// Reads `tar` like the sink of a layer. Returns the tar-split and the content of the files.
fn read(tar: &[u8]) -> Result<(Vec<u8>, Files), Error> {
    let limits = Limits { max_logical_bytes: 1 << 20, max_entries: 1 << 12, ..Limits::default() };
    let mut reader = Reader::new(tar, TarSplit::new(Vec::new()), limits);
    let mut files = Files::new();
    while let Some(member) = reader.next()? {
        // The record keeps the content of some files, as for files that a later member replaces.
        let inline = member.kind == Kind::File && member.index % 4 == 3;
        if inline {
            reader.data_inline()?;
        }
        if inline || member.kind != Kind::File {
            let mut end = 0;
            while let Some(chunk) = reader.data()? {
                assert!(!chunk.bytes.is_empty() && chunk.offset >= end);
                end = chunk.offset + chunk.bytes.len() as u64;
            }
            assert!(end <= member.size);
            continue;
        }
        let mut content = Vec::new();
        while let Some(chunk) = reader.data()? {
            assert_eq!(chunk.offset, content.len() as u64);
            content.extend_from_slice(chunk.bytes);
        }
        assert_eq!(member.size, content.len() as u64);
        let name = member.index.to_string().into_bytes();
        reader.end_file(&name)?;
        files.insert(name, content);
    }
    let (_, split) = reader.finish()?;
    Ok((split.finish().expect("memory can be written"), files))
}

/// Checks that a tar accepted by the reader can be rebuilt from the record and the files.
pub fn check(tar: &[u8]) {
    let Ok((split, files)) = read(tar) else { return };
    let open = |name: &[u8]| {
        files.get(name).map(Cursor::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    let mut again = Vec::new();
    Assembler::new(TarSplitReader::new(&split[..]), open)
        .read_to_end(&mut again)
        .expect("it was just recorded");
    assert!(again == tar, "{} bytes became {}", tar.len(), again.len());
}
