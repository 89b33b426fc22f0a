//! Which addresses a connection may go to: the defence against a registry, or an order, that sends the client into a
//! network where it has no business.
//!
//! `Rules::check` decides, for the first request and for mirrors, redirects and token servers alike. Names are resolved
//! here and literal addresses checked, so the address that was checked is the one that is connected to. A proxy (from the
//! environment) resolves names itself: behind one, only literal addresses and the proxy's own name are checked.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::error::Fault;
use larder_model::address_range::AddressRange;
use larder_model::job::Reach;

/// Metadata services, where a host of a cloud gets its credentials without a password: of Azure, Oracle Cloud, Alibaba
/// Cloud, AWS (all services of the link, fd00:ec2::254 and fd00:ec2::23 among them) and Google Cloud. That of AWS, Google
/// Cloud and others over IPv4 is link-local (169.254.169.254, 169.254.170.2).
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

/// RFC 1918, RFC 6598, RFC 4193, and RFC 3879, which took back fec0::/10.
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

/// Where an address lies, from harmless to never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Zone {
    /// The internet.
    Public,
    /// Private networks.
    Private,
    /// This machine.
    Loopback,
    /// Link-local, metadata services, "this network": hardly a registry lives there.
    Forbidden,
}

impl Zone {
    /// The zone of an address. An IPv6 address that stands for an IPv4 one is where the latter is.
    pub(crate) fn of(address: IpAddr) -> Self {
        readings(address).into_iter().map(Zone::of_reading).max().unwrap_or(Zone::Forbidden)
    }

    fn of_reading(address: IpAddr) -> Self {
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

/// The addresses that a packet to `address` can arrive at: itself, or the IPv4 addresses that it embeds.
///
/// IPv4-mapped ::ffff:0:0/96 and IPv4-compatible ::/96 (RFC 4291), translated ::ffff:0:0:0/96 (RFC 7915), NAT64 64:ff9b::/96
/// (RFC 6052) and 64:ff9b:1::/48 (RFC 8215), 6to4 2002::/16 (RFC 3056) and Teredo 2001::/32 (RFC 4380).
fn readings(address: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(v6) = address else { return vec![address] };
    let octets = v6.octets();
    let at = |[a, b, c, d]: [usize; 4]| Ipv4Addr::new(octets[a], octets[b], octets[c], octets[d]);
    let last = at([12, 13, 14, 15]);
    let embedded = match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => return vec![address],
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            vec![last]
        }
        // Only its operator knows how long the prefix is (RFC 6052 section 2.2): octet 8 is never part of the address.
        [0x64, 0xff9b, 1, ..] => {
            let of_prefixes = [at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12]), last];
            // The padding of one length reads as 0.x.x.x in the others, where no translator sends anything.
            let real = of_prefixes.into_iter().filter(|found| found.octets()[0] != 0).collect::<Vec<_>>();
            if real.is_empty() { vec![last] } else { real }
        }
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // The server, and the client, whose bits are inverted.
        [0x2001, 0, ..] => vec![at([4, 5, 6, 7]), Ipv4Addr::from_bits(!last.to_bits())],
        _ => return vec![address],
    };
    embedded.into_iter().map(IpAddr::V4).collect()
}

/// Which addresses a client may connect to, besides the zones that a request may lead into.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// For whom the client connects.
    pub reach: Reach,
    /// `registry.allow`: addresses that are allowed all the same.
    pub allow: Vec<AddressRange>,
    /// `registry.deny`: addresses that [`Reach::Tenant`] does not include.
    pub deny: Vec<AddressRange>,
    /// Addresses of this host, which [`Reach::Tenant`] does not include either.
    pub own: Vec<IpAddr>,
}

impl Rules {
    /// Whether a request that may lead into `within` can connect to `address`.
    pub(crate) fn check(&self, address: IpAddr, port: u16, within: Zone) -> Result<(), Reason> {
        let readings = readings(address);
        let zone = Zone::of(address);
        if zone == Zone::Forbidden && !readings.iter().all(|reading| self.names(*reading, port)) {
            return Err(Reason::Forbidden);
        }
        if zone.min(Zone::Loopback) > within {
            return Err(Reason::Inward);
        }
        let listed = |ranges: &[AddressRange], at| ranges.iter().any(|range| range.contains(at, port));
        // A range that is denied in the form of IPv6 is denied for all that it hides.
        let whole = listed(&self.deny, address);
        let restricted = |reading: &IpAddr| {
            let inside = Zone::of_reading(*reading) >= Zone::Loopback || self.own.contains(reading);
            !listed(&self.allow, *reading) && (whole || inside || listed(&self.deny, *reading))
        };
        if self.reach == Reach::Tenant && readings.iter().any(restricted) {
            return Err(Reason::Restricted);
        }
        Ok(())
    }

