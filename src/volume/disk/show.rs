//! A view of a directory volume that every user of the host can read, although the volume itself is private
//! to its owner.
//!
//! The view is a tmpfs with mode 0755 on which each top-level file and directory of the volume is mounted:
//! read-only, without device nodes, setuid bits or execution. It is assembled out of sight and attached in
//! one step.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::thread;

use crate::volume::layout;
use larder_sys::dir::set_mode;
use larder_sys::mount::{self, Mount};
use larder_sys::{Dir, FileType};

/// Top-level names that no consumer reads.
const HIDDEN: [&[u8]; 2] = [layout::LARDER, layout::LOST_AND_FOUND];

/// Attaches a view of the directory `volume` over the directory `over`.
pub(super) fn attach(volume: &Path, over: &Path) -> io::Result<()> {
    let below = Dir::open(over)?;
    // The end of the thread removes the namespace.
    let made = thread::scope(|scope| scope.spawn(|| assemble(volume, over)).join());
    made.map_err(|_| io::Error::other("the assembling thread panicked"))??.attach(&below)
}

fn assemble(volume: &Path, stage: &Path) -> io::Result<Mount> {
    mount::private_namespace()?;
    let root = Dir::open(volume)?;
    mount::memory_for_all(stage)?;
    let top = Dir::open(stage)?;
    for name in root.names()? {
        if HIDDEN.contains(&&*name) {
            continue;
        }
        let entry = match root.stat(&name)?.file_type {
            FileType::Directory => {
                top.make_dir(&name, 0o755)?;
                top.set_mode(&name, 0o755)?;
                Mount::of_dir(&root.open_dir(&name)?)?
            }
            FileType::Regular => {
                set_mode(top.create_file(&name, 0o644)?, 0o644)?;
                Mount::of_file(&root.open_file(&name)?)?
            }
            _ => return Err(io::Error::new(ErrorKind::InvalidData, wrong_type(&name))),
        };
        entry.attach_read_only(&stage.join(as_path(&name)))?;
    }
    mount::memory_read_only(stage)?;
    Mount::clone_of_tree(stage)
}

fn as_path(name: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(name))
}

fn wrong_type(name: &[u8]) -> String {
    format!("{} on the volume is neither a file nor a directory", larder_layer::path::shown(name))
}
