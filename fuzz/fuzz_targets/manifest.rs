//! Parses any bytes as a manifest, an index or a config.
#![no_main]

use larder_model::manifest::{Document, ImageConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for content_type in [None, Some("application/vnd.oci.image.manifest.v1+json")] {
        if let Err(error) = Document::parse(bytes, content_type) {
            let message = error.to_string();
            assert!(message.len() < 4096 && !message.contains(char::is_control), "{message:?}");
        }
    }
    if let Err(error) = ImageConfig::parse(bytes) {
        assert!(!error.to_string().contains(char::is_control));
    }
});
