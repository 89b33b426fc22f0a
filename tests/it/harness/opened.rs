//! Records which files of a mount are opened by any process (fanotify(7)), including opens by the kernel for
//! an exec.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

/// A watch on a mount, from its creation on. Directories do not count.
pub(crate) struct Opened {
    mount: PathBuf,
    events: Fanotify,
}

impl Opened {
    /// Starts to watch the file system at `mount`.
    pub(crate) fn watch(mount: &Path) -> Self {
        let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let events = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC).unwrap();
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT;
        events.mark(mark, MaskFlags::FAN_OPEN, nix::fcntl::AT_FDCWD, Some(mount)).unwrap();
        Opened { mount: mount.to_owned(), events }
    }

    /// Returns the paths, relative to the mount, of the regular files that were opened so far.
    pub(crate) fn paths(&self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        loop {
            let events = match self.events.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return paths,
                Err(e) => panic!("reading events: {e}"),
            };
            for event in events {
                let fd = event.fd().expect("the fanotify queue overflowed");
                let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
                let path = path.strip_prefix(&self.mount).unwrap_or(&path).to_owned();
                paths.insert(path.into_os_string().into_string().unwrap());
            }
        }
    }
}
