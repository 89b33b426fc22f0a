//! Landlock rules: the files that stay accessible.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::{Confinement, Error, root, system_files};

/// The newest Landlock ABI that was tested. Older kernels enforce the rights that they support. Without
/// `Refer` (ABI 2) nothing is enforced, because such a kernel would forbid all links and renames between
/// directories.
const TESTED_ABI: ABI = ABI::V6;

/// Restricts this thread, and returns whether the kernel enforces it, with the descriptors to keep open. TCP
/// is not restricted, because registries can be anywhere. Signals and abstract sockets stay within this
/// process.
pub(super) fn restrict(confinement: &Confinement) -> Result<(bool, Vec<PathFd>), Error> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(TESTED_ABI) & !(AccessFs::Execute | AccessFs::IoctlDev);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(TESTED_ABI))?
        .scope(Scope::from_all(TESTED_ABI))?
        .create()?;
    let mut rules = Rules { ruleset, held: Vec::new() };
    for path in &confinement.writable {
        rules = rules.add(path, open(path)?, write)?;
    }
    if confinement.temporary {
        let path = std::env::temp_dir();
        rules = rules.add(&path, open(&path)?, write)?;
    }
    let readable = confinement.readable.iter().cloned().chain(confinement.system_files());
    for path in readable.chain(system_files::of_process()) {
        // Systems differ in which of these files exist.
        if let Ok(fd) = open(&path) {
            rules = rules.add(&path, fd, read)?;
        }
    }
    for device in root::DEVICES {
        if let Ok(fd) = open(Path::new(device)) {
            rules = rules.add(Path::new(device), fd, read | AccessFs::WriteFile)?;
        }
    }
    let status = rules.ruleset.restrict_self()?;
    Ok((status.ruleset != RulesetStatus::NotEnforced, rules.held))
}

fn open(path: &Path) -> Result<PathFd, Error> {
    PathFd::new(path).map_err(|source| Error::Path {
        path: path.display().to_string(),
        source: match source {
            PathFdError::OpenCall { source, .. } => source,
            other => io::Error::other(other.to_string()),
        },
    })
}

struct Rules {
    ruleset: RulesetCreated,
    held: Vec<PathFd>,
}

impl Rules {
    /// Adds a rule. Rights that apply to directories are valid only for directories (landlock_add_rule(2),
    /// EINVAL).
    fn add(mut self, path: &Path, fd: PathFd, access: BitFlags<AccessFs>) -> Result<Self, Error> {
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(TESTED_ABI) };
        self.ruleset = self.ruleset.add_rule(PathBeneath::new(&fd, access))?;
        self.held.push(fd);
        Ok(self)
    }
}
