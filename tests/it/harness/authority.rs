//! A private certificate authority.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::succeed;

/// A certificate authority, and certificates that it signed.
pub(crate) struct Authority {
    dir: PathBuf,
}

impl Authority {
    pub(crate) fn new(dir: &Path) -> Self {
        let subject = ["-subj", "/CN=larder test authority"];
        let key = [
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "ca.key", "-out",
            "ca.pem",
        ];
        succeed(Command::new("openssl").args(key).args(subject).current_dir(dir));
        Authority { dir: dir.to_owned() }
    }

    pub(crate) fn sign(&self, name: &str, extension: &str) {
        let request = format!("{name}.csr");
        let key = format!("{name}.key");
        let new = [
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &request,
            "-subj",
            "/CN=larder",
        ];
        succeed(Command::new("openssl").args(new).current_dir(&self.dir));
        fs::write(self.dir.join("extension"), extension).unwrap();
        let out = format!("{name}.pem");
        let sign = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        let more = ["-days", "2", "-out", &out, "-extfile", "extension"];
        succeed(Command::new("openssl").args(sign).args(more).current_dir(&self.dir));
    }
}
