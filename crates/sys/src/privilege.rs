//! What this process may do (capabilities(7)), read from the effective set rather than guessed from the user ID.

use std::fmt;
use std::io;

/// Capabilities that writing image layers asks for.
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
    /// All without which a layer cannot be written as it is. `CAP_SYS_ADMIN` is not among them: without it opaque
    /// directories are settled as whiteouts.
    pub const REQUIRED: [Capability; 6] = [
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Mknod,
        Capability::Setfcap,
    ];

    /// Bit in the capability sets (linux/capability.h).
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

    /// What cannot be done without it.
    pub fn purpose(self) -> &'static str {
        match self {
            Capability::Chown => "give files the owners that the image names",
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
    /// Reads them from /proc (proc_pid_status(5)).
    pub fn effective() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let effective = parse_effective(&status)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in /proc/self/status"))?;
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Ok(Capabilities { effective, initial_namespace: is_initial(&map) })
    }

    /// Whether `capability` is there. `CAP_SYS_ADMIN` counts in the initial user namespace only: elsewhere the kernel
    /// refuses trusted.* attributes all the same.
    pub fn has(&self, capability: Capability) -> bool {
        let there = self.effective >> capability.bit() & 1 == 1;
        there && (capability != Capability::SysAdmin || self.initial_namespace)
    }

    /// The required ones that are missing.
    pub fn missing(&self) -> Vec<Capability> {
        Capability::REQUIRED.into_iter().filter(|capability| !self.has(*capability)).collect()
    }
}

fn parse_effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The initial user namespace maps every ID onto itself (user_namespaces(7)).
fn is_initial(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_the_baseline_profile() {
        // CHOWN DAC_OVERRIDE FOWNER FSETID MKNOD SETFCAP
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
