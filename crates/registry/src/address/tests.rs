use super::*;

#[test]
fn zones() {
    for (address, zone) in [
        ("8.8.8.8", Zone::Public),
        ("100.63.0.1", Zone::Public),
        ("172.32.0.1", Zone::Public),
        ("2606:4700::1", Zone::Public),
        ("10.1.2.3", Zone::Private),
        ("172.16.0.1", Zone::Private),
        ("192.168.1.1", Zone::Private),
        ("100.64.0.1", Zone::Private),
        ("fd12::1", Zone::Private),
        ("127.8.8.8", Zone::Loopback),
        ("::1", Zone::Loopback),
        ("0.1.2.3", Zone::Forbidden),
        ("::", Zone::Forbidden),
        ("fe80::1", Zone::Forbidden),
        ("255.255.255.255", Zone::Forbidden),
        ("ff02::1", Zone::Forbidden),
    ] {
        assert_eq!(Zone::of(address.parse().unwrap()), zone, "{address}");
    }
}

/// Metadata services of the big clouds, from their documentation.
const SERVICES: [&str; 8] = [
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "192.0.0.192",
    "100.100.100.200",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
];

/// All forms in which an IPv6 address can embed an IPv4 address.
fn embeddings(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
    let [a, b, c, d] = v4.octets();
    let bits = u128::from(v4.to_bits());
    let with =
        |prefix: &str, low: u128| Ipv6Addr::from_bits(prefix.parse::<Ipv6Addr>().unwrap().to_bits() | low);
    let local = |octets: [(usize, u8); 4]| {
        let mut all = "64:ff9b:1::".parse::<Ipv6Addr>().unwrap().octets();
        for (at, octet) in octets {
            all[at] = octet;
        }
        Ipv6Addr::from(all)
    };
    vec![
        with("::ffff:0:0", bits),
        with("::ffff:0:0:0", bits),
        with("::", bits),
        with("64:ff9b::", bits),
        with("64:ff9b:1::", bits),
        local([(6, a), (7, b), (9, c), (10, d)]),
        local([(7, a), (9, b), (10, c), (11, d)]),
        local([(9, a), (10, b), (11, c), (12, d)]),
        with("2002::", bits << 80),
        with("2002::1", bits << 80),
        with("2001:0:102:304::", u128::from(!v4.to_bits())),
        with("2001::", bits << 64 | u128::from(!u32::from(Ipv4Addr::new(8, 8, 8, 8)))),
    ]
}

#[test]
fn an_address_has_the_zone_of_the_address_that_it_embeds() {
    for (v4, zone) in [
        ("169.254.169.254", Zone::Forbidden),
        ("168.63.129.16", Zone::Forbidden),
        ("127.0.0.1", Zone::Loopback),
        ("10.1.2.3", Zone::Private),
        ("8.8.4.4", Zone::Public),
    ] {
        for embedding in embeddings(v4.parse().unwrap()) {
            assert_eq!(Zone::of(embedding.into()), zone, "{v4} in {embedding}");
        }
    }
}

fn rules(reach: NetworkAccess, allow: &[&str], deny: &[&str]) -> Rules {
    let ranges = |all: &[&str]| all.iter().map(|range| range.parse().unwrap()).collect();
    let own = vec!["192.168.7.1".parse().unwrap(), "2606:4700::7".parse().unwrap()];
    Rules { reach, allow: ranges(allow), deny: ranges(deny), own }
}

