//! Landlock rules: which files stay within reach.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::{Confined, Confinement, Error, system_files};

/// The newest rights that were tried here. Older kernels enforce those they know; where `Refer` (ABI 2) is not among
/// them nothing is enforced, because that kernel would forbid all links and renames between directories.
const TRIED: ABI = ABI::V6;

/// Restricts this thread. TCP is left alone, registries are anywhere; signals and abstract sockets stay among ourselves.
pub(super) fn restrict(confinement: &Confinement) -> Result<Confined, Error> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(TRIED) & !(AccessFs::Execute | AccessFs::IoctlDev);
    let result = AccessFs::WriteFile | AccessFs::Truncate;
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(TRIED))?
        .scope(Scope::from_all(TRIED))?
        .create()?;
    let mut rules = Rules { ruleset, held: Vec::new() };
    for (paths, access) in
        [(&confinement.writable, write), (&confinement.readable, read), (&confinement.results, result)]
    {
        for path in paths {
            rules = rules.add(path, open(path)?, access)?;
        }
    }
    for path in system_files::public() {
        // Systems differ in which of them they have.
        if let Ok(fd) = open(&path) {
            rules = rules.add(&path, fd, read)?;
        }
    }
    let status = rules.ruleset.restrict_self()?;
    Ok(Confined { landlock: status.ruleset != RulesetStatus::NotEnforced, _held: rules.held })
}

fn open(path: &Path) -> Result<PathFd, Error> {
    PathFd::new(path).map_err(|source| Error::Path { path: path.display().to_string(), source })
}

struct Rules {
    ruleset: RulesetCreated,
    held: Vec<PathFd>,
}

impl Rules {
    /// Only directories take the rights of directories (landlock_add_rule(2), EINVAL).
    fn add(mut self, path: &Path, fd: PathFd, access: BitFlags<AccessFs>) -> Result<Self, Error> {
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(TRIED) };
        self.ruleset = self.ruleset.add_rule(PathBeneath::new(&fd, access))?;
        self.held.push(fd);
        Ok(self)
    }
}
