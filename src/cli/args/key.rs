//! Arguments of `larder key`.

use std::path::PathBuf;

use clap::Subcommand;

pub(super) const EXAMPLES: &str = "\
Examples:
  larder key generate /etc/larder/sign.pem
  larder key public /etc/larder/sign.pem --pem > sign.pub

`build --sign-key` signs with the private key, and `verify --trust` and
`attach --trust` take the public one. OpenSSL reads and writes the same format:
`openssl genpkey -algorithm ed25519 -out FILE` (then chmod 600) and
`openssl pkey -pubout`.";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum KeyAction {
    /// Write a new Ed25519 private key to FILE, readable by its owner only, and print the public key
    ///
    /// The file is an unencrypted PKCS#8 PEM. Exits with 73 if FILE exists. The key can sign volumes in your
    /// name: keep it only on the hosts that build volumes.
    Generate {
        /// Path of the new private key file
        file: PathBuf,
    },
    /// Print the public key of the private key in FILE, as `--trust` accepts it
    Public {
        /// Path of the private key file
        file: PathBuf,
        /// Print a PEM, which OpenSSL reads, instead of a line
        #[arg(long)]
        pem: bool,
    },
}
