//! Files that are either the old or the new one, never half.

use std::io::{self, Write};

use super::dir::{Dir, set_mode};

/// Writes `bytes` beside `name`, flushes them, renames the file into place and flushes the directory. The file gets exactly
/// `mode`, whatever the umask.
pub fn write(dir: &Dir, name: &[u8], bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = [name, b".tmp"].concat();
    match dir.unlink(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = dir.create_file(&temporary, mode)?;
    let written = set_mode(&file, mode).and_then(|()| file.write_all(bytes)).and_then(|()| file.sync_all());
    if let Err(e) = written.and_then(|()| dir.rename(&temporary, dir, name)) {
        // The first error is the one to tell; a left-over is swept by the next open.
        let _ = dir.unlink(&temporary);
        return Err(e);
    }
    dir.sync()
}
