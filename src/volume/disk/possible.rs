//! Checks of whether this host can create disks, and of the kind of an existing volume.

use std::path::Path;

use super::{IMAGE, tools};
use crate::volume::layout;
use larder_model::job::VolumeKind;
use larder_sys::privilege::{Capabilities, Capability};
use larder_sys::{Dir, loop_device};

/// Returns the reason why this process cannot create disks; `None` if it can. Disks are formatted by
/// e2fsprogs, attached to loop devices and mounted.
pub fn obstacle() -> Option<String> {
    match Capabilities::effective() {
        Ok(capabilities) if capabilities.has(Capability::SysAdmin) => {}
        Ok(_) => return Some("this process lacks CAP_SYS_ADMIN".to_owned()),
        Err(e) => return Some(format!("cannot read the capabilities of this process: {e}")),
    }
    if let Err(e) = loop_device::available() {
        return Some(format!("cannot open /dev/loop-control: {e}"));
    }
    let missing = tools::PROGRAMS.into_iter().find(|program| !tools::is_installed(program));
    missing.map(|program| format!("{program} (e2fsprogs) is not installed"))
}

/// Returns the kind of the volume that an earlier build started at `path`; `None` if there is none.
pub fn begun(path: &Path) -> Option<VolumeKind> {
    let root = Dir::open(path).ok()?;
    let there = |dir: &Dir, name: &[u8]| dir.try_stat(name).is_ok_and(|stat| stat.is_some());
    let larder = root.open_dir(layout::LARDER).ok();
    if there(&root, IMAGE) || larder.as_ref().is_some_and(|larder| there(larder, IMAGE)) {
        return Some(VolumeKind::Disk);
    }
    larder.filter(|larder| there(larder, layout::JOB)).map(|_| VolumeKind::Directory)
}
