//! The key for counting connections and failed authentications.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Peer;

/// The source of a connection: a user of this host, an IPv4 address, or an IPv6 /64 network. A /64 is the
/// usual allocation of one customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::api) enum Origin {
    /// A user of this host, over the Unix socket.
    User(u32),
    /// A single IPv4 address.
    V4([u8; 4]),
    /// The first 64 bits of an IPv6 address.
    V6([u8; 8]),
}

impl Origin {
    /// Returns the origin of a peer. An IPv4-mapped IPv6 address counts as the IPv4 address.
    pub(in crate::api) fn of(peer: &Peer) -> Self {
        let address = match peer {
            Peer::Unix { uid, .. } => return Origin::User(*uid),
            Peer::Tcp { address } => address.ip().to_canonical(),
        };
        match address {
            IpAddr::V4(ip) => Origin::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Origin::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::User(uid) => write!(f, "user {uid}"),
            Origin::V4(octets) => write!(f, "{}", Ipv4Addr::from(*octets)),
            Origin::V6([a, b, c, d, e, f1, g, h]) => {
                let network = [*a, *b, *c, *d, *e, *f1, *g, *h, 0, 0, 0, 0, 0, 0, 0, 0];
                write!(f, "{}/64", Ipv6Addr::from(network))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_have_the_same_origin() {
        let of = |address: &str| Origin::of(&Peer::Tcp { address: address.parse().unwrap() });
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff]:2"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_eq!(of("[::ffff:10.0.0.1]:1"), of("10.0.0.1:9"));
        assert_ne!(of("10.0.0.1:1"), of("10.0.0.2:1"));
        assert_eq!(of("[2001:db8::1]:1").to_string(), "2001:db8::/64");
        assert_eq!(of("10.0.0.1:1").to_string(), "10.0.0.1");
        assert_eq!(Origin::of(&Peer::Unix { uid: 7, admitted: false }), Origin::User(7));
    }
}
