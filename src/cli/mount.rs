//! `larder mount` and `larder umount`: mounts an image of a sealed volume as one read-only tree.

use super::args::{MountArgs, UmountArgs};
use super::exit;
use crate::caches::layout::Layout;
use crate::config::Config;
use crate::rootfs::{self, Records};
use crate::telemetry::Console;

fn records(config: &Config) -> Records {
    Records::new(Layout::new(&config.state.dir).mounted())
}

/// Runs `mount` and returns its exit code.
pub(super) fn mount(args: &MountArgs, config: &Config, console: &Console) -> u8 {
    match rootfs::mount(&args.volume, &args.image, &args.dir, &records(config)) {
        Ok(()) => 0,
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

/// Runs `umount` and returns its exit code.
pub(super) fn unmount(args: &UmountArgs, config: &Config, console: &Console) -> u8 {
    match rootfs::unmount(&args.dir, &records(config)) {
        Ok(()) => 0,
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}
