//! Address rules: they prevent a registry, or a request of a tenant, from sending the client into a network
//! that it must not reach.
//!
//! `Rules::check` decides for the first request as well as for mirrors, redirects and token servers. Names
//! are resolved here and literal addresses are checked, so the client connects to the address that was
//! checked. A proxy (from the environment) resolves names itself. Behind one, only literal addresses and the
//! proxy's own name are checked.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::error::Fault;
use larder_model::address_range::AddressRange;
use larder_model::job::NetworkAccess;

/// Metadata services, where a cloud host gets its credentials without a password: those of Azure, Oracle
/// Cloud, Alibaba Cloud, AWS (all services of the link, including fd00:ec2::254 and fd00:ec2::23) and Google
/// Cloud. The IPv4 services of AWS, Google Cloud and others are link-local (169.254.169.254, 169.254.170.2).
pub const METADATA: [AddressRange; 5] = [
    v4([168, 63, 129, 16], 32),
    v4([192, 0, 0, 192], 32),
    v4([100, 100, 100, 200], 32),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
];

/// Link-local addresses (RFC 3927, RFC 4291 section 2.5.6).
pub const LINK_LOCAL: [AddressRange; 2] = [v4([169, 254, 0, 0], 16), v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)];

/// "This network" and the unspecified address, multicast and reserved addresses (RFC 6890).
const SPECIAL: [AddressRange; 4] = [
    v4([0, 0, 0, 0], 8),
    v4([224, 0, 0, 0], 3),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

/// RFC 1918, RFC 6598, RFC 4193, and fec0::/10, which RFC 3879 deprecated.
const PRIVATE: [AddressRange; 6] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> AddressRange {
    AddressRange::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u8) -> AddressRange {
    AddressRange::new(IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix)
}

/// Network zone of an address, from harmless to forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Zone {
    /// The internet.
    Public,
    /// Private networks.
    Private,
    /// This machine.
    Loopback,
    /// Link-local addresses, metadata services, "this network": hardly any registry is there.
    Forbidden,
}

impl Zone {
    /// Returns the zone of an address. An IPv6 address that embeds an IPv4 address has the zone of the
    /// latter.
    pub(crate) fn of(address: IpAddr) -> Self {
        embedded_addresses(address).into_iter().map(Zone::of_single).max().unwrap_or(Zone::Forbidden)
    }

    fn of_single(address: IpAddr) -> Self {
        let within = |ranges: &[AddressRange]| ranges.iter().any(|range| range.contains(address, 0));
        if forbidden().any(|range| range.contains(address, 0)) {
            Zone::Forbidden
        } else if address.is_loopback() {
            Zone::Loopback
        } else if within(&PRIVATE) {
            Zone::Private
        } else {
            Zone::Public
        }
    }
}

fn forbidden() -> impl Iterator<Item = &'static AddressRange> {
    METADATA.iter().chain(&LINK_LOCAL).chain(&SPECIAL)
}

/// Returns the addresses at which a packet to `address` can arrive: itself, or the IPv4 addresses that it
/// embeds.
///
/// The embedding forms are IPv4-mapped ::ffff:0:0/96 and IPv4-compatible ::/96 (RFC 4291), translated
/// ::ffff:0:0:0/96 (RFC 7915), NAT64 64:ff9b::/96 (RFC 6052) and 64:ff9b:1::/48 (RFC 8215), 6to4 2002::/16
/// (RFC 3056) and Teredo 2001::/32 (RFC 4380).
fn embedded_addresses(address: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(v6) = address else { return vec![address] };
    let octets = v6.octets();
    let at = |[a, b, c, d]: [usize; 4]| Ipv4Addr::new(octets[a], octets[b], octets[c], octets[d]);
    let last = at([12, 13, 14, 15]);
    let embedded = match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => return vec![address],
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            vec![last]
        }
        // The length of the prefix is known only to its operator (RFC 6052 section 2.2); octet 8 is never
        // part of the address.
        [0x64, 0xff9b, 1, ..] => {
            let of_prefixes = [at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12]), last];
            // The padding of one length reads as 0.x.x.x in the others, and no translator sends anything
            // there.
            let real = of_prefixes.into_iter().filter(|found| found.octets()[0] != 0).collect::<Vec<_>>();
            if real.is_empty() { vec![last] } else { real }
        }
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // The addresses of the server and of the client; the bits of the latter are inverted.
        [0x2001, 0, ..] => vec![at([4, 5, 6, 7]), Ipv4Addr::from_bits(!last.to_bits())],
        _ => return vec![address],
    };
    embedded.into_iter().map(IpAddr::V4).collect()
}

