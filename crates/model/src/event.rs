//! What a builder says while it works: one JSON object a line (NDJSON) on stdout with `--output json`.
//!
//! Every line has `v` (version of the format, [`VERSION`]), `time` (RFC 3339, UTC) and `event`. Fields are only ever
//! added within a version; a reader skips events and fields that it does not know. The last line is `result`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::chain::ChainId;
use super::class::Class;
use super::digest::Digest;
use super::platform::Platform;
use super::seal::Totals;
use super::sizing::Admission;

/// The version of the format.
pub const VERSION: u32 = 1;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Format version.
    pub v: u32,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The build began; nothing has been asked of a registry yet.
    Started {
        /// Version of the builder.
        larder: String,
        /// Number of images; 0 where an archive says which.
        images: usize,
    },
    /// A reference was resolved.
    Resolved {
        /// The reference as given.
        reference: String,
        /// Digest of the manifest it stands for.
        manifest: Digest,
        /// Platform chosen.
        platform: Platform,
        /// Number of layers.
        layers: usize,
        /// Compressed size of the image's distinct layers, bytes.
        compressed_size: u64,
    },
    /// Every image is resolved and the 3x rule was applied.
    Planned {
        /// Outcome of the rule.
        admission: Admission,
        /// Distinct layers to have on the volume.
        layers: usize,
        /// Of these, already on it from an earlier run.
        present: usize,
        /// Bytes to fetch; less where other volumes turn out to have a layer.
        fetch_bytes: u64,
    },
    /// A layer's bytes begin to move. Comes again where a copy turns out to be of no use and the layer is fetched.
    LayerStarted {
        /// Digest of the blob.
        blob: Digest,
        /// Its size, bytes.
        compressed_size: u64,
        /// References of the images that need it.
        images: Vec<String>,
        /// Name of the volume that it is read from; absent when it is fetched.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        from: Option<String>,
    },
    /// How far a layer is; at most a few times a second for each.
    LayerProgress {
        /// Digest of the blob.
        blob: Digest,
        /// Compressed bytes received.
        received: u64,
        /// Tar bytes written.
        written: u64,
    },
    /// A layer was read from a volume instead of a registry, and verified; it is committed later.
    LayerReused {
        /// Digest of the blob.
        blob: Digest,
        /// Its diff ID.
        diff_id: Digest,
        /// Name of the volume that has it.
        from: String,
        /// Size of the tar, bytes.
        size: u64,
    },
    /// A layer is on the volume, verified.
    LayerCommitted {
        /// Digest of the blob.
        blob: Digest,
        /// Its diff ID.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        diff_id: Option<Digest>,
        /// Chain ID it was committed under.
        chain_id: ChainId,
        /// Size of the tar, bytes.
        size: u64,
        /// Members of the tar.
        entries: u64,
    },
    /// A layer was on the volume already.
    LayerPresent {
        /// Digest of the blob.
        blob: Digest,
        /// Its chain ID.
        chain_id: ChainId,
    },
    /// What a host answered in all, told once at the end.
    RegistryAnswers {
        /// Host and port asked.
        host: String,
        /// HTTP status.
        code: u16,
        /// How often.
        requests: u64,
    },
    /// A request is tried again.
    Retried {
        /// Host asked.
        host: String,
        /// What was asked for: `manifest 1.27` or `blob sha256:… at byte 1234`.
        what: String,
        /// Why it is tried again.
        reason: String,
        /// Wait before the next try, milliseconds.
        wait_ms: u64,
    },
    /// The build waits for something outside of the builder, such as a node, a disk or a snapshot. Only the daemon emits this
    /// event.
    Waiting {
        /// What the build waits for, and why it is not there; absent when the build continues.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<String>,
    },
    /// Something that a person should know, and that does not fail the build.
    Warning {
        /// What.
        message: String,
    },
    /// Layers are durable up to here: after a power cut they need not be fetched again.
    Synced {
        /// Number of layers that the last sync covered.
        layers: usize,
    },
    /// The volume is sealed.
    Sealed {
        /// Digest of the content of `cache.json`.
        digest: Digest,
    },
    /// The end. Nothing follows.
    Result(Outcome),
}

/// How a build ended; the last event and, in short form, the result file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// `ok` or `failed`.
    pub status: Status,
    /// Exit code of the process.
    pub exit_code: u8,
    /// One sentence for a person.
    pub message: String,
    /// Class of the decisive failure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class: Option<Class>,
    /// Every failure, the decisive one first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub failures: Vec<Failure>,
    /// The images of a sealed volume.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub images: Vec<SealedImage>,
    /// Digest of the content of `cache.json`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<Digest>,
    /// Sums of a sealed volume.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub totals: Option<Totals>,
    /// Wall time, milliseconds.
    pub elapsed_ms: u64,
    /// Whether the lists were cut to keep the line under its limit.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub truncated: bool,
}

/// Success or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The volume is sealed.
    Ok,
    /// It is not.
    Failed,
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Class of the error.
    pub class: Class,
    /// References, as given, of the images that cannot be had because of it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub images: Vec<String>,
    /// Digest of the layer's blob, where one layer is to blame.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<Digest>,
    /// What was being done, to what, what was needed and found, and what helps.
    pub message: String,
}

/// An image of a sealed volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedImage {
    /// The reference as given.
    pub reference: String,
    /// Digest of the index the reference stood for, where there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<Digest>,
    /// Digest of its manifest.
    pub manifest: Digest,
}

impl Outcome {
    /// The outcome as one JSON line of less than `limit` bytes, with lists cut from the end where they do not fit.
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
    fn short_line_keeps_its_limit() {
        let failure = Failure {
            class: Class::Corrupt,
            images: vec!["x".repeat(200); 30],
            layer: Some(Digest::sha256(b"x")),
            message: "é".repeat(4000),
        };
        let outcome = Outcome {
            status: Status::Failed,
            exit_code: 65,
            message: "m".repeat(9000),
            class: Some(Class::Corrupt),
            failures: vec![failure; 50],
            images: vec![
                SealedImage { reference: "a".into(), index: None, manifest: Digest::sha256(b"m") };
                100
            ],
            digest: None,
            totals: None,
            elapsed_ms: 1,
            truncated: false,
        };
        let line = outcome.to_short_line(4096).unwrap();
        assert!(line.len() < 4096);
        let back: Outcome = serde_json::from_str(&line).unwrap();
        assert!(back.truncated && back.failures.len() == 1);
    }
}
