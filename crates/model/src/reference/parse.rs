//! Parser of references, `[registry/]repository[:tag][@digest]` (OCI distribution spec, "Pulling manifests"),
//! with Docker's short names: `nginx` is `docker.io/library/nginx`.
//!
//! oci-client parses them with a regular expression. Each process, including every builder, takes 40 ms and
//! 24 MiB to compile it. It also accepts letters of any script in some parts of a tag. The tests compare the
//! two parsers.

use oci_spec::distribution::Reference;

use super::super::digest::Digest;

const HUB: &str = "docker.io";
const LEGACY_HUB: &str = "index.docker.io";

/// Maximum length of a repository, bytes (distribution, `NameTotalLengthMax`).
const NAME_MAX: usize = 255;

const FORM: &str = "want [registry[:port]/]repository[:tag][@digest]";

pub(super) fn parse(text: &str) -> Result<(Reference, Option<Digest>), String> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
        None => (text, None),
    };
    // A colon before a slash separates host and port.
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(
            "a tag is up to 128 characters of A-Z a-z 0-9 _ . - and does not start with . or -".into()
        );
    }
    let (registry, path) = split(name)?;
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository names must be lower case".into());
    }
    if !path.split('/').all(is_component) {
        return Err(FORM.into());
    }
    let repository = match registry {
        HUB if !path.contains('/') => format!("library/{path}"),
        _ => path.to_owned(),
    };
    if repository.len() > NAME_MAX {
        return Err(format!("a repository name has at most {NAME_MAX} characters"));
    }
    let registry = registry.to_owned();
    let tag = tag.map(str::to_owned);
    let reference = match (tag, &digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag, digest.to_string())
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest.to_string()),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or_else(|| "latest".into())),
    };
    Ok((reference, digest))
}

/// Splits a name into registry and repository. The part before the first slash is a registry if it cannot be
/// part of a repository.
fn split(name: &str) -> Result<(&str, &str), String> {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (HUB, name),
    };
    match registry {
        LEGACY_HUB => Ok((HUB, path)),
        registry if is_host(registry) || is_component(registry) => Ok((registry, path)),
        _ => Err(FORM.into()),
    }
}

fn is_host(text: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let is_label = |label: &str| {
        let is_within = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(is_within)
    };
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    port.is_none_or(is_port) && host.split('.').all(is_label)
}

/// Reports whether `text` is letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator =
        |between: &str| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-');
    text.starts_with(is_word) && text.ends_with(is_word) && text.split(is_word).all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let is_within = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=128).contains(&text.len()) && !text.starts_with(['.', '-']) && text.bytes().all(is_within)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The result of oci-client, limited to supported digests and to tags of valid letters.
    fn oci_client(text: &str) -> Option<Reference> {
        let reference = text.parse::<Reference>().ok()?;
        let is_lower = !reference.repository().bytes().any(|b| b.is_ascii_uppercase());
        let is_known = reference.digest().is_none_or(|digest| digest.parse::<Digest>().is_ok());
        (is_lower && is_known && reference.tag().is_none_or(str::is_ascii)).then_some(reference)
    }

    #[test]
    fn hosts_paths_and_tags_match_oci_client() {
        let long = "a".repeat(256);
        for text in [
            "nginx",
            "a/b",
            "a.b/c",
            "a:5/b",
            "a:5",
            "a:/b",
            "a:x/b",
            "localhost/a",
            "localhost",
            "index.docker.io/a",
            "docker.io/a/b",
            "UP/x",
            "UP.io/x",
            "a_b.c/x",
            "-a.b/x",
            "a-.b/x",
            "a.b-/x",
            "a..b/x",
            ".a/x",
            "a.b.:1/x",
            "a__b",
            "a___b",
            "a--b",
            "a-_b",
            "a.b",
            "a..b",
            "a_",
            "_a",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:.x",
            "a:-x",
            "a:_x",
            "a:x.y-z",
            "a@",
            "@",
            "",
            ":",
            "a b",
            "a:b:c",
            "a:b/c:d",
            "r.io:1:2/a",
            "[::1]:5/a",
            &long,
            &format!("a:{long}"),
            &format!("a:{}", &long[..128]),
            &format!("a:{}", &long[..129]),
            &format!("r.io/{}", &long[..255]),
        ] {
            assert_eq!(parse(text).ok().map(|(ours, _)| ours), oci_client(text), "{text}");
        }
        assert!(parse("a:\u{e9}").is_err() && "a:\u{e9}".parse::<Reference>().is_ok());
    }

    proptest! {
        #[test]
        fn any_reference_matches_oci_client(text in "[aZ0._-]{0,4}(:[05a]{0,2})?(/[a0._-]{0,5}){0,3}(:[aZ0._-]{0,4})?(@sha256:[0-9a-f]{63,65})?") {
            prop_assert_eq!(parse(&text).ok().map(|(ours, _)| ours), oci_client(&text));
        }

        #[test]
        fn any_text_matches_oci_client(text in "[aA0:/@._ -]{0,12}") {
            prop_assert_eq!(parse(&text).ok().map(|(ours, _)| ours), oci_client(&text));
        }
    }
}