#[test]
fn metadata_services_need_an_explicit_rule() {
    for service in SERVICES {
        let address: IpAddr = service.parse().unwrap();
        let mut forms = vec![address];
        if let IpAddr::V4(v4) = address {
            forms.extend(embeddings(v4).into_iter().map(IpAddr::V6));
        }
        for reach in [NetworkAccess::Any, NetworkAccess::Tenant] {
            for form in &forms {
                let check = |allow: &[&str], within| rules(reach, allow, &[]).check(*form, 80, within);
                assert_eq!(check(&[], Zone::Loopback), Err(Reason::Forbidden), "{form}");
                assert_eq!(check(&[], Zone::Forbidden), Err(Reason::Forbidden), "{form}");
                // A wide range does not allow it.
                let wide = ["0.0.0.0/0", "::/0", "100.64.0.0/10", "fd00::/8", "168.63.0.0/16"];
                assert_eq!(check(&wide, Zone::Loopback), Err(Reason::Forbidden), "{form}");
            }
            let named = rules(reach, &[service], &[]);
            assert_eq!(named.check(address, 80, Zone::Loopback), Ok(()), "{service}");
            // It remains in the innermost zone.
            assert_eq!(named.check(address, 80, Zone::Private), Err(Reason::Inward), "{service}");
        }
    }
    let link = rules(NetworkAccess::Tenant, &["169.254.20.0/24"], &[]);
    assert_eq!(link.check("169.254.20.10".parse().unwrap(), 443, Zone::Loopback), Ok(()));
    assert_eq!(link.check("169.254.169.254".parse().unwrap(), 443, Zone::Loopback), Err(Reason::Forbidden));
}

#[test]
fn addresses_that_tenants_reach() {
    let deny = ["10.0.0.0/8", "fd12::/16", "198.51.100.7"];
    let allow = ["10.9.0.0/16", "127.0.0.1:5000", "[::1]:5000", "192.168.7.1:443"];
    let [tenant, person] =
        [NetworkAccess::Tenant, NetworkAccess::Any].map(|reach| rules(reach, &allow, &deny));
    for (address, port, reached) in [
        ("8.8.8.8", 443, true),
        ("2606:4700::1", 443, true),
        ("192.168.1.1", 443, true),
        ("fd13::1", 443, true),
        ("127.0.0.1", 443, false),
        ("127.0.0.2", 5000, false),
        ("::1", 443, false),
        ("10.1.2.3", 443, false),
        ("fd12::1", 443, false),
        ("198.51.100.7", 443, false),
        ("192.168.7.1", 5000, false),
        ("2606:4700::7", 443, false),
        ("10.9.1.1", 443, true),
        ("127.0.0.1", 5000, true),
        ("::1", 5000, true),
        ("192.168.7.1", 443, true),
    ] {
        let address: IpAddr = address.parse().unwrap();
        let mut forms = vec![address];
        if let IpAddr::V4(v4) = address {
            forms.extend(embeddings(v4).into_iter().map(IpAddr::V6));
        }
        for form in forms {
            let want = if reached { Ok(()) } else { Err(Reason::Restricted) };
            assert_eq!(tenant.check(form, port, Zone::Loopback), want, "{form}");
            assert_eq!(person.check(form, port, Zone::Loopback), Ok(()), "{form}");
        }
    }
    // A denied IPv6 range also counts as written.
    let denied = rules(NetworkAccess::Tenant, &[], &["64:ff9b::/96"]);
    let hidden = "64:ff9b::8.8.8.8".parse().unwrap();
    assert_eq!(denied.check(hidden, 443, Zone::Loopback), Err(Reason::Restricted));
}

#[test]
fn redirects_lead_no_further_in() {
    let all = rules(NetworkAccess::Any, &["127.0.0.1"], &[]);
    for (address, within, allowed) in [
        ("10.1.2.3", Zone::Public, false),
        ("10.1.2.3", Zone::Private, true),
        ("127.0.0.1", Zone::Private, false),
        ("127.0.0.1", Zone::Loopback, true),
        ("64:ff9b::10.1.2.3", Zone::Public, false),
    ] {
        assert_eq!(all.check(address.parse().unwrap(), 80, within).is_ok(), allowed, "{address}");
    }
}

