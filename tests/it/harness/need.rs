//! Requirements of a test on the machine, and a private mount namespace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, panic, thread};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;

use super::python;

/// A requirement of a test.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// A program on `PATH`.
    Program(&'static str),
    /// Root with the right to mount.
    Root,
    /// The memory controller of cgroup v1.
    MemoryCgroup,
    /// A kernel that mounts EROFS images.
    Erofs,
    /// The packages of `tests/requirements.txt`.
    Python,
    /// The packages of `tests/requirements.txt`, and the browser that they drive.
    Chromium,
    /// The `larder` under test as a static program.
    Static,
}

impl Need {
    fn met(self) -> Result<(), String> {
        match self {
            Need::Program(name) => {
                let path = env::var_os("PATH").unwrap_or_default();
                let found = env::split_paths(&path).any(|dir| dir.join(name).is_file());
                found
                    .then_some(())
                    .ok_or_else(|| format!("{name} is not installed (scripts/install-deps.sh)"))
            }
            Need::Root => {
                let mounts = Uid::effective().is_root()
                    && Command::new("unshare")
                        .args(["--mount", "true"])
                        .stderr(Stdio::null())
                        .status()
                        .is_ok_and(|status| status.success());
                mounts.then_some(()).ok_or_else(|| "it has to run as root, with the right to mount".into())
            }
            Need::Erofs => {
                let known = || {
                    let list = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
                    list.lines().any(|line| line.ends_with("\terofs"))
                };
                let load = || {
                    let _ = Command::new("modprobe").arg("erofs").stderr(Stdio::null()).status();
                    known()
                };
                (known() || load()).then_some(()).ok_or_else(|| "this kernel has no EROFS".into())
            }
            Need::Static => statically_linked()
                .is_some_and(|path| path.is_file())
                .then_some(())
                .ok_or_else(|| "LARDER_TEST_STATIC names no program (make static)".into()),
            Need::MemoryCgroup => Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes")
                .exists()
                .then_some(())
                .ok_or_else(|| "there is no memory controller of cgroup v1".into()),
            Need::Chromium => Need::Python.met().and_then(|()| Need::Program("chromium").met()),
            Need::Python => {
                python::environment().join("bin/python").exists().then_some(()).ok_or_else(|| {
                    format!("{} is absent (scripts/install-deps.sh)", python::environment().display())
                })
            }
        }
    }
}

/// Returns the static `larder` of `make static`, which is built from the same library and passes the same
/// tests.
pub(crate) fn statically_linked() -> Option<PathBuf> {
    env::var_os("LARDER_TEST_STATIC").map(PathBuf::from)
}

/// Runs `test` on a thread in a private mount namespace, so that no mount of it or of its children outlives
/// it.
///
/// A test with a missing requirement is reported as ignored. It fails if `LARDER_REQUIRE_ALL` is set.
pub(crate) fn isolated(needs: &[Need], test: impl FnOnce() + Send + 'static) {
    for need in needs.iter().chain([&Need::Root]) {
        if let Err(why) = need.met() {
            assert!(env::var_os("LARDER_REQUIRE_ALL").is_none(), "cannot run this test: {why}");
            larder_testing::runner::ignore(&why);
        }
    }
    let namespace = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        test();
    };
    if let Err(panic) = thread::spawn(namespace).join() {
        panic::resume_unwind(panic);
    }
}
