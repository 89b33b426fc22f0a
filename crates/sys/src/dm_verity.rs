//! Detection of dm-verity in this kernel (Linux, admin-guide/device-mapper/verity.rst).

use std::fs;
use std::path::Path;

use super::release;

/// Files that list the modules of a kernel: the loadable and the built-in ones.
const LISTS: [&str; 2] = ["modules.dep", "modules.builtin"];

/// Reports whether the dm-verity target is available, or is a module that the kernel loads on demand. `root`
/// is the root directory of the node.
pub fn is_supported(root: &Path) -> bool {
    let is_loaded = Path::new("/sys/module/dm_verity").exists();
    is_loaded || is_listed(&root.join("lib/modules").join(release::name()))
}

fn is_listed(modules: &Path) -> bool {
    let names = |text: String| text.lines().any(is_dm_verity_line);
    LISTS.iter().any(|list| fs::read_to_string(modules.join(list)).is_ok_and(names))
}

/// Reports whether a line of a module list is for dm-verity, for example `kernel/drivers/md/dm-verity.ko.xz:
/// kernel/drivers/md/dm-mod.ko.xz …`.
fn is_dm_verity_line(line: &str) -> bool {
    let module = line.split(':').next().unwrap_or_default();
    module.rsplit('/').next().is_some_and(|name| name.starts_with("dm-verity.ko"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_known_by_its_name() {
        assert!(is_dm_verity_line("kernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-mod.ko.xz"));
        assert!(is_dm_verity_line("kernel/drivers/md/dm-verity.ko"));
        assert!(!is_dm_verity_line("kernel/drivers/md/dm-mod.ko: kernel/drivers/md/dm-verity.ko"));
        assert!(!is_listed(Path::new("/no/such/directory")));
    }
}
