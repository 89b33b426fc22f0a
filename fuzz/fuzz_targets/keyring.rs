//! Parses any bytes as a pull secret and looks up any image in it. The input has the registry, the repository
//! and the secret on lines of their own.
#![no_main]

use larder_secrets::pull_secret_data::{parse_dockercfg, parse_dockerconfigjson};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let (Some(registry), Some(repository), Some(secret)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let (Ok(registry), Ok(repository)) = (std::str::from_utf8(registry), std::str::from_utf8(repository))
    else {
        return;
    };
    for entries in [parse_dockercfg(secret), parse_dockerconfigjson(secret)].into_iter().flatten() {
        let found = entries.lookup(registry, repository).len();
        assert_eq!(found, entries.lookup(registry, repository).len());
    }
});
