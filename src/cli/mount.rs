//! `larder mount` and `larder umount`: an image of a sealed volume as one read-only tree.

use super::args::{MountArgs, UmountArgs};
use super::exit;
use crate::rootfs;
use crate::telemetry::Console;

/// Runs `mount` and answers its exit code.
pub(super) fn mount(args: &MountArgs, console: &Console) -> u8 {
    match rootfs::mount(&args.volume, &args.image, &args.dir) {
        Ok(()) => 0,
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}

/// Runs `umount` and answers its exit code.
pub(super) fn unmount(args: &UmountArgs, console: &Console) -> u8 {
    match rootfs::unmount(&args.dir) {
        Ok(()) => 0,
        Err(error) => exit::fail(console, error.class(), &error.to_string()),
    }
}
