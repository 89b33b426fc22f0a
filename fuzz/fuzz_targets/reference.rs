//! Parses any text as an image reference. The normal form of an accepted reference must parse to the same
//! reference.
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
