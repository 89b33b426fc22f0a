//! Events of a build. With `--output json`, the builder writes them to stdout as one JSON object per line
//! (NDJSON).
//!
//! Every line has `v` (version of the format, [`VERSION`]), `time` (RFC 3339, UTC) and `event`. Within a
//! version, fields are only added. A reader must skip events and fields that it does not recognize. The last
//! line is `result`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::chain::ChainId;
use super::class::Class;
use super::digest::Digest;
use super::platform::Platform;
use super::reference::ImageReference;
use super::seal::Totals;
use super::size::ByteSize;
use super::sizing::Admission;

/// The current version of the event format.
pub const VERSION: u32 = 1;

/// One line of the event stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Version of the event format.
    pub v: u32,
    /// Time of the event.
    pub time: DateTime<Utc>,
    /// The event itself, with its fields.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that happened during a build.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The build started; no request has been sent to a registry yet.
    Started {
        /// Version of the builder.
        larder: String,
        /// Number of images; 0 if an archive determines the images.
        images: usize,
    },
    /// A reference was resolved.
    Resolved {
        /// The reference as given.
        reference: String,
        /// Digest of the manifest that it resolved to.
        manifest: Digest,
        /// Platform that was chosen.
        platform: Platform,
        /// Number of layers of the image.
        layers: usize,
        /// Compressed size of the image's distinct layers, bytes.
        compressed_size: u64,
    },
    /// The size of the volume was computed from the images, because no size was given.
    Sized {
        /// Size limit of the volume, bytes.
        size: ByteSize,
    },
    /// Every image is resolved and the 3x rule has been applied.
    Planned {
        /// Outcome of the 3x rule.
        admission: Admission,
        /// Number of distinct layers that the volume will contain.
        layers: usize,
        /// Number of these layers that are already on the volume from an earlier run.
        present: usize,
        /// Bytes to fetch; fewer if other volumes turn out to have a layer.
        fetch_bytes: u64,
    },
    /// A transfer of a layer started. Repeated if a copy turns out to be unusable and the layer is fetched.
    LayerStarted {
        /// Digest of the blob.
        blob: Digest,
        /// Size of the blob, bytes.
        compressed_size: u64,
        /// References of the images that need it.
        images: Vec<String>,
        /// Name of the volume that the layer is copied from; absent if it is fetched.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        from: Option<String>,
    },
    /// Progress of a layer; emitted at most a few times per second for each layer.
    LayerProgress {
        /// Digest of the blob.
        blob: Digest,
        /// Number of compressed bytes received.
        received: u64,
        /// Number of tar bytes written.
        written: u64,
    },
    /// A layer was copied from a volume instead of a registry, and verified; it is committed later.
    LayerReused {
        /// Digest of the blob.
        blob: Digest,
        /// Diff ID of the layer.
        diff_id: Digest,
        /// Name of the volume with the layer.
        from: String,
        /// Size of the tar, bytes.
        size: u64,
    },
    /// A layer is extracted and verified. It waits until its parents are on the volume.
    LayerExtracted {
        /// Digest of the blob.
        blob: Digest,
        /// Time from the start of the transfer until its last byte, milliseconds.
        received_ms: u64,
        /// Part of that time in which the extraction waited for data, milliseconds.
        waited_ms: u64,
    },
    /// A layer is on the volume and verified.
    LayerCommitted {
        /// Digest of the blob.
        blob: Digest,
        /// Diff ID of the layer.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        diff_id: Option<Digest>,
        /// Chain ID under which it was committed.
        chain_id: ChainId,
        /// Size of the tar, bytes.
        size: u64,
        /// Number of members of the tar.
        entries: u64,
        /// Duration of the commit, without the wait for the parents of the layer, milliseconds.
        #[serde(default)]
        elapsed_ms: u64,
    },
    /// A layer was already on the volume.
    LayerPresent {
        /// Digest of the blob.
        blob: Digest,
        /// Chain ID of the layer.
        chain_id: ChainId,
        /// Size of the blob, bytes.
        #[serde(default)]
        compressed_size: u64,
    },
    /// The bytes of layers that were received, reported once at the end of the build.
    Transferred {
        /// From registries, bytes.
        registries: u64,
        /// From mirrors of registries, bytes.
        mirrors: u64,
    },
    /// The responses of a host with one status, reported once at the end of the build.
    RegistryAnswers {
        /// Host and port of the requests.
        host: String,
        /// HTTP status of the responses.
        code: u16,
        /// Number of responses with this status.
        requests: u64,
    },
    /// A request failed and is retried.
    Retried {
        /// Host and port of the request.
        host: String,
        /// The requested object: `manifest 1.27` or `blob sha256:… at byte 1234`.
        what: String,
        /// Reason for the retry.
        reason: String,
        /// Wait before the next attempt, milliseconds.
        wait_ms: u64,
    },
    /// A connection was much slower than others to the same host, and is replaced.
    ConnectionReplaced {
        /// Host and port of the connection.
        host: String,
        /// The requested object.
        what: String,
        /// Rate of the connection, bytes per second.
        rate: u64,
        /// Median rate of the connections to the host, bytes per second.
        median: u64,
    },
    /// The build waits for something outside the builder, such as a node, a disk or a snapshot. Only the
    /// daemon emits this event.
    Waiting {
        /// Missing resource and the reason; absent when the build continues.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<String>,
    },
    /// A problem that the user should see, but that does not fail the build.
    Warning {
        /// Text of the warning.
        message: String,
    },
    /// Layers are durable up to here: they need not be fetched again after a power failure.
    Synced {
        /// Number of layers that this sync covered.
        layers: usize,
        /// Duration of the sync, milliseconds.
        #[serde(default)]
        elapsed_ms: u64,
    },
    /// The volume is sealed.
    Sealed {
        /// Digest of the content of `cache.json`.
        digest: Digest,
    },
    /// The result of the build, always the last event.
    Result(Outcome),
}

