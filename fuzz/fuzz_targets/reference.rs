//! Any text as an image reference: the normal form of what is accepted must mean the same again.
#![no_main]

use larder_model::reference::ImageReference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<ImageReference>() else { return };
    let normal = reference.to_string();
    let again = normal.parse::<ImageReference>().expect("a normal form is a reference");
    assert_eq!(again, reference);
    assert_eq!(again.to_string(), normal);
    assert!(!normal.contains(char::is_control));
    assert!(reference.repository().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
});
