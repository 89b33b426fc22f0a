//! Addresses of the network interfaces of this host.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// Returns the addresses of all interfaces of this network namespace, loopback included.
///
/// # Errors
/// Those of getifaddrs(3), for example if the process must not open a netlink socket (netlink(7)).
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let of = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    };
    Ok(getifaddrs()?.filter_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_interface() {
        assert!(addresses().unwrap().iter().any(IpAddr::is_loopback));
    }
}
