//! Whether this kernel has dm-verity (Linux, admin-guide/device-mapper/verity.rst).

use std::fs;
use std::path::Path;

use super::release;

/// What the modules of a kernel are listed in: those that can be loaded, and those that it is built with.
const LISTS: [&str; 2] = ["modules.dep", "modules.builtin"];

/// Whether the target is there, or is a module that the kernel loads when it is asked for it. `root` is where the file system of
/// the node is.
pub fn is_supported(root: &Path) -> bool {
    let is_loaded = Path::new("/sys/module/dm_verity").exists();
    is_loaded || is_listed(&root.join("lib/modules").join(release::name()))
}

fn is_listed(modules: &Path) -> bool {
    let names = |text: String| text.lines().any(names_it);
    LISTS.iter().any(|list| fs::read_to_string(modules.join(list)).is_ok_and(names))
}

/// `kernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-mod.ko.xz …`
fn names_it(line: &str) -> bool {
    let module = line.split(':').next().unwrap_or_default();
    module.rsplit('/').next().is_some_and(|name| name.starts_with("dm-verity.ko"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_known_by_its_name() {
        assert!(names_it("kernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-mod.ko.xz"));
        assert!(names_it("kernel/drivers/md/dm-verity.ko"));
        assert!(!names_it("kernel/drivers/md/dm-mod.ko: kernel/drivers/md/dm-verity.ko"));
        assert!(!is_listed(Path::new("/no/such/directory")));
    }
}
