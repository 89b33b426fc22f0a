use super::media_type::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use proptest::prelude::*;

use super::*;
use crate::class::Class;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn descriptor(media_type: &str, content: &str, size: i64, more: &str) -> String {
    let digest = Digest::sha256(content.as_bytes());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}{more}}}"#)
}

fn image(media_type: &str, layers: &str, more: &str) -> String {
    let config = descriptor(CONFIG, "config", 7, "");
    format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{config},"layers":[{layers}]{more}}}"#)
}

fn index(entries: &str, more: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_IMAGE_INDEX_MEDIA_TYPE}","manifests":[{entries}]{more}}}"#
    )
}

fn entry(name: &str, platform: &str) -> String {
    let parts: Vec<&str> = platform.split('/').collect();
    let variant = parts.get(2).map_or(String::new(), |v| format!(r#","variant":"{v}""#));
    let platform = format!(r#","platform":{{"os":"{}","architecture":"{}"{variant}}}"#, parts[0], parts[1]);
    descriptor(OCI_IMAGE_MEDIA_TYPE, name, 5, &platform)
}

fn parse(json: &str) -> Result<Document, ManifestError> {
    Document::parse(json.as_bytes(), None)
}

#[test]
fn an_image() {
    let layers =
        [descriptor(GZIP, "a", 10, ""), descriptor(GZIP, "b", 0, r#","urls":["https://r.io/b"]"#)].join(",");
    for media_type in [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE] {
        let json = image(media_type, &layers, "");
        let header = format!("{media_type}; charset=utf-8");
        let Document::Image(manifest) = Document::parse(json.as_bytes(), Some(&header)).unwrap() else {
            panic!("not an image");
        };
        assert_eq!(manifest.media_type, media_type);
        assert_eq!(manifest.config.size, 7);
        assert_eq!(manifest.layers[0].digest, Digest::sha256(b"a"));
        assert_eq!(manifest.layers[1].urls, ["https://r.io/b"]);
    }
}

#[test]
fn types_that_disagree() {
    let json = image(OCI_IMAGE_MEDIA_TYPE, &descriptor(GZIP, "a", 1, ""), "");
    let untyped = json.replace(&format!(r#""mediaType":"{OCI_IMAGE_MEDIA_TYPE}","#), "");
    let parse = |json: &str, header| Document::parse(json.as_bytes(), header);
    assert!(parse(&untyped, None).is_ok());
    assert!(parse(&untyped, Some(IMAGE_MANIFEST_MEDIA_TYPE)).is_ok());
    assert_eq!(parse(&untyped, Some(OCI_IMAGE_INDEX_MEDIA_TYPE)), Err(ManifestError::Ambiguous));
    let error = parse(&json, Some(IMAGE_MANIFEST_MEDIA_TYPE)).unwrap_err();
    assert!(matches!(error, ManifestError::MediaTypes { .. }));
    let error = parse(&untyped, Some("text/html")).unwrap_err();
    assert_eq!(error.class(), Class::Invalid);
}

#[test]
fn image_and_index_at_once() {
    let layer = descriptor(GZIP, "a", 1, "");
    for json in [
        image(OCI_IMAGE_MEDIA_TYPE, &layer, r#","manifests":[]"#),
        image(OCI_IMAGE_MEDIA_TYPE, &layer, r#","fsLayers":[]"#),
        image(OCI_IMAGE_INDEX_MEDIA_TYPE, &layer, ""),
        index("", r#","layers":[]"#),
        index("", r#","config":{}"#),
        index("", r#","fsLayers":[]"#).replace("2,", "1,"),
    ] {
        assert_eq!(parse(&json), Err(ManifestError::Ambiguous), "{json}");
    }
}

#[test]
fn corrupt_manifests_are_refused() {
    let layer = descriptor(GZIP, "a", 1, "");
    let good = image(OCI_IMAGE_MEDIA_TYPE, &layer, "");
    assert!(parse(&good).is_ok());
    for bad in [
        "{}".to_owned(),
        "[".to_owned(),
        good.replace(r#""size":1"#, r#""size":-1"#),
        good.replace(r#""size":1"#, r#""size":1,"size":1"#),
        good.replace(r#""size":1"#, r#""size":9223372036854775808"#),
        good.replace(r#""size":7"#, r#""size":4194305"#),
        good.replace(r#""size":1"#, r#""size":1,"annotations":{"a":"b","a":"c"}"#),
        good.replace(r#""schemaVersion":2"#, r#""schemaVersion":3"#),
        good.replace(r#""schemaVersion":2,"#, ""),
        good.replace("sha256:", "sha256:../"),
        good.replace("sha256:", "md5:"),
        format!("{good}{good}"),
        format!("{}{good}", " ".repeat(MAX_BYTES)),
        format!("{}{}", "[".repeat(200), "]".repeat(200)),
    ] {
        let error = parse(&bad).unwrap_err();
        assert_eq!(error.class(), Class::Corrupt, "{error}");
    }
}

#[test]
fn too_many_layers() {
    let layer = descriptor(GZIP, "a", 1, "");
    let many = |n| image(OCI_IMAGE_MEDIA_TYPE, &vec![layer.as_str(); n].join(","), "");
    assert!(parse(&many(MAX_LAYERS)).is_ok());
    let error = parse(&many(MAX_LAYERS + 1)).unwrap_err();
    assert!(matches!(error, ManifestError::TooLarge { what: "layers", .. }));
    assert_eq!((error.class(), error.to_string().contains("501")), (Class::Corrupt, true), "{error}");
}

#[test]
fn refused_by_name() {
    let layer = descriptor(GZIP, "a", 1, "");
    let good = image(OCI_IMAGE_MEDIA_TYPE, &layer, "");
    let schema1 = r#"{"schemaVersion":1,"name":"a","fsLayers":[{"blobSum":"x"}],"history":[]}"#;
    let helm = "application/vnd.cncf.helm.config.v1+json";
    for (json, word) in [
        (schema1.to_owned(), "schema 1"),
        (good.replace(CONFIG, helm), helm),
        (good.replace(CONFIG, helm).replace("}]}", r#"}],"artifactType":"a/b"}"#), helm),
        (good.replace(OCI_IMAGE_MEDIA_TYPE, "x/\u{1b}[2J"), "u{1b}"),
        (image(OCI_IMAGE_MEDIA_TYPE, "", ""), "no layers"),
        (good.replace("+gzip", "+xz"), "+xz"),
        (good.replace("+gzip", "+gzip+encrypted"), "encrypted"),
    ] {
        let error = parse(&json.replace('\u{1b}', "\\u001b")).unwrap_err();
        assert_eq!(error.class(), Class::Invalid, "{error}");
        let message = error.to_string();
        assert!(message.contains(word) && !message.contains('\u{1b}'), "{message}");
    }
}

#[test]
fn the_best_platform_is_chosen() {
    let entries = [
        entry("attestation", "unknown/unknown"),
        descriptor(OCI_IMAGE_MEDIA_TYPE, "signature", 1, r#","artifactType":"a/signature""#),
        entry("v6", "linux/arm/v6"),
        entry("v7", "linux/arm/v7"),
        entry("first", "linux/amd64"),
        entry("second", "linux/amd64"),
    ]
    .join(",");
    let Document::Index(index) = parse(&index(&entries, "")).unwrap() else {
        panic!("not an index");
    };
    for (want, name) in
        [("linux/amd64", "first"), ("linux/amd64/v3", "first"), ("linux/arm64", "v7"), ("linux/arm/v6", "v6")]
    {
        let chosen = index.choose(&want.parse().unwrap()).unwrap();
        assert_eq!(chosen.digest, Digest::sha256(name.as_bytes()), "{want}");
    }
    for absent in ["linux/riscv64", "unknown/unknown", "windows/amd64"] {
        let error = index.choose(&absent.parse().unwrap()).unwrap_err();
        assert_eq!(error.class(), Class::NotFound);
        let message = error.to_string();
        assert!(message.contains("linux/arm/v6") && !message.contains("platforms: unknown"), "{message}");
    }
}

/// The specification requires `artifactType` only for manifests without a config, but does not forbid it
/// elsewhere.
#[test]
fn an_image_that_is_an_artifact_too() {
    let layer = descriptor(GZIP, "a", 1, "");
    let json = image(OCI_IMAGE_MEDIA_TYPE, &layer, r#","artifactType":"a/b""#);
    assert!(matches!(parse(&json), Ok(Document::Image(_))));
}

fn chosen(entries: &[String], want: &str) -> Result<Digest, ManifestError> {
    let Document::Index(index) = parse(&index(&entries.join(","), ""))? else {
        panic!("not an index");
    };
    index.choose(&want.parse().unwrap()).map(|entry| entry.digest.clone())
}

#[test]
fn an_odd_entry_spoils_no_other() {
    let good = entry("good", "linux/amd64");
    let bare = |more: &str| descriptor(OCI_IMAGE_MEDIA_TYPE, "odd", 5, more);
    for odd in [
        bare(r#","platform":{}"#),
        bare(r#","platform":{"os":"linux"}"#),
        bare(r#","platform":{"os":null,"architecture":null}"#),
        "{}".to_owned(),
        bare("").replace(r#""size":5"#, r#""size":-5"#),
        bare("").replace("sha256:", "sha256:../"),
        bare(r#","artifactType":"a/b","platform":{"os":"linux","architecture":"amd64"}"#),
    ] {
        assert_eq!(chosen(&[odd.clone(), good.clone()], "linux/amd64"), Ok(Digest::sha256(b"good")), "{odd}");
    }
    // A malformed entry fails only if it is the one for the requested platform.
    let negative = entry("negative", "linux/arm64").replace(r#""size":5"#, r#""size":-5"#);
    let entries = [negative, good];
    assert!(matches!(chosen(&entries, "linux/arm64"), Err(ManifestError::NegativeSize { .. })));
    assert!(matches!(chosen(&entries, "linux/s390x"), Err(ManifestError::NoPlatform { .. })));
    // An image that is also marked as an artifact is used if there is no other.
    let artifact = bare(r#","artifactType":"a/b","platform":{"os":"linux","architecture":"amd64"}"#);
    assert_eq!(chosen(&[artifact], "linux/amd64"), Ok(Digest::sha256(b"odd")));
}

#[test]
fn an_entry_without_platform_comes_last() {
    let bare = descriptor(OCI_IMAGE_INDEX_MEDIA_TYPE, "nested", 1, "");
    let entries = [bare, entry("fits", "linux/amd64")].join(",");
    let json = index(&entries, "").replace(OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE);
    let Document::Index(index) = parse(&json).unwrap() else {
        panic!("not an index");
    };
    let chosen = |want: &str| index.choose(&want.parse().unwrap()).unwrap().digest.clone();
    assert_eq!(chosen("linux/amd64"), Digest::sha256(b"fits"));
    assert_eq!(chosen("linux/s390x"), Digest::sha256(b"nested"));
}

#[test]
fn a_platform_that_cannot_be_written_is_left_out() {
    let json = index(&entry("a", r"linux/amd64\u001b[2J"), "");
    let Document::Index(index) = parse(&json).unwrap() else {
        panic!("not an index");
    };
    let error = index.choose(&"linux/amd64".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "there is no image for linux/amd64; available platforms: none");
}

fn config(diff_ids: &[&str], more: &str) -> String {
    let ids: Vec<String> =
        diff_ids.iter().map(|d| format!(r#""{}""#, Digest::sha256(d.as_bytes()))).collect();
    let ids = ids.join(",");
    format!(
        r#"{{"os":"linux","architecture":"arm64","variant":"v8","config":{{"Labels":{{"a":"b"}}}},
            "rootfs":{{"type":"layers","diff_ids":[{ids}]}}{more}}}"#
    )
}

#[test]
fn a_config() {
    let created = "2015-10-31T22:22:56.015925234Z";
    let json = config(&["a", "b"], &format!(r#","created":"{created}""#));
    let config = ImageConfig::parse(json.as_bytes()).unwrap();
    assert_eq!(config.platform, Some("linux/arm64".parse().unwrap()));
    assert_eq!(config.diff_ids, [Digest::sha256(b"a"), Digest::sha256(b"b")]);
    assert_eq!(config.created.as_deref(), Some(created));

    let manifest = image(OCI_IMAGE_MEDIA_TYPE, &descriptor(GZIP, "a", 1, ""), "");
    let Document::Image(manifest) = parse(&manifest).unwrap() else {
        panic!("not an image");
    };
    let error = config.check_layers(&manifest).unwrap_err();
    assert_eq!(error, ManifestError::LayerCount { diff_ids: 2, layers: 1 });
}

#[test]
fn corrupt_configs() {
    let good = config(&["a"], "");
    assert!(ImageConfig::parse(good.as_bytes()).is_ok());
    for bad in [
        good.replace("layers", "layer"),
        good.replace("sha256:", "sha256:x"),
        good.replace("linux", "li/nux/a"),
        config(&["a"], r#","created":"yesterday""#),
        config(&["a"], r#","created":"2024-01-01 00:00:00Z""#),
        config(&vec!["a"; MAX_LAYERS + 1], ""),
    ] {
        let error = ImageConfig::parse(bad.as_bytes()).unwrap_err();
        assert_eq!(error.class(), Class::Corrupt, "{error}");
    }
}

#[test]
fn a_config_without_a_platform() {
    for (from, to) in [
        (r#""os":"linux","#, ""),
        ("linux", ""),
        (r#""linux""#, "null"),
        ("arm64", ""),
        (r#""architecture""#, r#""x""#),
    ] {
        let json = config(&["a"], "").replace(from, to);
        assert_eq!(ImageConfig::parse(json.as_bytes()).unwrap().platform, None, "{json}");
    }
}

#[test]
fn manifests_that_go_refuses_or_sees_otherwise() {
    let layer = descriptor(GZIP, "a", 1, "");
    let other = descriptor(GZIP, "b", 1, "");
    for more in [
        format!(r#","Layers":[{other}]"#),
        format!(r#","Config":{other}"#),
        r#","layer\u017f":[]"#.to_owned(),
        r#","history":[]"#.to_owned(),
        r#","annotations":{"a":1}"#.to_owned(),
        r#","Annotations":{"a":1}"#.to_owned(),
    ] {
        let error = parse(&image(OCI_IMAGE_MEDIA_TYPE, &layer, &more)).unwrap_err();
        assert_eq!(error.class(), Class::Corrupt, "{more}: {error}");
    }
    let data = descriptor(GZIP, "a", 1, r#","data":"not base64""#);
    assert_eq!(parse(&image(OCI_IMAGE_MEDIA_TYPE, &data, "")).unwrap_err().class(), Class::Corrupt);
}

/// A valid document with some bytes removed, changed or inserted.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let layers = [descriptor(GZIP, "a", 1, ""), descriptor(GZIP, "b", 2, "")].join(",");
    let entries = [entry("a", "linux/amd64"), entry("b", "linux/arm/v7")].join(",");
    let documents =
        vec![image(OCI_IMAGE_MEDIA_TYPE, &layers, ""), index(&entries, ""), config(&["a", "b"], "")];
    let piece = prop_oneof![
        any::<Vec<u8>>(),
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            "null",
            "\"\"",
            "-1",
            "1e999",
            "\\u0000",
            "\"layers\":[],",
        ])
        .prop_map(|s| s.as_bytes().to_vec()),
    ];
    let edit = (any::<prop::sample::Index>(), 0..40usize, piece);
    (prop::sample::select(documents), prop::collection::vec(edit, 1..4)).prop_map(|(document, edits)| {
        let mut bytes = document.into_bytes();
        for (at, remove, insert) in edits {
            let start = at.index(bytes.len() + 1);
            let end = (start + remove).min(bytes.len());
            bytes.splice(start..end, insert);
        }
        bytes
    })
}

/// Every accepted document satisfies the invariants of the types.
fn check_promises(bytes: &[u8]) {
    match Document::parse(bytes, None) {
        Ok(Document::Image(manifest)) => {
            assert!((1..=MAX_LAYERS).contains(&manifest.layers.len()));
            for layer in &manifest.layers {
                layer.media_type.parse::<LayerMediaType>().unwrap();
            }
        }
        Ok(Document::Index(index)) => assert!(index.manifests.len() <= MAX_DESCRIPTORS),
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 4096 && !message.contains(char::is_control), "{message}");
        }
    }
    if let Err(error) = ImageConfig::parse(bytes) {
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
}

proptest! {
    #[test]
    fn mutations_parse_or_err(bytes in mutated()) {
        check_promises(&bytes);
    }

    #[test]
    fn any_bytes_parse_or_err(bytes in any::<Vec<u8>>()) {
        check_promises(&bytes);
    }
}
