//! From inside: a thread is confined by itself, so a test confines one and asks it what it can still do.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags};
use rustix::process::getpid;

use super::*;
use crate::sys::privilege::Capability;

/// Runs `probe` on a confined thread. Where this kernel has no Landlock only what it holds us to is probed.
fn confined(confinement: Confinement, probe: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        let confined = confinement.enter().unwrap();
        if confined.landlock {
            probe();
        } else {
            assert!(std::env::var_os("LARDER_REQUIRE_ALL").is_none(), "this kernel has no Landlock");
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn errno<T>(result: rustix::io::Result<T>) -> Option<i32> {
    result.err().map(rustix::io::Errno::raw_os_error)
}

fn denied<T>(result: io::Result<T>) -> bool {
    result.err().is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

struct Place {
    _dir: tempfile::TempDir,
    volume: PathBuf,
    outside: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        for path in [&volume, &outside] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), "content").unwrap();
        }
        Place { _dir: dir, volume, outside }
    }

    fn confinement(&self) -> Confinement {
        Confinement { writable: vec![self.volume.clone()], ..Confinement::default() }
    }
}

#[test]
fn outside_is_out_of_reach() {
    let place = Place::new();
    let (volume, outside) = (place.volume.clone(), place.outside.clone());
    confined(place.confinement(), move || {
        assert!(denied(File::open("/etc/shadow")));
        assert!(denied(File::open(outside.join("file"))));
        assert!(denied(OpenOptions::new().write(true).open(outside.join("file"))));
        assert!(denied(fs::write(outside.join("new"), "")));
        assert!(denied(fs::read_dir(&outside)));
        assert!(denied(fs::remove_file(outside.join("file"))));
        let refused =
            [Some(rustix::io::Errno::XDEV.raw_os_error()), Some(rustix::io::Errno::ACCESS.raw_os_error())];
        let links = [
            fs::hard_link(volume.join("file"), outside.join("out")),
            fs::hard_link(outside.join("file"), volume.join("in")),
            fs::rename(volume.join("file"), outside.join("out")),
        ];
        for link in links {
            assert!(refused.contains(&link.unwrap_err().raw_os_error()));
        }
        // Through a link that leads out of the volume, too.
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        assert!(denied(fs::write(volume.join("link/new"), "")));
        assert!(denied(Command::new("/bin/true").status()));
        let processes = rustix::process::test_kill_process(getpid());
        assert_eq!(errno(processes), None, "signals among ourselves pass");
        let parent = rustix::process::getppid().unwrap();
        assert_eq!(errno(rustix::process::test_kill_process(parent)), Some(1), "others are not signalled");
    });
}

#[test]
fn the_volume_is_within_reach() {
    let place = Place::new();
    let volume = place.volume.clone();
    confined(place.confinement(), move || {
        let (one, two) = (volume.join("one"), volume.join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        fs::write(one.join("file"), "content").unwrap();
        fs::hard_link(one.join("file"), two.join("linked")).unwrap();
        fs::rename(one.join("file"), two.join("renamed")).unwrap();
        OpenOptions::new().write(true).truncate(true).open(two.join("linked")).unwrap();
        fs::rename(&one, two.join("moved")).unwrap();
        std::os::unix::fs::symlink("renamed", two.join("symlink")).unwrap();
        UnixListener::bind(two.join("socket")).unwrap();
        let fifo = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, two.join("fifo"), FileType::Fifo, fifo, 0).unwrap();
        fs::remove_file(two.join("fifo")).unwrap();
        assert_eq!(fs::read_dir(&two).unwrap().count(), 5);
        let exchange = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(CWD, two.join("linked"), CWD, volume.join("file"), exchange).unwrap();
        rustix::fs::linkat(CWD, two.join("renamed"), CWD, volume.join("again"), AtFlags::empty()).unwrap();
        fs::remove_dir_all(&two).unwrap();
    });
}

#[test]
fn readable_and_result_files_are_no_more_than_that() {
    let place = Place::new();
    let (outside, result) = (place.outside.clone(), place.volume.parent().unwrap().join("result"));
    fs::write(&result, "old").unwrap();
    let mut confinement = place.confinement();
    confinement.readable.push(outside.clone());
    confinement.results.push(result.clone());
    confined(confinement, move || {
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "content");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert!(denied(fs::write(outside.join("file"), "")));
        assert!(denied(fs::write(outside.join("new"), "")));
        fs::write(&result, "new").unwrap();
        assert!(denied(File::open(&result)));
        assert!(denied(fs::remove_file(&result)));
        // What the C library opens at each look-up.
        fs::read("/etc/hosts").unwrap();
        fs::read("/proc/self/status").unwrap();
        assert!(denied(fs::read("/proc/self/environ")));
    });
}

#[test]
fn few_capabilities_are_left_and_none_can_be_gained() {
    thread::spawn(|| {
        let before = rustix::thread::capabilities(None).unwrap();
        let _confined = Confinement::default().enter().unwrap();
        let mask = Capability::REQUIRED.into_iter().chain([Capability::SysAdmin]);
        let mask = mask.fold(0, |set, capability| set | 1_u64 << capability.bit());
        let after = rustix::thread::capabilities(None).unwrap();
        assert_eq!(after.permitted.bits(), before.permitted.bits() & mask);
        assert_eq!(after.effective.bits(), before.effective.bits() & mask);
        assert!(after.inheritable.is_empty());
        assert!(rustix::thread::no_new_privs().unwrap());
    })
    .join()
    .unwrap();
}

#[test]
fn what_is_to_be_reached_must_be_there() {
    let confinement =
        Confinement { writable: vec![Path::new("/nonexistent/volume").into()], ..Confinement::default() };
    let error = thread::spawn(move || confinement.enter().unwrap_err()).join().unwrap();
    assert!(error.to_string().contains("/nonexistent/volume"), "{error}");
    assert_eq!(error.class(), Class::Invalid);
}
