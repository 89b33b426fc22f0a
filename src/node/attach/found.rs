//! Which runtimes a node has.

use std::path::PathBuf;

use super::Host;
use crate::model::runtime::Runtime;

/// Where programs are installed (hier(7)); a unit has a shorter PATH than an operator.
const PROGRAMS: [&str; 6] =
    ["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/opt/bin", "/usr/libexec/crio"];

/// Those whose programs are there.
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

/// Where a program is.
pub(super) fn program(host: &Host, name: &str) -> Option<PathBuf> {
    PROGRAMS.iter().map(|dir| host.path(dir).join(name)).find(|path| path.is_file())
}
