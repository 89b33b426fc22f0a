//! Conversion between records and custom resources.
//!
//! `spec` is the request, `status` is everything else. An object without a status is a request that no daemon
//! has processed yet: created by kubectl, or by a daemon that stopped in the middle.

use chrono::{DateTime, SecondsFormat, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::crd::{self, ImageCache, ImageCacheSpec, ImageCacheStatus};
use super::{conditions, names};
use crate::caches::record::{self, ImageDetails, LayerHistory, Record, RequestOrigin};
use larder_model::digest::Digest;
use larder_model::image_cache::{CacheId, CacheName, Spec, Status, TenantName};
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_model::seal::Totals;

/// Maximum size of the layer histories, bytes. An object must stay well below the 1.5 MiB that etcd accepts
/// (etcd.io/docs, `--max-request-bytes`).
const MAX_LAYER_BYTES: usize = 600 << 10;
/// Approximate size of one layer history, bytes.
const LAYER_BYTES: usize = 220;

/// The interpretation of an object.
#[derive(Debug)]
pub enum Read {
    /// An image cache.
    Record(Box<Record>),
    /// No daemon has processed it yet.
    New,
    /// The spec is invalid, and nothing was made for it. Contains the reason.
    Invalid(String),
    /// The status was not written by Larder. Contains the reason.
    Corrupt(String),
}

/// Interprets an object. `cluster` is the UID of the cluster that contains it.
pub fn read(object: &ImageCache, cluster: &str) -> Read {
    let meta = &object.metadata;
    let spec = spec(meta, &object.spec, cluster);
    let Some(status) = &object.status else {
        return match spec {
            Ok(_) => Read::New,
            Err(reason) => Read::Invalid(reason),
        };
    };
    match spec.and_then(|spec| record(meta, spec, status)) {
        Ok(record) => Read::Record(Box::new(record)),
        // Nothing was made for it, so nothing is lost if it is skipped.
        Err(reason) if status.content.is_none() && status.work.is_none() && status.generation == 0 => {
            Read::Invalid(reason)
        }
        Err(reason) => Read::Corrupt(reason),
    }
}

/// Returns the version of an object. Versions are decimal and ordered (KEP-5504); here they are only compared
/// for equality.
pub fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_ref()?.parse().ok()
}

/// Returns the ID of an image cache: the UID of its object.
pub fn id(meta: &ObjectMeta) -> Option<CacheId> {
    meta.uid.as_ref()?.parse().ok()
}

/// Returns the creation time of an object, to the second.
pub fn created(meta: &ObjectMeta) -> DateTime<Utc> {
    meta.creation_timestamp.as_ref().map_or(DateTime::UNIX_EPOCH, |time| of_timestamp(time.0))
}

fn of_timestamp(time: Timestamp) -> DateTime<Utc> {
    let nanoseconds = u32::try_from(time.subsec_nanosecond()).unwrap_or(0);
    DateTime::from_timestamp(time.as_second(), nanoseconds).unwrap_or_default()
}

/// Converts the spec of a record to a new object.
pub fn object(record: &Record, cluster: &str) -> ImageCache {
    let spec = &record.spec;
    let mut object = ImageCache::new(
        spec.name.as_str(),
        ImageCacheSpec {
            images: spec.images.iter().map(|image| image.given().to_owned()).collect(),
            image_cache_size: spec.size_gib,
            retention_days: spec.retention_days,
            cluster: if spec.cluster == cluster { String::new() } else { spec.cluster.clone() },
            image_pull_secrets: spec.pull_secrets.clone(),
            share: Vec::new(),
            refresh: None,
            evict: false,
        },
    );
    object.metadata.namespace = Some(names::namespace(&record.tenant).to_owned());
    object.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
    object
}

/// Converts the spec of an object and checks the limits of every field.
///
/// # Errors
/// A field is invalid. The text names it.
pub fn spec(meta: &ObjectMeta, spec: &ImageCacheSpec, cluster: &str) -> Result<Spec, String> {
    let name = meta.name.as_deref().unwrap_or_default().parse::<CacheName>();
    let images =
        spec.images.iter().enumerate().map(|(at, image)| {
            image.parse::<ImageReference>().map_err(|e| format!("spec.images[{at}]: {e}"))
        });
    let spec = Spec {
        name: name.map_err(|e| format!("metadata.name: {e}"))?,
        images: images.collect::<Result<_, _>>()?,
        size_gib: spec.image_cache_size,
        retention_days: spec.retention_days,
        cluster: if spec.cluster.is_empty() { cluster.to_owned() } else { spec.cluster.clone() },
        pull_secrets: spec.image_pull_secrets.clone(),
    };
    spec.check().map_err(|e| format!("spec: {e}"))?;
    Ok(spec)
}

