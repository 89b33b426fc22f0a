//! Atomic replacement of files: readers see the old or the new content, never a part.

use std::io::{self, Write};

use super::dir::{Dir, set_mode};

/// Writes `bytes` to a temporary file next to `name`, flushes it, renames it into place and flushes the
/// directory. The file gets exactly `mode`, regardless of the umask.
///
/// # Errors
/// Those of open(2), write(2), fsync(2) and rename(2).
pub fn write(dir: &Dir, name: &[u8], bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = [name, b".tmp"].concat();
    match dir.unlink(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = dir.create_file(&temporary, mode)?;
    let written = set_mode(&file, mode).and_then(|()| file.write_all(bytes)).and_then(|()| file.sync_all());
    if let Err(e) = written.and_then(|()| dir.rename(&temporary, dir, name)) {
        // Report the first error. The next open removes the leftover file.
        let _ = dir.unlink(&temporary);
        return Err(e);
    }
    dir.sync()
}
