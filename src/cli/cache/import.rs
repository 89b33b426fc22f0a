//! `larder cache import`: creates an image cache of the daemon from an archive, a layout or a sealed volume
//! on this host.
//!
//! The request body is always one uncompressed tar, so the daemon never mounts client content or decompresses
//! it to a file. A layout is packed. A sealed volume or a disk image is exported while it is sent, and each
//! layer is verified.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Method;
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::archive::{self, Archive, Input};
use crate::cli::args::CacheImport;
use crate::cli::output::bar::{self, Bar};
use crate::cli::usage::UsageError;
use crate::client::error::Error as ClientError;
use crate::client::upload::{Upload, Writer};
use crate::client::{Answer, Client, Request};
use crate::export::{self, Format, Monitor};
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::image_cache::spec::MAX_IMAGES;
use larder_model::reference::ImageReference;
use larder_model::seal::Compression;
use larder_sys::unnamed;

/// The upload, and the names of the images in it.
struct Source {
    images: Vec<ImageReference>,
    length: Option<u64>,
    write: Writer,
}

/// Uploads the source and returns the daemon's answer.
pub(super) async fn send(client: &Client, args: &CacheImport, console: &Console) -> Result<Answer, Error> {
    let (input, images, signs) = (args.source.clone(), args.images.clone(), client.signs());
    let opened = crate::blocking::spawn(move || {
        let source = open(&input, images)?;
        if signs { hashed(source) } else { Ok((source, None)) }
    });
    let opened =
        opened.await.map_err(|e| failed(Class::Internal, format!("opening the source failed: {e}")))?;
    let (source, sha256) = opened?;
    let (size, days) = (args.size.to_string(), args.retention_days.to_string());
    let mut query =
        vec![("name", args.name.as_str()), ("image_cache_size", &size), ("retention_days", &days)];
    query.push(("cluster", &args.cluster));
    query.extend(source.images.iter().map(|image| ("image", image.given())));
    let key = args.idempotency_key.as_deref();
    let request = Request { query: &query, key, ..Request::new(Method::POST, "/larder/v1/import") };
    let sent = Arc::new(AtomicU64::new(0));
    let upload = Upload { length: source.length, sha256, write: source.write, sent: Arc::clone(&sent) };
    let sending = client.upload(request, upload);
    tokio::pin!(sending);
    let bar = Bar::new(console);
    let mut ticks = tokio::time::interval(bar::UPDATE_INTERVAL);
    loop {
        tokio::select! {
            answer = &mut sending => return Ok(answer?),
            _ = ticks.tick() => {
                let sent = sent.load(Ordering::Relaxed);
                bar.set((sent, source.length.unwrap_or(sent)));
            }
        }
    }
}

/// Detects the kind of `input` and prepares the upload.
fn open(input: &Path, images: Vec<ImageReference>) -> Result<Source, Error> {
    if is_volume(input) {
        return volume(input.to_owned(), images);
    }
    let of_archive = |e: crate::archive::Error| failed(e.class(), e.to_string());
    let archive = Archive::index(Input::open(input).map_err(of_archive)?, None).map_err(of_archive)?;
    if archive.format() == archive::Format::Dir {
        return Err(UsageError::SkopeoDirectory(input.display().to_string()).into());
    }
    let images = if images.is_empty() { archive.names() } else { images };
    if images.is_empty() {
        return Err(of_archive(archive.unnamed()));
    }
    check_number(&images)?;
    let Some(tar) = archive.tar() else {
        let layout = input.to_owned();
        let write: Writer =
            Box::new(move |out| export::pack(&layout, out).map_err(|e| body(e.class(), e.to_string())));
        return Ok(Source { images, length: None, write });
    };
    let io = |e: io::Error| failed(Class::Internal, format!("reading the archive: {e}"));
    let mut tar = tar.try_clone().map_err(io)?;
    tar.rewind().map_err(io)?;
    let length = tar.metadata().map_err(io)?.len();
    Ok(Source { images, length: Some(length), write: copy(tar, length) })
}

/// Reports whether `input` is a sealed volume, or the disk image or device of one.
fn is_volume(input: &Path) -> bool {
    input.join("cache.json").is_file()
        || export::is_image(input)
        || std::fs::metadata(input).is_ok_and(|facts| facts.file_type().is_block_device())
}

fn volume(path: PathBuf, images: Vec<ImageReference>) -> Result<Source, Error> {
    let of_volume = |e: export::Error| failed(e.class(), e.to_string());
    let images = if images.is_empty() { export::images(&path).map_err(of_volume)? } else { images };
    check_number(&images)?;
    if let Some(image) = images.iter().find(|image| image.tag().is_none()) {
        return Err(UsageError::Untagged(image.to_string()).into());
    }
    // The volume must have three times the size of the layers as sent, so they are compressed.
    let request = export::Request {
        format: Format::OciArchive,
        compression: Compression::Zstd,
        images: images.clone(),
        force: false,
    };
    let write: Writer = Box::new(move |out| {
        let sent = export::export_to(&path, Box::new(out), &request, &Monitor::new());
        sent.map(drop).map_err(|e| body(e.class(), e.to_string()))
    });
    Ok(Source { images, length: None, write })
}

fn check_number(images: &[ImageReference]) -> Result<(), UsageError> {
    if images.len() > MAX_IMAGES { Err(UsageError::TooManyForCache(images.len())) } else { Ok(()) }
}

/// Returns the source with its SHA-256, which request signatures cover. A source of unknown length is first
/// written to a temporary file.
fn hashed(source: Source) -> Result<(Source, Option<[u8; 32]>), Error> {
    let io = |e: io::Error| failed(Class::Internal, format!("writing the upload to a temporary file: {e}"));
    let mut file = unnamed::temporary().map_err(io)?;
    let mut out = Hashing { file: &mut file, hash: Sha256::new(), length: 0 };
    (source.write)(&mut out)?;
    let (hash, length) = (out.hash.finalize().into(), out.length);
    file.rewind().map_err(io)?;
    Ok((Source { images: source.images, length: Some(length), write: copy(file, length) }, Some(hash)))
}

struct Hashing<'a> {
    file: &'a mut File,
    hash: Sha256,
    length: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy(file: File, length: u64) -> Writer {
    Box::new(move |out| {
        let copied = io::copy(&mut file.take(length), out);
        let copied = copied.map_err(|e| body(Class::Internal, format!("reading the archive: {e}")))?;
        if copied == length {
            return Ok(());
        }
        Err(body(Class::Corrupt, "the archive was truncated while it was sent".to_owned()))
    })
}

fn body(class: Class, message: String) -> ClientError {
    ClientError::Body { class, message }
}

fn failed(class: Class, message: String) -> Error {
    Error::Client(body(class, message))
}
