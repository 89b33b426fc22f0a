//! Addresses in NetworkPolicies (pkg/apis/networking/validation/validation.go, ValidateIPBlock; apimachinery
//! pkg/util/validation/ip.go, parseCIDR, as strict as the default of Kubernetes 1.36).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::super::cause::Cause;
use super::{list, text};

pub(super) fn validate(object: &Value, causes: &mut Vec<Cause>) {
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(object, &format!("/spec/{rules}")).iter().enumerate() {
            for (j, peer) in list(rule, &format!("/{peers}")).iter().enumerate() {
                if peer.get("ipBlock").is_some_and(Value::is_object) {
                    block(&peer["ipBlock"], &format!("spec.{rules}[{i}].{peers}[{j}].ipBlock"), causes);
                }
            }
        }
    }
}

fn block(block: &Value, at: &str, causes: &mut Vec<Cause>) {
    let Some(whole) = range(text(block, "/cidr"), &format!("{at}.cidr"), causes) else { return };
    for (i, except) in list(block, "/except").iter().enumerate() {
        let at = format!("{at}.except[{i}]");
        let Some(part) = range(except.as_str().unwrap_or_default(), &at, causes) else { continue };
        if !contains(whole, part.0) || whole.1 >= part.1 {
            causes.push(Cause::invalid(&at, except, "must be a strict subset of `cidr`"));
        }
    }
}

/// Parses an address and a prefix length without changing them. `None` if the text is not a CIDR.
fn range(value: &str, at: &str, causes: &mut Vec<Cause>) -> Option<(IpAddr, u32)> {
    let mut wrong = |why: &str| causes.push(Cause::invalid(at, &value.into(), why));
    let parsed = value.split_once('/').and_then(|(address, length)| {
        let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u32>().ok()?);
        (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
    });
    let Some((address, length)) = parsed else {
        wrong("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        return None;
    };
    if matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
        wrong("must not have an IPv4-mapped IPv6 address");
    } else if masked(address, length) != address {
        wrong("must not have bits set beyond the prefix length");
    }
    Some((address, length))
}

/// Works like Go's `net.IPNet.Contains`: an IPv4-mapped address counts as IPv4 and is in no IPv6 range.
fn contains((network, length): (IpAddr, u32), address: IpAddr) -> bool {
    let same_family = network.is_ipv4() == address.to_canonical().is_ipv4();
    same_family && masked(address.to_canonical(), length) == masked(network, length)
}

fn masked(address: IpAddr, length: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}
