//! The types of the fields in image documents, as declared by the programs that read them.
//!
//! Several programs read each document: `podman images` decodes a config as a Docker config and as an OCI
//! config, containerd as an OCI config. So each field has the type that all of them accept. Sources:
//! image-spec `specs-go/v1`, container-libs `image/manifest/docker_schema2.go`, moby `image` and
//! `api/types/container`.

use super::go::Shape::{self, Absent, Base64, Empty, Flag, Integer, List, Map, Object, Text, Time, Words};

type Fields = &'static [(&'static str, Shape)];

const TEXTS: Shape = List(&Text);
const SET: Shape = Map(&Empty);
const LABELS: Shape = Map(&Text);

/// The fields of an image config.
pub(super) static CONFIG: Shape = Object(&[
    ("id", Text),
    ("parent", Text),
    ("comment", Text),
    ("created", Time),
    ("container", Text),
    ("container_config", Object(PROCESS)),
    ("docker_version", Text),
    ("author", Text),
    ("config", Object(PROCESS)),
    ("architecture", Text),
    ("variant", Text),
    ("os", Text),
    ("os.version", Text),
    ("os.features", TEXTS),
    ("Size", Integer),
    ("rootfs", Object(&[("type", Text), ("diff_ids", TEXTS)])),
    ("history", List(&Object(HISTORY))),
]);

const HISTORY: Fields =
    &[("created", Time), ("author", Text), ("created_by", Text), ("comment", Text), ("empty_layer", Flag)];

const PROCESS: Fields = &[
    ("Hostname", Text),
    ("Domainname", Text),
    ("User", Text),
    ("AttachStdin", Flag),
    ("AttachStdout", Flag),
    ("AttachStderr", Flag),
    ("ExposedPorts", SET),
    ("Tty", Flag),
    ("OpenStdin", Flag),
    ("StdinOnce", Flag),
    ("Env", TEXTS),
    ("Entrypoint", TEXTS),
    ("Cmd", TEXTS),
    ("Healthcheck", Object(HEALTHCHECK)),
    ("ArgsEscaped", Flag),
    ("Image", Text),
    ("Volumes", SET),
    ("WorkingDir", Text),
    ("NetworkDisabled", Flag),
    ("MacAddress", Text),
    ("OnBuild", TEXTS),
    ("Labels", LABELS),
    ("StopSignal", Text),
    ("StopTimeout", Integer),
    ("Shell", Words),
];

const HEALTHCHECK: Fields = &[
    ("Test", TEXTS),
    ("Interval", Integer),
    ("Timeout", Integer),
    ("StartPeriod", Integer),
    ("StartInterval", Integer),
    ("Retries", Integer),
];

/// The fields of an image manifest. With fields of other kinds of manifests, containers/image refuses it as
/// ambiguous.
pub(super) static MANIFEST: Shape = Object(&[
    ("schemaVersion", Integer),
    ("mediaType", Text),
    ("artifactType", Text),
    ("config", Object(DESCRIPTOR)),
    ("layers", List(&Object(DESCRIPTOR))),
    ("subject", Object(DESCRIPTOR)),
    ("annotations", LABELS),
    ("manifests", Absent),
    ("fsLayers", Absent),
    ("history", Absent),
]);

const DESCRIPTOR: Fields = &[
    ("mediaType", Text),
    ("digest", Text),
    ("size", Integer),
    ("urls", TEXTS),
    ("annotations", LABELS),
    ("data", Base64),
    ("platform", Object(PLATFORM)),
    ("artifactType", Text),
];

const PLATFORM: Fields =
    &[("architecture", Text), ("os", Text), ("os.version", Text), ("os.features", TEXTS), ("variant", Text)];
