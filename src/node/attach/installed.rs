//! Detects the container runtimes of a node.

use std::fs;
use std::path::{Path, PathBuf};

use super::Host;
use larder_model::runtime::Runtime;

/// Directories with installed programs (hier(7)). The PATH of a unit is shorter than that of an operator.
const PROGRAMS: [&str; 6] =
    ["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/opt/bin", "/usr/libexec/crio"];

/// Returns the runtimes whose programs are installed.
pub(super) fn runtimes(host: &Host) -> Vec<Runtime> {
    let has = |names: &[&str]| names.iter().any(|name| program(host, name).is_some());
    let names = |runtime: Runtime| -> &[&str] {
        match runtime {
            Runtime::Podman => &["podman", "buildah"],
            Runtime::Crio => &["crio"],
            Runtime::Containerd => &["containerd"],
        }
    };
    Runtime::ALL.into_iter().filter(|runtime| has(names(*runtime))).collect()
}

/// Reports whether a program might be running. A container cannot see the processes of the node.
pub(super) fn may_run(host: &Host, name: &str) -> bool {
    let is_it = |entry: fs::DirEntry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let runs = || fs::read_dir("/proc").is_ok_and(|all| all.flatten().any(is_it));
    program(host, name).is_some() && (host.root != Path::new("/") || runs())
}

/// Returns the path of an installed program.
pub(super) fn program(host: &Host, name: &str) -> Option<PathBuf> {
    PROGRAMS.iter().map(|dir| host.path(dir).join(name)).find(|path| path.is_file())
}
