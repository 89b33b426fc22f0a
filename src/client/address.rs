//! Address of a daemon.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;

/// The daemon's socket, used unless another address is given.
pub const DEFAULT: &str = "unix:///run/larder/larder.sock";

/// The address of a daemon: `unix:///path`, `http://host[:port]` or `https://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Path of a Unix socket.
    Unix(PathBuf),
    /// TCP, with or without TLS.
    Http(Url),
}

/// The error for a string that is not the address of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the address of a daemon: want unix:///path, http://host:port or https://host:port")]
pub struct ParseAddressError(String);

impl Address {
    /// Returns the base URL for paths. Over a Unix socket its host has no meaning.
    pub(super) fn base(&self) -> Url {
        match self {
            Address::Http(url) => url.clone(),
            Address::Unix(_) =>
            {
                #[expect(clippy::unwrap_used, reason = "a constant that a test parses")]
                Url::parse("http://localhost").unwrap()
            }
        }
    }
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseAddressError(s.chars().take(300).collect());
        if let Some(path) = s.strip_prefix("unix://") {
            return if path.starts_with('/') { Ok(Address::Unix(path.into())) } else { Err(refuse()) };
        }
        let url = Url::parse(s).map_err(|_| refuse())?;
        // A password in an address would be visible in logs and process lists. Use the environment variables
        // for credentials.
        let plain = url.path() == "/"
            && url.query().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if matches!(url.scheme(), "http" | "https") && url.has_host() && plain {
            Ok(Address::Http(url))
        } else {
            Err(refuse())
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_and_refused_forms() {
        for good in [DEFAULT, "http://127.0.0.1:8080", "https://larder.example.com", "http://[::1]:1"] {
            let address: Address = good.parse().unwrap();
            assert_eq!(address.to_string(), good);
            assert!(address.base().has_host());
        }
        for bad in
            ["", "/run/x.sock", "unix://x", "ftp://h", "http://h/path", "http://u:p@h", "http://", "h:1"]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