#[test]
fn odd_spellings_of_an_address_are_the_address() {
    let (any, tenant) = (Rules::default(), rules(NetworkAccess::Tenant, &[], &[]));
    for url in [
        "http://0x7f.1/",
        "http://2130706433/",
        "http://127.1/",
        "http://[::ffff:7f00:1]/",
        "http://127.0.0.1./",
    ] {
        let url = url.parse().unwrap();
        assert!(matches!(check_literal(&url, &any, Zone::Private), Err(Fault::Refused(_))), "{url}");
        assert!(matches!(check_literal(&url, &tenant, Zone::Loopback), Err(Fault::Invalid(_))), "{url}");
        assert!(check_literal(&url, &any, Zone::Loopback).is_ok(), "{url}");
    }
    assert!(check_literal(&"http://name.io/".parse().unwrap(), &any, Zone::Public).is_ok());
}

#[tokio::test]
async fn resolved_addresses_are_checked() {
    let resolve = |rules: Rules, within, port, proxies: &[&str]| {
        let proxies = Arc::new(proxies.iter().map(|name| (*name).to_owned()).collect());
        CheckedResolver { rules: Arc::new(rules), within, port, proxies, turn: AtomicUsize::new(0) }
            .resolve("localhost".parse().unwrap())
    };
    let reason = |refused: Box<dyn std::error::Error + Send + Sync>| {
        refused.downcast_ref::<AddressRefused>().map(|refused| refused.reason)
    };
    let refused = resolve(Rules::default(), Zone::Private, None, &[]).await.err().unwrap();
    assert_eq!(reason(refused), Some(Reason::Inward));
    assert!(resolve(Rules::default(), Zone::Loopback, None, &[]).await.is_ok());
    let tenant = || rules(NetworkAccess::Tenant, &["127.0.0.1:5000", "[::1]:5000"], &[]);
    let refused = resolve(tenant(), Zone::Loopback, None, &[]).await.err().unwrap();
    assert_eq!(reason(refused), Some(Reason::Restricted));
    assert!(resolve(tenant(), Zone::Loopback, Some(5000), &[]).await.is_ok());
    assert!(resolve(tenant(), Zone::Public, None, &["localhost"]).await.is_ok(), "the daemon's proxy");
}

#[test]
fn each_lookup_prefers_another_address_of_each_family() {
    let addresses = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
    let all = ["[::1]:0", "[::2]:0", "10.0.0.1:0", "10.0.0.2:0", "10.0.0.3:0"];
    for (turn, expected) in [
        (0, all),
        (1, ["[::2]:0", "[::1]:0", "10.0.0.2:0", "10.0.0.3:0", "10.0.0.1:0"]),
        (2, ["[::1]:0", "[::2]:0", "10.0.0.3:0", "10.0.0.1:0", "10.0.0.2:0"]),
    ] {
        let mut rotated = addresses(&all);
        rotate(&mut rotated, turn);
        assert_eq!(rotated, addresses(&expected), "{turn}");
    }
    rotate(&mut [], 1);
}

#[tokio::test]
async fn an_unknown_host_differs_from_a_name_service_that_does_not_respond() {
    let resolver = CheckedResolver {
        rules: Arc::new(Rules::default()),
        within: Zone::Public,
        port: None,
        proxies: Arc::default(),
        turn: AtomicUsize::new(0),
    };
    // This is not a host name, so there is no query to a name service.
    let error = resolver.resolve("two words.invalid".parse().unwrap()).await.err().unwrap();
    assert!(error.downcast_ref::<UnknownHost>().is_some(), "{error}");
    let name: Name = "registry.example.com".parse().unwrap();
    let failed = |text: &str| lookup_failed(&name, std::io::Error::other(text.to_owned()));
    let lookup = "failed to lookup address information: ";
    assert!(failed(&format!("{lookup}Name or service not known")).downcast_ref::<UnknownHost>().is_some());
    let later = failed(&format!("{lookup}Temporary failure in name resolution"));
    assert!(later.downcast_ref::<UnknownHost>().is_none());
}

#[test]
fn proxies_from_the_environment() {
    let set = |name: &str| match name {
        "HTTPS_PROXY" => Some("http://u:p@proxy.corp:3128".to_owned()),
        "http_proxy" => Some("other.corp:80".to_owned()),
        _ => None,
    };
    assert_eq!(proxy_hosts(set), HashSet::from(["proxy.corp".to_owned(), "other.corp".to_owned()]));
}
