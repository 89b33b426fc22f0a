//! Capabilities of this process (capabilities(7)), read from the effective set and not inferred from the user
//! ID.

use std::{fmt, io};

/// Capabilities that writing image layers requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named in capabilities(7)")]
pub enum Capability {
    Chown,
    DacOverride,
    Fowner,
    Fsetid,
    Mknod,
    SysAdmin,
    Setfcap,
}

impl Capability {
    /// The capabilities without which a layer cannot be written exactly. `CAP_SYS_ADMIN` is not included:
    /// without it, opaque directories are written as whiteouts.
    pub const REQUIRED: [Capability; 6] = [
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Mknod,
        Capability::Setfcap,
    ];

    /// Returns the bit in the capability sets (linux/capability.h).
    pub(super) fn bit(self) -> u32 {
        match self {
            Capability::Chown => 0,
            Capability::DacOverride => 1,
            Capability::Fowner => 3,
            Capability::Fsetid => 4,
            Capability::SysAdmin => 21,
            Capability::Mknod => 27,
            Capability::Setfcap => 31,
        }
    }

    /// Returns a phrase for the operation that requires the capability.
    pub fn purpose(self) -> &'static str {
        match self {
            Capability::Chown => "give files the owners in the image",
            Capability::DacOverride => "write below directories of other owners",
            Capability::Fowner => "set modes, times and attributes of files of other owners",
            Capability::Fsetid => "keep setgid bits of other groups",
            Capability::Mknod => "create device nodes",
            Capability::SysAdmin => "write trusted.* attributes",
            Capability::Setfcap => "write file capabilities",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Capability::Chown => "CAP_CHOWN",
            Capability::DacOverride => "CAP_DAC_OVERRIDE",
            Capability::Fowner => "CAP_FOWNER",
            Capability::Fsetid => "CAP_FSETID",
            Capability::Mknod => "CAP_MKNOD",
            Capability::SysAdmin => "CAP_SYS_ADMIN",
            Capability::Setfcap => "CAP_SETFCAP",
        })
    }
}

/// The effective capabilities of this process.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    effective: u64,
    initial_namespace: bool,
}

impl Capabilities {
    /// Reads the capabilities from /proc (proc_pid_status(5)).
    ///
    /// # Errors
    /// Those of reading /proc; `InvalidData` if the file has no `CapEff`.
    pub fn effective() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let effective = parse_effective(&status)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in /proc/self/status"))?;
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Ok(Capabilities { effective, initial_namespace: is_initial(&map) })
    }

    /// Reports whether `capability` is effective. `CAP_SYS_ADMIN` counts only in the initial user namespace,
    /// because the kernel refuses trusted.* attributes elsewhere.
    pub fn has(&self, capability: Capability) -> bool {
        let there = self.effective >> capability.bit() & 1 == 1;
        there && (capability != Capability::SysAdmin || self.initial_namespace)
    }

    /// Returns the missing ones of [`Capability::REQUIRED`].
    pub fn missing(&self) -> Vec<Capability> {
        Capability::REQUIRED.into_iter().filter(|capability| !self.has(*capability)).collect()
    }
}

fn parse_effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Reports whether `uid_map` is that of the initial user namespace, which maps every ID to itself
/// (user_namespaces(7)).
fn is_initial(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_the_baseline_profile() {
        // The bits of CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD and SETFCAP.
        let effective = parse_effective("Name:\tx\nCapEff:\t000000008800001b\n").unwrap();
        let pod = Capabilities { effective, initial_namespace: true };
        assert!(pod.missing().is_empty());
        assert!(!pod.has(Capability::SysAdmin));
        let none = Capabilities { effective: 0, initial_namespace: true };
        assert_eq!(none.missing(), Capability::REQUIRED);
    }

    #[test]
    fn sys_admin_counts_in_the_initial_namespace_only() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0     100000      65536\n"));
        let nested = Capabilities { effective: u64::MAX, initial_namespace: false };
        assert!(!nested.has(Capability::SysAdmin));
        assert!(nested.has(Capability::Chown));
    }
}
