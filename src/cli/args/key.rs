//! `larder key`.

use std::path::PathBuf;

use clap::Subcommand;

pub(super) const EXAMPLES: &str = "\
Examples:
  larder key generate /etc/larder/sign.pem
  larder build --sign-key /etc/larder/sign.pem --volume ./cache --size 20GiB nginx:1.27
  larder key public /etc/larder/sign.pem --pem > sign.pub
  larder verify ./cache --trust sign.pub

OpenSSL reads and writes the same files: `openssl genpkey -algorithm ed25519 -out FILE` (then chmod 600), `openssl pkey -pubout`.";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum KeyAction {
    /// Write a new private key of Ed25519 to FILE, readable by its owner alone, and print the public one
    ///
    /// PKCS#8, PEM, not encrypted. Exits with 73 if FILE exists. Whoever has it can sign in your name: keep it where volumes are
    /// built, and nowhere else.
    Generate {
        /// The file
        file: PathBuf,
    },
    /// Print the public key of the private one in FILE, as `--trust` takes it
    Public {
        /// The file
        file: PathBuf,
        /// As a PEM, which OpenSSL reads, instead of a line
        #[arg(long)]
        pem: bool,
    },
}
