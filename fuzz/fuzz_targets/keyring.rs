//! Parses any bytes as a pull secret and looks up any image in it.
#![no_main]

use larder::secrets::pull_secret_data::{parse_dockercfg, parse_dockerconfigjson};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, &[u8])| {
    let (registry, repository, bytes) = input;
    for entries in [parse_dockercfg(bytes), parse_dockerconfigjson(bytes)].into_iter().flatten() {
        let found = entries.lookup(registry, repository).len();
        assert_eq!(found, entries.lookup(registry, repository).len());
    }
});