    /// Whether `registry.allow` names `address` explicitly if it is forbidden: by itself, or by a range that has nothing but
    /// forbidden addresses of one kind. Who allows 100.64.0.0/10 does not mean the metadata service in it.
    fn names(&self, address: IpAddr, port: u16) -> bool {
        Zone::of_reading(address) != Zone::Forbidden
            || self.allow.iter().any(|allowed| {
                allowed.contains(address, port) && forbidden().any(|range| range.covers(allowed))
            })
    }

    /// `port`, if some rule is about this very port.
    pub(crate) fn own_port(&self, port: u16) -> Option<u16> {
        self.allow.iter().chain(&self.deny).any(|range| range.port() == Some(port)).then_some(port)
    }
}

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It is link-local, a metadata service or no address of a host, and not allowed explicitly.
    Forbidden,
    /// It is deeper in our network than the registry that leads there.
    Inward,
    /// Orders of tenants cannot reach it.
    Restricted,
}

/// The address that a URL names literally, if it does.
pub(crate) fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether a host, without port, is this machine by its name or address.
pub(crate) fn is_loopback_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| Zone::of(ip) == Zone::Loopback)
}

/// Refuses a literal address that `rules` refuse; names are the resolver's to check.
pub(crate) fn check_literal(url: &Url, rules: &Rules, within: Zone) -> Result<(), Fault> {
    let Some(address) = literal(url) else { return Ok(()) };
    let port = url.port_or_known_default().unwrap_or_default();
    rules
        .check(address, port, within)
        .map_err(|reason| AddressRefused { host: address.to_string(), reason }.into())
}

/// A host is at an address that a connection may not go to.
#[derive(Debug, thiserror::Error)]
#[error("{host} {}", self.why())]
pub(crate) struct AddressRefused {
    host: String,
    reason: Reason,
}

impl AddressRefused {
    /// A tenant reads it: it says neither which address was found nor which rule holds for it.
    fn why(&self) -> &'static str {
        match self.reason {
            Reason::Forbidden => {
                "is at a link-local or metadata address; if it is a registry of yours, name it in registry.allow"
            }
            Reason::Inward => {
                "is at a loopback or private address, where a registry may not send a client that found it further out"
            }
            Reason::Restricted => {
                "is at an address that orders of tenants cannot reach; the administrator can name it in registry.allow"
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

/// The name service says that there is no such host. A later try does not change that.
#[derive(Debug, thiserror::Error)]
#[error("there is no host {0:?}")]
pub(crate) struct UnknownHost(pub(crate) String);

/// What glibc and musl call `EAI_NONAME` and `EAI_NODATA` (getaddrinfo(3)): the standard library passes on the text alone. A name
/// service that does not answer is another error, `EAI_AGAIN`.
const NO_HOST: [&str; 3] =
    ["Name or service not known", "No address associated with hostname", "Name does not resolve"];

fn lookup_failed(name: &Name, error: std::io::Error) -> Box<dyn std::error::Error + Send + Sync> {
    let text = error.to_string();
    if NO_HOST.iter().any(|reason| text.ends_with(reason)) {
        return UnknownHost(name.as_str().to_owned()).into();
    }
    error.into()
}

/// The system's resolver without the addresses that are refused.
#[derive(Debug)]
pub(crate) struct CheckedResolver {
    pub(crate) rules: Arc<Rules>,
    /// The innermost zone that the request may lead into.
    pub(crate) within: Zone,
    /// Port of the request, if some rule is about it.
    pub(crate) port: Option<u16>,
    /// Host names of the proxies, which a person configured and which may lie anywhere.
    pub(crate) proxies: Arc<HashSet<String>>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let proxy = self.proxies.contains(name.as_str());
        let (rules, within, port) = (Arc::clone(&self.rules), self.within, self.port.unwrap_or_default());
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
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// The host names in the proxy variables.
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
