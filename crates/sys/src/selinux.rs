//! SELinux, if the kernel enforces a policy (selinux(8)).

use std::fs;

/// Context of layers that containers may read and execute, in the policies of container hosts
/// (container_selinux(8)). It applies to whole file systems, because files on a volume have no labels.
pub const LAYERS: &str = "system_u:object_r:container_ro_file_t:s0";

/// Reports whether the kernel enforces the policy.
pub fn is_enforcing() -> bool {
    fs::read("/sys/fs/selinux/enforce").is_ok_and(|text| text.starts_with(b"1"))
}