/// Rules for the addresses to which a client may connect, in addition to the zone limit of a request.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Party on whose behalf the client connects.
    pub reach: NetworkAccess,
    /// `registry.allow`: addresses that are always allowed.
    pub allow: Vec<AddressRange>,
    /// `registry.deny`: addresses that [`NetworkAccess::Tenant`] does not include.
    pub deny: Vec<AddressRange>,
    /// Addresses of this host, which [`NetworkAccess::Tenant`] does not include either.
    pub own: Vec<IpAddr>,
}

impl Rules {
    /// Checks that a request limited to the zone `within` may connect to `address`.
    pub(crate) fn check(&self, address: IpAddr, port: u16, within: Zone) -> Result<(), Reason> {
        let addresses = embedded_addresses(address);
        let zone = Zone::of(address);
        if zone == Zone::Forbidden && !addresses.iter().all(|address| self.allows_explicitly(*address, port))
        {
            return Err(Reason::Forbidden);
        }
        if zone.min(Zone::Loopback) > within {
            return Err(Reason::Inward);
        }
        let listed = |ranges: &[AddressRange], at| ranges.iter().any(|range| range.contains(at, port));
        // A denied IPv6 range also denies all IPv4 addresses embedded in it.
        let whole = listed(&self.deny, address);
        let restricted = |address: &IpAddr| {
            let inside = Zone::of_single(*address) >= Zone::Loopback || self.own.contains(address);
            !listed(&self.allow, *address) && (whole || inside || listed(&self.deny, *address))
        };
        if self.reach == NetworkAccess::Tenant && addresses.iter().any(restricted) {
            return Err(Reason::Restricted);
        }
        Ok(())
    }

    /// Reports whether a forbidden `address` is allowed explicitly. `registry.allow` must list the address
    /// itself, or a range that lies within one forbidden range. An entry 100.64.0.0/10 does not allow the
    /// metadata service in it. `true` for an address that is not forbidden.
    fn allows_explicitly(&self, address: IpAddr, port: u16) -> bool {
        Zone::of_single(address) != Zone::Forbidden
            || self.allow.iter().any(|allowed| {
                allowed.contains(address, port) && forbidden().any(|range| range.covers(allowed))
            })
    }

    /// Returns `port` if a rule applies to exactly this port.
    pub(crate) fn own_port(&self, port: u16) -> Option<u16> {
        self.allow.iter().chain(&self.deny).any(|range| range.port() == Some(port)).then_some(port)
    }
}

/// Reason why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The address is link-local, a metadata service or not a host address, and not allowed explicitly.
    Forbidden,
    /// The address is further inside the network than the registry that leads there.
    Inward,
    /// Tenants cannot reach the address.
    Restricted,
}

/// Returns the literal address in a URL, if it has one.
pub(crate) fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Reports whether a host (without port) is this machine, by name or by address.
pub(crate) fn is_loopback_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| Zone::of(ip) == Zone::Loopback)
}

/// Refuses a literal address that violates `rules`. The resolver checks names.
pub(crate) fn check_literal(url: &Url, rules: &Rules, within: Zone) -> Result<(), Fault> {
    let Some(address) = literal(url) else { return Ok(()) };
    let port = url.port_or_known_default().unwrap_or_default();
    rules
        .check(address, port, within)
        .map_err(|reason| AddressRefused { host: address.to_string(), reason }.into())
}

/// A connection to the address of a host is not allowed.
#[derive(Debug, thiserror::Error)]
#[error("{host} {}", self.why())]
pub(crate) struct AddressRefused {
    host: String,
    reason: Reason,
}

