//! A range of IP addresses, as written in the configuration: `10.0.0.0/8`, `fd00::/8`, `127.0.0.1`,
//! `127.0.0.1:5000`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network in CIDR notation (RFC 4632, RFC 4291 section 2.3), or one address with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    first: IpAddr,
    /// Number of leading bits that all addresses of the range share.
    prefix: u8,
    port: Option<u16>,
}

/// The error for a string that is not an [`AddressRange`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address range: want 10.0.0.0/8, fd00::/8, 127.0.0.1, 127.0.0.1:5000 or [::1]:5000")]
pub struct ParseAddressRangeError(String);

impl AddressRange {
    /// Creates the range of addresses that share the first `prefix` bits with `first`, on any port.
    pub const fn new(first: IpAddr, prefix: u8) -> Self {
        AddressRange { first, prefix, port: None }
    }

    /// Returns the port that the range is limited to, or `None` if it includes all ports.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Reports whether `address` and `port` are in the range. An IPv4 address never matches an IPv6 range, or
    /// the reverse.
    pub fn contains(&self, address: IpAddr, port: u16) -> bool {
        self.port.is_none_or(|only| only == port) && self.has(address)
    }

    /// Reports whether every address of `other` is in the range.
    pub fn covers(&self, other: &AddressRange) -> bool {
        other.prefix >= self.prefix && self.has(other.first)
    }

    fn has(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                same(first.to_bits().into(), address.to_bits().into(), 32, self.prefix)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                same(first.to_bits(), address.to_bits(), 128, self.prefix)
            }
            _ => false,
        }
    }
}

/// Reports whether the first `prefix` of `bits` bits are equal.
fn same(a: u128, b: u128, bits: u8, prefix: u8) -> bool {
    // `checked_shr` returns `None` for a shift by the full width, which means that there is no bit to
    // compare.
    (a ^ b).checked_shr(u32::from(bits.saturating_sub(prefix))).unwrap_or_default() == 0
}

impl FromStr for AddressRange {
    type Err = ParseAddressRangeError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseAddressRangeError(s.chars().take(80).collect());
        if let Ok(at) = s.parse::<SocketAddr>() {
            let port = Some(at.port()).filter(|port| *port > 0).ok_or_else(refuse)?;
            return Ok(AddressRange { port: Some(port), ..single(at.ip()) });
        }
        let Some((first, prefix)) = s.split_once('/') else {
            return s.parse().map(single).map_err(|_| refuse());
        };
        let first: IpAddr = first.parse().map_err(|_| refuse())?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse())?;
        let range = AddressRange::new(first, prefix);
        // Reject an address inside a range that is written as the start of the range: it is probably a typing
        // error.
        let begins = match first {
            IpAddr::V4(first) => prefix <= 32 && first.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0,
            IpAddr::V6(first) => {
                prefix <= 128 && first.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0
            }
        };
        if begins { Ok(range) } else { Err(refuse()) }
    }
}

fn single(address: IpAddr) -> AddressRange {
    AddressRange::new(address, if address.is_ipv4() { 32 } else { 128 })
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.first, port).fmt(f),
            None => write!(f, "{}/{}", self.first, self.prefix),
        }
    }
}

impl TryFrom<String> for AddressRange {
    type Error = ParseAddressRangeError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_contains_its_addresses() {
        for (range, address, port, contains) in [
            ("10.0.0.0/8", "10.255.1.2", 1, true),
            ("10.0.0.0/8", "11.0.0.0", 1, false),
            ("0.0.0.0/0", "255.1.2.3", 1, true),
            ("0.0.0.0/0", "::1", 1, false),
            ("::/0", "ffff::1", 1, true),
            ("::/0", "1.2.3.4", 1, false),
            ("fd00::/8", "fdff::1", 1, true),
            ("fd00::/8", "fe00::1", 1, false),
            ("127.0.0.1", "127.0.0.1", 9, true),
            ("127.0.0.1", "127.0.0.2", 9, false),
            ("127.0.0.1:5000", "127.0.0.1", 5000, true),
            ("127.0.0.1:5000", "127.0.0.1", 5001, false),
            ("[::1]:5000", "::1", 5000, true),
        ] {
            let parsed: AddressRange = range.parse().unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap(), port), contains, "{range} {address}:{port}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
        let covers = |a: &str, b: &str| a.parse::<AddressRange>().unwrap().covers(&b.parse().unwrap());
        assert!(covers("169.254.0.0/16", "169.254.1.0/24") && covers("::1", "::1"));
        assert!(!covers("169.254.1.0/24", "169.254.0.0/16") && !covers("10.0.0.0/8", "fd00::/8"));
    }

    #[test]
    fn malformed_ranges_are_refused() {
        for bad in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "::/129",
            "fd00::1/8",
            "r.io",
            "10.0.0.0/8:5",
            "1.2.3.4:0",
            "1/8",
        ] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
        }
    }
}