/// Finds a mistake in a spec that was written by hand: the vendor's API accepts it, but it cannot be
/// intended. `None` if there is none.
pub fn mistake(spec: &Spec) -> Option<String> {
    let twice = spec.images.iter().enumerate().find(|(at, image)| spec.images[..*at].contains(image));
    let twice = twice.map(|(at, image)| format!("spec.images[{at}]: {} is listed twice", image.given()));
    let mut secrets = spec.pull_secrets.iter().enumerate();
    let malformed = || {
        secrets.find_map(|(at, secret)| {
            let error = secret.parse::<PullSecretName>().err()?;
            Some(format!("spec.imagePullSecrets[{at}]: {error}"))
        })
    };
    twice.or_else(malformed)
}

fn record(meta: &ObjectMeta, spec: Spec, status: &ImageCacheStatus) -> Result<Record, String> {
    let tenant = meta.namespace.as_deref().unwrap_or_default().parse::<TenantName>();
    let events = status.events.iter().map(|event| {
        Ok::<_, String>(record::CacheEvent {
            sequence: event.sequence,
            time: time("events.time", &event.time)?,
            status: word("events.status", &event.status)?,
            message: event.message.clone(),
        })
    });
    let progress = status.images.iter().map(|image| {
        Ok::<_, String>(ImageDetails {
            reference: image.reference.clone(),
            manifest: digest("images.manifest", &image.manifest)?,
            layers: image.layers as usize,
            layers_done: image.layers_done as usize,
            compressed_size: image.compressed_size,
            received: image.received,
        })
    });
    let mut record = Record {
        id: id(meta).ok_or("metadata.uid is not a UUID")?,
        tenant: tenant.map_err(|e| format!("metadata.namespace: {e}"))?,
        spec,
        created_at: time("createdAt", &status.created_at)?,
        status: word("phase", &status.phase)?,
        status_since: time("since", &status.since)?,
        message: status.message.clone(),
        class: status.class.as_deref().map(|class| word("class", class)).transpose()?,
        content: status.content.as_ref().map(content).transpose()?,
        work: status.work.as_ref().map(|work| record::Work {
            generation: work.generation,
            attempts: work.attempts,
            waiting: work.waiting.clone(),
            last_error: work.last_error.clone(),
        }),
        generation: status.generation,
        events: events.collect::<Result<_, _>>()?,
        sequence: status.sequence,
        // Builders in a cluster cannot receive an archive.
        import: None,
        ordered_by: word("orderedBy", &status.ordered_by)?,
        progress: Vec::new(),
        timeline: None,
    };
    if record.work.is_some() {
        record.progress = progress.collect::<Result<_, _>>()?;
    }
    // Deleting the object requests the deletion of the image cache.
    if let Some(since) = &meta.deletion_timestamp
        && record.status != Status::Deleting
    {
        record.clear_message();
        record.set_status(Status::Deleting, of_timestamp(since.0), "its object was deleted");
    }
    Ok(record)
}

fn content(content: &crd::Content) -> Result<record::Content, String> {
    let images = content.images.iter().map(|image| {
        let manifest = digest("content.images.manifest", &image.manifest)?;
        let index = image.index.as_deref().map(|index| digest("content.images.index", index)).transpose()?;
        Ok::<_, String>(larder_model::event::SealedImage {
            reference: image.reference.clone(),
            manifest,
            index,
        })
    });
    let layers = content.layers.iter().map(|layer| {
        let names = layer.images.iter().filter_map(|at| content.images.get(usize::from(*at)));
        Ok::<_, String>(LayerHistory {
            blob: digest("content.layers.blob", &layer.blob)?,
            images: names.map(|image| image.reference.clone()).collect(),
            compressed_size: layer.compressed_size,
            size: layer.size,
            elapsed_ms: layer.elapsed_ms,
            origin: word("content.layers.origin", &layer.origin)?,
            from: None,
        })
    });
    let crd::Totals { layers: count, compressed_size, size, entries } = content.totals;
    Ok(record::Content {
        generation: content.generation,
        sealed_at: time("content.sealedAt", &content.sealed_at)?,
        digest: digest("content.digest", &content.digest)?,
        images: images.collect::<Result<_, _>>()?,
        totals: Totals { layers: count, entries, compressed_size, size },
        layers: layers.collect::<Result<_, _>>()?,
        snapshot: content.snapshot.as_ref().map(|snapshot| record::ClusterSnapshot {
            namespace: snapshot.namespace.clone(),
            name: snapshot.name.clone(),
            handle: snapshot.handle.clone(),
            driver: snapshot.driver.clone(),
            restore_size: snapshot.restore_size,
        }),
    })
}

