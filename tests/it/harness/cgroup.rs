//! A memory limit, enforced by the memory controller of cgroup v1.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::in_shell;
use std::time::Duration;

/// A memory cgroup. Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct MemoryCgroup {
    dir: PathBuf,
}

impl MemoryCgroup {
    /// Creates a cgroup with a limit of `limit` bytes of memory, page cache included.
    pub(crate) fn new(name: &str, limit: u64) -> Self {
        let dir = PathBuf::from(format!("/sys/fs/cgroup/memory/larder-test-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("memory.limit_in_bytes"), limit.to_string()).unwrap();
        MemoryCgroup { dir }
    }

    /// Returns a command that enters the cgroup and then executes `command`.
    pub(crate) fn wrap(&self, command: &Command) -> Command {
        in_shell("echo $$ > \"$0\" && exec \"$@\"", &self.dir.join("cgroup.procs"), command)
    }

    /// Returns the peak memory use so far, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join("memory.max_usage_in_bytes")).unwrap();
        text.trim().parse().unwrap()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // The kernel needs a moment to release processes that have just ended.
        for _ in 0..50 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