impl AddressRefused {
    /// Returns the explanation for the user. A tenant can read it, so it reveals neither the address nor the
    /// rule.
    fn why(&self) -> &'static str {
        match self.reason {
            Reason::Forbidden => {
                "is at a link-local or metadata address; if it is your own registry, add the address to registry.allow"
            }
            Reason::Inward => {
                "is at a loopback or private address, and a registry outside that network must not refer to it"
            }
            Reason::Restricted => {
                "is at an address that tenants cannot reach; an administrator can add it to registry.allow"
            }
        }
    }
}

impl From<&AddressRefused> for Fault {
    fn from(refused: &AddressRefused) -> Self {
        match refused.reason {
            Reason::Forbidden | Reason::Inward => Fault::Refused(refused.to_string()),
            Reason::Restricted => Fault::Invalid(refused.to_string()),
        }
    }
}

impl From<AddressRefused> for Fault {
    fn from(refused: AddressRefused) -> Self {
        Fault::from(&refused)
    }
}

/// The name service reports that the host does not exist. A retry does not help.
#[derive(Debug, thiserror::Error)]
#[error("host {0:?} does not exist")]
pub(crate) struct UnknownHost(pub(crate) String);

/// Texts for `EAI_NONAME` and `EAI_NODATA` in glibc and musl (getaddrinfo(3)): the standard library passes on
/// only the text. A name service that does not respond is a different error, `EAI_AGAIN`.
const NO_HOST: [&str; 3] =
    ["Name or service not known", "No address associated with hostname", "Name does not resolve"];

fn lookup_failed(name: &Name, error: std::io::Error) -> Box<dyn std::error::Error + Send + Sync> {
    let text = error.to_string();
    if NO_HOST.iter().any(|reason| text.ends_with(reason)) {
        return UnknownHost(name.as_str().to_owned()).into();
    }
    error.into()
}

/// The system's resolver, without refused addresses.
#[derive(Debug)]
pub(crate) struct CheckedResolver {
    pub(crate) rules: Arc<Rules>,
    /// Innermost zone that the request may reach.
    pub(crate) within: Zone,
    /// Port of the request, if a rule applies to that port.
    pub(crate) port: Option<u16>,
    /// Host names of the configured proxies. They may be anywhere.
    pub(crate) proxies: Arc<HashSet<String>>,
    /// Number of lookups so far. Each new connection prefers another address.
    pub(crate) turn: AtomicUsize,
}

/// Rotates the addresses of each family by `turn`. The system orders the families (RFC 6724).
fn rotate(addresses: &mut [SocketAddr], turn: usize) {
    for family in addresses.chunk_by_mut(|a, b| a.is_ipv4() == b.is_ipv4()) {
        family.rotate_left(turn % family.len());
    }
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let proxy = self.proxies.contains(name.as_str());
        let (rules, within, port) = (Arc::clone(&self.rules), self.within, self.port.unwrap_or_default());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let mut allowed: Vec<SocketAddr> = Vec::new();
            let mut refused = None;
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            for found in found.map_err(|error| lookup_failed(&name, error))? {
                match rules.check(found.ip(), port, within) {
                    Err(reason) if !proxy => refused = refused.or(Some(reason)),
                    _ => allowed.push(found),
                }
            }
            match refused {
                Some(reason) if allowed.is_empty() => {
                    Err(AddressRefused { host: name.as_str().to_owned(), reason }.into())
                }
                _ => {
                    rotate(&mut allowed, turn);
                    Ok(Box::new(allowed.into_iter()) as Addrs)
                }
            }
        })
    }
}

/// Returns the host names in the proxy variables.
pub(crate) fn proxy_hosts(variable: impl Fn(&str) -> Option<String>) -> HashSet<String> {
    const VARIABLES: [&str; 6] =
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let host = |value: String| {
        let url = if value.contains("://") { value } else { format!("http://{value}") };
        Url::parse(&url).ok()?.host_str().map(str::to_owned)
    };
    VARIABLES.into_iter().filter_map(&variable).filter_map(host).collect()
}

#[cfg(test)]
mod tests;
