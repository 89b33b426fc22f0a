//! Confinement of commands that read a volume from an untrusted source.

use std::path::{Path, PathBuf};

use larder_sys::confine::{Confined, Confinement, Error, Privileges, Role, Signals};

/// Confines this process, which must be single-threaded, to reading the volume at `volume`. It has no network
/// and no other files.
///
/// # Errors
/// Confining the process fails. The process must then end.
pub(super) fn reader(volume: &Path) -> Result<Confined, Error> {
    enter(Role::Reader, volume, Vec::new(), Signals::End)
}

/// Confines this process like [`reader`], and also allows writing in `outputs`. The process handles signals
/// ([`signals`](super::signals)).
///
/// # Errors
/// Confining the process fails. The process must then end.
pub(super) fn writer(volume: &Path, outputs: Vec<PathBuf>) -> Result<Confined, Error> {
    enter(Role::Writer, volume, outputs, Signals::Handled)
}

fn enter(role: Role, volume: &Path, writable: Vec<PathBuf>, signals: Signals) -> Result<Confined, Error> {
    let readable = vec![volume.to_owned()];
    let confinement = Confinement {
        role,
        privileges: Privileges::ReadLayers,
        writable,
        readable,
        temporary: true,
        signals,
    };
    let confined = confinement.enter()?;
    if let Some(missing) = confined.isolation.missing() {
        tracing::warn!("the process that reads the volume is not fully confined: {missing}");
    }
    Ok(confined)
}
