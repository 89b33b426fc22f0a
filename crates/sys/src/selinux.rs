//! SELinux, where the kernel enforces a policy (selinux(8)).

use std::fs;

/// The context of layers that containers may read and run, in the policies of container hosts (container_selinux(8)). It is
/// given to whole file systems, for what is on a volume comes without labels.
pub const LAYERS: &str = "system_u:object_r:container_ro_file_t:s0";

/// Whether the policy is enforced.
pub fn is_enforcing() -> bool {
    fs::read("/sys/fs/selinux/enforce").is_ok_and(|text| text.starts_with(b"1"))
}