/// Result of a build: the last event and, in short form, the result file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Status of the build: `ok` or `failed`.
    pub status: Status,
    /// Exit code of the process.
    pub exit_code: u8,
    /// One sentence for the user.
    pub message: String,
    /// Class of the decisive failure, which determines the exit code.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class: Option<Class>,
    /// All failures, the decisive one first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub failures: Vec<Failure>,
    /// Images of the sealed volume.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub images: Vec<SealedImage>,
    /// Digest of the content of `cache.json`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<Digest>,
    /// Totals of the sealed volume.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub totals: Option<Totals>,
    /// `true` if an earlier build sealed the volume, so that this one changed nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub already_sealed: bool,
    /// Wall time of the build, milliseconds.
    pub elapsed_ms: u64,
    /// `true` if lists or messages were cut to keep the line under its limit.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub truncated: bool,
}

/// Status of a finished build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The build succeeded, and the volume is sealed.
    Ok,
    /// The build failed, and the volume is not sealed.
    Failed,
}

/// Returns a duration in milliseconds, as events and logs contain it.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One failure of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Class of the error.
    pub class: Class,
    /// References, as given, of the images that are unavailable because of it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub images: Vec<String>,
    /// Digest of the layer's blob, if the failure is about one layer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<Digest>,
    /// Failed operation with its object, the need and the finding, and a remedy.
    pub message: String,
    /// The parts of the message, if the failure is that of a registry.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub explanation: Option<Box<Explanation>>,
}

/// The parts of a message about a registry. None of them repeats the name of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Failed operation, for example `fetching the manifest`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub operation: String,
    /// Host and port of the failed request; absent if there was no request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
    /// Host and its reason.
    pub reason: String,
    /// Remedy, as an instruction to the user.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
    /// Mirrors that were tried before, each with its reason.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub mirrors: Vec<String>,
}

/// An image of a sealed volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedImage {
    /// The reference as given.
    pub reference: String,
    /// Digest of the index that the reference resolved to, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<Digest>,
    /// Digest of its manifest.
    pub manifest: Digest,
}

impl Failure {
    /// Creates a failure of the whole job.
    pub fn job(class: Class, message: impl Into<String>) -> Self {
        Failure { class, images: Vec::new(), layer: None, message: message.into(), explanation: None }
    }

    /// Creates a failure of one image.
    pub fn image(reference: &ImageReference, class: Class, message: impl Into<String>) -> Self {
        Failure { images: vec![reference.given().to_owned()], ..Failure::job(class, message) }
    }

    /// Creates a failure of one layer, whose blob has this digest.
    pub fn layer(blob: &Digest, class: Class, message: impl Into<String>) -> Self {
        Failure { layer: Some(blob.clone()), ..Failure::job(class, message) }
    }

    /// Adds the parts of the message to a failure of `operation`.
    #[must_use]
    pub fn explained(mut self, operation: &str, explanation: Option<Explanation>) -> Self {
        let of = |explanation| Box::new(Explanation { operation: operation.to_owned(), ..explanation });
        self.explanation = explanation.map(of);
        self
    }