/// Converts a record to a status. Fields that other writers own are kept from `before`.
pub fn status(
    record: &Record,
    before: Option<&ImageCacheStatus>,
    generation: Option<i64>,
) -> ImageCacheStatus {
    let text = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let phase = record.status.to_string();
    let images = match &record.content {
        Some(content) if record.work.is_none() => sealed_images(content),
        _ => record.progress.iter().map(image).collect(),
    };
    let events = record.events.iter().map(|event| crd::Happened {
        sequence: event.sequence,
        time: text(event.time),
        status: event.status.to_string(),
        message: event.message.clone(),
    });
    ImageCacheStatus {
        since: text(record.status_since),
        message: record.message.clone(),
        class: record.class.map(|class| json_string(&class)),
        created_at: text(record.created_at),
        expires_at: record.expires_at().map(text),
        ordered_by: json_string(&record.ordered_by),
        observed_generation: generation,
        conditions: conditions::of(record, before, generation),
        images,
        progress: conditions::progress(record),
        content: record.content.as_ref().map(|content| stored_content(content, text(content.sealed_at))),
        work: record.work.as_ref().map(|work| crd::Work {
            generation: work.generation,
            attempts: work.attempts,
            waiting: work.waiting.clone(),
            last_error: work.last_error.clone(),
        }),
        generation: record.generation,
        events: events.collect(),
        sequence: record.sequence,
        copies: before.map(|before| before.copies.clone()).unwrap_or_default(),
        refresh: before.and_then(|before| before.refresh.clone()),
        last_used: before.and_then(|before| before.last_used.clone()),
        phase,
    }
}

/// Returns the status of an object that cannot be an image cache.
pub fn refusal(reason: &str, generation: Option<i64>, now: DateTime<Utc>) -> ImageCacheStatus {
    let now = now.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let phase = Status::Failed.to_string();
    ImageCacheStatus {
        since: now.clone(),
        created_at: now.clone(),
        message: Some(reason.to_owned()),
        class: Some(json_string(&larder_model::class::Class::Invalid)),
        ordered_by: json_string(&RequestOrigin::Cluster),
        observed_generation: generation,
        conditions: vec![crd::Condition {
            type_: "Ready".to_owned(),
            status: "False".to_owned(),
            reason: phase.clone(),
            message: reason.to_owned(),
            last_transition_time: now,
            observed_generation: generation,
        }],
        phase,
        ..ImageCacheStatus::default()
    }
}

fn image(image: &ImageDetails) -> crd::ImageState {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    crd::ImageState {
        reference: image.reference.clone(),
        manifest: image.manifest.to_string(),
        layers: count(image.layers),
        layers_done: count(image.layers_done),
        compressed_size: image.compressed_size,
        received: image.received,
    }
}

fn sealed_images(content: &record::Content) -> Vec<crd::ImageState> {
    let images = content.images.iter().map(|image| {
        let of_it: Vec<_> =
            content.layers.iter().filter(|layer| layer.images.contains(&image.reference)).collect();
        let count = u32::try_from(of_it.len()).unwrap_or(u32::MAX);
        let fetched = of_it.iter().filter(|layer| layer.origin == record::Origin::Fetched);
        crd::ImageState {
            reference: image.reference.clone(),
            manifest: image.manifest.to_string(),
            layers: count,
            layers_done: count,
            compressed_size: of_it.iter().map(|layer| layer.compressed_size).sum(),
            received: fetched.map(|layer| layer.compressed_size).sum(),
        }
    });
    images.collect()
}

fn stored_content(content: &record::Content, sealed_at: String) -> crd::Content {
    let number = |reference: &String| {
        let at = content.images.iter().position(|image| image.reference == *reference)?;
        u8::try_from(at).ok()
    };
    let layers = content.layers.iter().take(MAX_LAYER_BYTES / LAYER_BYTES).map(|layer| crd::Layer {
        blob: layer.blob.to_string(),
        images: layer.images.iter().filter_map(number).collect(),
        compressed_size: layer.compressed_size,
        size: layer.size,
        elapsed_ms: layer.elapsed_ms,
        origin: json_string(&layer.origin),
    });
    let images = content.images.iter().map(|image| crd::SealedImage {
        reference: image.reference.clone(),
        manifest: image.manifest.to_string(),
        index: image.index.as_ref().map(ToString::to_string),
    });
    let Totals { layers: count, entries, compressed_size, size } = content.totals;
    crd::Content {
        generation: content.generation,
        sealed_at,
        digest: content.digest.to_string(),
        snapshot: content.snapshot.as_ref().map(|snapshot| crd::Snapshot {
            namespace: snapshot.namespace.clone(),
            name: snapshot.name.clone(),
            handle: snapshot.handle.clone(),
            driver: snapshot.driver.clone(),
            restore_size: snapshot.restore_size,
        }),
        images: images.collect(),
        totals: crd::Totals { layers: count, compressed_size, size, entries },
        layers: layers.collect(),
    }
}

