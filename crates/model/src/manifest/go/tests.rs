use super::super::ManifestError;
use super::super::shapes::CONFIG;
use super::time::rfc3339;
use super::*;

fn config(text: &str) -> Result<Object, ManifestError> {
    read(text.as_bytes(), &CONFIG)
}

#[test]
fn a_field_that_go_refuses_is_reported() {
    for (json, field) in [
        (r#"{"created":"yesterday"}"#, "created"),
        (r#"{"created":1}"#, "created"),
        (r#"{"created":"2024-01-01T00:00:00\u005a"}"#, "created"),
        (r#"{"author":5}"#, "author"),
        (r#"{"os.version":5}"#, "os.version"),
        (r#"{"os.features":"a"}"#, "os.features"),
        (r#"{"size":"big"}"#, "Size"),
        (r#"{"config":[]}"#, "config"),
        (r#"{"config":{"Entrypoint":"/bin/sh"}}"#, "config.Entrypoint"),
        (r#"{"config":{"ENTRYPOINT":"/bin/sh"}}"#, "config.Entrypoint"),
        (r#"{"config":{"Env":["a=1",2]}}"#, "config.Env[1]"),
        (r#"{"config":{"User":0}}"#, "config.User"),
        (r#"{"config":{"Labels":{"a":1}}}"#, "config.Labels[\"a\"]"),
        (r#"{"config":{"ExposedPorts":["80/tcp"]}}"#, "config.ExposedPorts"),
        (r#"{"config":{"Volumes":{"/a":""}}}"#, "config.Volumes[\"/a\"]"),
        (r#"{"config":{"Healthcheck":{"Interval":3e10}}}"#, "config.Healthcheck.Interval"),
        (r#"{"config":{"Healthcheck":{"Interval":1e999}}}"#, "config.Healthcheck.Interval"),
        (r#"{"config":{"Healthcheck":{"Retries":1.0}}}"#, "config.Healthcheck.Retries"),
        (r#"{"config":{"StopTimeout":9223372036854775808}}"#, "config.StopTimeout"),
        (r#"{"config":{"Tty":"true"}}"#, "config.Tty"),
        (r#"{"config":{"tty":0}}"#, "config.Tty"),
        (r#"{"config":{"Shell":5}}"#, "config.Shell"),
        (r#"{"container_config":{"Cmd":"a"}}"#, "container_config.Cmd"),
        (r#"{"history":"a"}"#, "history"),
        (r#"{"history":[{},{"created":"yesterday"}]}"#, "history[1].created"),
        (r#"{"history":[{"empty_layer":"false"}]}"#, "history[0].empty_layer"),
        (r#"{"author":5,"author":"a"}"#, "author"),
        ("{\"comment\":[],\"\u{17f}ize\":1}", "comment"),
        ("{\"\u{17f}ize\":\"1\"}", "Size"),
    ] {
        match config(json) {
            Err(ManifestError::Unreadable { field: found, .. }) => assert_eq!(found, field, "{json}"),
            other => panic!("{json}: {other:?}"),
        }
    }
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    for json in ["", "{", "{}{}", "{\"a\":\"\u{1}\"}", r#"{"a":"\q"}"#, "{'a':1}", &deep] {
        assert!(matches!(config(json), Err(ManifestError::Malformed { .. })), "{json:.20}");
    }
}

#[test]
fn configs_that_go_accepts_are_accepted() {
    for json in [
        "null",
        " {} ",
        r#"{"created":null,"author":null,"config":null,"rootfs":null,"history":[null]}"#,
        r#"{"config":{"Entrypoint":null,"Labels":null,"ExposedPorts":{"80":{"a":1},"81":null},"Healthcheck":null}}"#,
        r#"{"config":{"Env":[null],"Labels":{"a":null}}}"#,
        r#"{"config":{"Shell":"/bin/sh"}}"#,
        r#"{"config":{"Shell":["/bin/sh","-c"]}}"#,
        r#"{"x":1e999,"y":[[[{}]]],"z":"\ud800","config":{"x":12345678901234567890123}}"#,
        r#"{"config":{"Labels":{"a":"\udc00\ud800"}}}"#,
        r#"{"config":{"StopTimeout":-9223372036854775808}}"#,
        r#"{"os":"linux","os":"linux","":1,"":2}"#,
    ] {
        config(json).unwrap_or_else(|error| panic!("{json}: {error}"));
    }
    let latin_1 = b"{\"author\":\"Andr\xe9\",\"config\":{\"Labels\":{\"\xe9\":\"\xff\"}},\"\xe9\":\"\xe9\"}";
    assert_eq!(read(latin_1, &CONFIG).unwrap().text("author"), "Andr\u{fffd}");
}

#[test]
fn fields_are_found_as_go_finds_them() {
    let read = config(
        r#"{"OS":"windows","os":"linux","os":null,"Architecture":"amd64","rootfs":{"type":"layers"},
            "created":"2024-01-01T00:00:00Z","created":null,
            "ROOTFS":{"Diff_IDs":["a"],"diff_ids":["b","c"]},"config":{"cmd":["x"],"CMD":null}}"#,
    )
    .unwrap();
    assert_eq!((read.text("os"), read.text("architecture"), read.text("created")), ("linux", "amd64", ""));
    let rootfs = read.object("rootfs").unwrap();
    assert_eq!((rootfs.text("type"), rootfs.texts("diff_ids")), ("layers", vec!["b", "c"]));
    assert!(read.object("config").unwrap().texts("Cmd").is_empty());
}

#[test]
fn times_are_those_of_go() {
    for same in [
        "2024-02-29T23:59:59Z",
        "2024-01-01T00:00:00.123456789012Z",
        "0001-01-01T00:00:00Z",
        "2024-01-01T00:00:00-23:59",
    ] {
        assert_eq!(rfc3339(same.as_bytes()).as_deref(), Some(same));
    }
    for (odd, plain) in [
        ("2024-01-01T1:02:03Z", "2024-01-01T01:02:03Z"),
        ("2024-01-01T00:00:00,5Z", "2024-01-01T00:00:00.500Z"),
        ("2024-01-02T00:00:00+24:00", "2024-01-01T00:00:00Z"),
        ("2024-01-02T00:00:00+00:60", "2024-01-01T23:00:00Z"),
    ] {
        assert_eq!(rfc3339(odd.as_bytes()).as_deref(), Some(plain));
    }
    for bad in [
        "",
        "yesterday",
        "2024-01-01",
        "2024-01-01 00:00:00Z",
        "2024-01-01t00:00:00Z",
        "2024-01-01T00:00:00z",
        "2016-12-31T23:59:60Z",
        "2024-01-01T24:00:00Z",
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-01-01T00:00:00",
        "2024-01-01T00:00:00.Z",
        "2024-01-01T00:00:00+0100",
        "2024-01-01T00:00:00+25:00",
        "2024-01-01T00:00:00Z ",
        "+2024-01-01T00:00:00Z",
        "2024-1-01T00:00:00Z",
        "2024-01-01T\u{661}0:00:00Z",
    ] {
        assert_eq!(rfc3339(bad.as_bytes()), None, "{bad}");
    }
}