    /// Sorts the decisive failures first ([`Class::decisive`]), and returns their class.
    pub fn sort_decisive(failures: &mut [Failure]) -> Option<Class> {
        let class = Class::decisive(failures.iter().map(|failure| failure.class));
        failures.sort_by_key(|failure| Some(failure.class) != class);
        class
    }
}

impl Outcome {
    /// Creates the outcome of a build that succeeded, without images and totals.
    pub fn succeeded(message: impl Into<String>) -> Self {
        Outcome {
            status: Status::Ok,
            exit_code: 0,
            message: message.into(),
            class: None,
            failures: Vec::new(),
            images: Vec::new(),
            digest: None,
            totals: None,
            already_sealed: false,
            elapsed_ms: 0,
            truncated: false,
        }
    }

    /// Creates the outcome of a build that failed. The decisive failure determines the class, the exit code
    /// and the message.
    pub fn failed(mut failures: Vec<Failure>) -> Self {
        let class = Failure::sort_decisive(&mut failures).unwrap_or(Class::Internal);
        let message = failures.first().map_or("the build failed", |first| &first.message).to_owned();
        Outcome {
            status: Status::Failed,
            exit_code: class.exit_code(),
            class: Some(class),
            failures,
            ..Outcome::succeeded(message)
        }
    }

    /// Returns the outcome as one JSON line shorter than `limit` bytes. Cuts explanations, then
    /// lists from the end, and then messages, until the line fits.
    ///
    /// # Errors
    /// Returns an error if JSON serialization fails.
    pub fn to_short_line(&self, limit: usize) -> Result<String, serde_json::Error> {
        let mut short = self.clone();
        loop {
            let line = serde_json::to_string(&short)?;
            if line.len() < limit {
                return Ok(line);
            }
            short.truncated = true;
            if short.images.pop().is_some() {
                continue;
            }
            // The message has the same content.
            if let Some(failure) = short.failures.iter_mut().find(|failure| failure.explanation.is_some()) {
                failure.explanation = None;
                continue;
            }
            if short.failures.len() > 1 {
                short.failures.pop();
                continue;
            }
            let longest = short.failures.iter_mut().map(|f| &mut f.message).chain([&mut short.message]);
            match longest.max_by_key(|message| message.len()) {
                Some(message) if message.len() > 16 => {
                    let half: String = message.chars().take(message.chars().count() / 2).collect();
                    *message = half;
                }
                _ => match short.failures.first_mut() {
                    Some(failure) if !failure.images.is_empty() => {
                        failure.images.pop();
                    }
                    _ => return Ok(line),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tagged_and_versioned() {
        let line = Line {
            v: VERSION,
            time: DateTime::UNIX_EPOCH,
            event: Event::Started { larder: "0.1.0".into(), images: 2 },
        };
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(
            json,
            r#"{"v":1,"time":"1970-01-01T00:00:00Z","event":"started","larder":"0.1.0","images":2}"#
        );
    }

    #[test]
    fn the_decisive_failure_determines_the_outcome() {
        let layer = Digest::sha256(b"x");
        let failures = vec![
            Failure::job(Class::Transient, "slow"),
            Failure::layer(&layer, Class::Corrupt, "bad"),
            Failure::job(Class::Internal, "odd"),
        ];
        let outcome = Outcome::failed(failures);
        assert_eq!((outcome.exit_code, outcome.message.as_str()), (65, "bad"));
        assert_eq!(outcome.failures[0].layer, Some(layer));
        let messages: Vec<&str> = outcome.failures.iter().map(|failure| failure.message.as_str()).collect();
        assert_eq!(messages, ["bad", "slow", "odd"]);
        assert_eq!(Outcome::failed(Vec::new()).class, Some(Class::Internal));
    }

    #[test]
    fn short_line_keeps_its_limit() {
        let failure = Failure {
            class: Class::Corrupt,
            images: vec!["x".repeat(200); 30],
            layer: Some(Digest::sha256(b"x")),
            message: "é".repeat(4000),
            explanation: None,
        };
        let outcome = Outcome {
            message: "m".repeat(9000),
            images: vec![
                SealedImage { reference: "a".into(), index: None, manifest: Digest::sha256(b"m") };
                100
            ],
            ..Outcome::failed(vec![failure; 50])
        };
        let line = outcome.to_short_line(4096).unwrap();
        assert!(line.len() < 4096);
        let back: Outcome = serde_json::from_str(&line).unwrap();
        assert!(back.truncated && back.failures.len() == 1);
    }
}