/// Returns the JSON string of a value that serialises to one.
fn json_string(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        other => unreachable!("{other:?} is not a string"),
    }
}

fn word<T: DeserializeOwned>(field: &str, text: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|e| format!("status.{field}: {e}"))
}

fn time(field: &str, text: &str) -> Result<DateTime<Utc>, String> {
    let parsed = DateTime::parse_from_rfc3339(text);
    parsed.map(|time| time.to_utc()).map_err(|e| format!("status.{field}: {text:?}: {e}"))
}

fn digest(field: &str, text: &str) -> Result<Digest, String> {
    text.parse().map_err(|e| format!("status.{field}: {e}"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::caches::record::Origin;
    use larder_model::class::Class;
    use larder_model::event::SealedImage;

    fn record() -> Record {
        let spec = Spec {
            name: "web".parse().unwrap(),
            images: vec!["nginx".parse().unwrap(), "r.io/b:1".parse().unwrap()],
            size_gib: 20,
            retention_days: 3,
            cluster: "here".into(),
            pull_secrets: vec!["a:b".into(), "nonsense".into()],
        };
        let now = DateTime::from_timestamp(1_780_000_000, 123_456_789).unwrap();
        let mut record = Record::new(CacheId::random(), "team".parse().unwrap(), spec, now);
        record.message = Some("ä \u{0} \n".into());
        record.class = Some(Class::NoSpace);
        record
    }

    fn back(record: &Record) -> Record {
        let mut object = object(record, "here");
        object.metadata.uid = Some(record.id.to_string());
        object.status = Some(status(record, None, Some(1)));
        // As an API server returns it.
        let json = serde_json::to_string(&object).unwrap();
        match read(&serde_json::from_str(&json).unwrap(), "here") {
            Read::Record(record) => *record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_comes_back() {
        let mut record = record();
        let manifest = Digest::sha256(b"m");
        record.progress = vec![ImageDetails {
            reference: "nginx".into(),
            manifest: manifest.clone(),
            layers: 3,
            layers_done: 1,
            compressed_size: 9,
            received: 4,
        }];
        assert_eq!(back(&record), record);
        record.work = None;
        record.progress.clear();
        record.content = Some(record::Content {
            generation: 1,
            sealed_at: record.created_at,
            digest: Digest::sha256(b"d"),
            images: vec![SealedImage {
                reference: "nginx".into(),
                manifest,
                index: Some(Digest::sha256(b"i")),
            }],
            totals: Totals { layers: 1, entries: 2, compressed_size: 3, size: 4 },
            layers: vec![LayerHistory {
                blob: Digest::sha256(b"l"),
                images: vec!["nginx".into()],
                compressed_size: 3,
                size: 4,
                elapsed_ms: 5,
                origin: Origin::Fetched,
                from: None,
            }],
            snapshot: Some(record::ClusterSnapshot {
                namespace: "larder".into(),
                name: "ic-1".into(),
                handle: "h".into(),
                driver: "d".into(),
                restore_size: Some(1 << 30),
            }),
        });
        record.ordered_by = RequestOrigin::Cluster;
        assert_eq!(back(&record), record);
    }

    #[test]
    fn status_and_spec_decide_how_an_object_is_read() {
        let record = record();
        let mut object = object(&record, "here");
        object.metadata.uid = Some(record.id.to_string());
        assert!(matches!(read(&object, "here"), Read::New));
        object.spec.images = vec!["NOT ONE".into()];
        assert!(matches!(read(&object, "here"), Read::Invalid(why) if why.starts_with("spec.images[0]")));
        object.status = Some(refusal("why", None, record.created_at));
        assert!(matches!(read(&object, "here"), Read::Invalid(_)));
        object.status = Some(status(&record, None, None));
        assert!(matches!(read(&object, "here"), Read::Corrupt(_)), "there is work for it");
        object.spec.images = vec!["nginx".into()];
        object.status.as_mut().unwrap().phase = "Nice".into();
        assert!(matches!(read(&object, "here"), Read::Corrupt(why) if why.starts_with("status.phase")));
        object.status.as_mut().unwrap().phase = "Creating".into();
        object.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(1_790_000_000).unwrap()));
        let Read::Record(going) = read(&object, "here") else { panic!("no record") };
        assert_eq!((going.status, going.status_since.timestamp()), (Status::Deleting, 1_790_000_000));
    }
}
