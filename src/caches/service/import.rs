//! Imports an archive that its tenant uploads. It is admitted before its first byte is read and gets a record
//! when it is complete. From then on it is a build like any other.
//!
//! During the upload, the room for the archive and its volume is promised in memory, so that it is not given
//! away. If the daemon dies, neither a record nor a file is left.

use std::{io, mem};

use sha2::{Digest as _, Sha256};

use super::admission::Promise;
use super::{Service, archives};
use crate::caches::error::Error;
use crate::caches::imports::Spool;
use crate::caches::logs;
use crate::caches::record::{Import, Record};
use crate::caches::store::{Created, IdempotencyKey, StoreError, Stored};
use crate::telemetry::List;
use larder_model::image_cache::{Spec, TenantName};
use larder_model::seal::Compression;

/// Size of one write to the archive, bytes.
const CHUNK: usize = 1 << 20;
/// Magic bytes of xz, which no part of Larder decompresses.
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// An archive that is being uploaded. Dropping it leaves no file.
#[derive(Debug)]
pub struct Receiving {
    tenant: TenantName,
    spec: Spec,
    /// Maximum size, bytes. A cache must be three times as large as its images, so a larger archive cannot
    /// fit.
    pub(super) max_bytes: u64,
    spool: Option<Spool>,
    buffer: Vec<u8>,
    bytes: u64,
    hash: Sha256,
    promise: Promise,
}

/// A completely received archive.
#[derive(Debug)]
pub struct Received {
    tenant: TenantName,
    spec: Spec,
    spool: Spool,
    bytes: u64,
    /// SHA-256 of the archive.
    pub sha256: [u8; 32],
    promise: Promise,
}

impl Service {
    /// Prepares for an archive of `length` bytes, if the sender declares it. Reasons to refuse a create are
    /// reported before the archive is read, unless the sender `may_repeat` an import that was answered
    /// before.
    ///
    /// # Errors
    /// Fails if a create would be refused or the host has no room for the archive.
    pub async fn receive(
        &self,
        tenant: &TenantName,
        spec: Spec,
        length: Option<u64>,
        may_repeat: bool,
    ) -> Result<Receiving, Error> {
        let imports = self.0.volumes.imports().ok_or(Error::NoImports)?.clone();
        self.check(&spec)?;
        let max_bytes = spec.size().0;
        if length.is_some_and(|length| length > max_bytes) {
            return Err(Error::ArchiveTooLarge { gib: spec.size_gib });
        }
        let archive = Import { bytes: length.unwrap_or(max_bytes) };
        let promise = {
            let lock = self.admission().lock(tenant).await;
            if !may_repeat {
                self.admission().check_queue()?;
                self.would_admit(tenant, &spec).await?;
            }
            let need_gib = u64::from(spec.size_gib) + archive.gib();
            let records = self.records().survey().await?;
            self.admission().promise(&lock, tenant, need_gib, &records)?
        };
        let id = promise.id;
        let begun = blocking(move || {
            let spool = imports.begin(id)?;
            let free = spool.free()?;
            Ok((spool, free))
        });
        let (spool, free) = begun.await?;
        if length.is_some_and(|length| length > free) {
            return Err(Error::NoRoomForArchive);
        }
        let (tenant, spool) = (tenant.clone(), Some(spool));
        let (buffer, hash) = (Vec::with_capacity(CHUNK), Sha256::new());
        Ok(Receiving { tenant, spec, max_bytes, spool, buffer, bytes: 0, hash, promise })
    }

    /// Orders the cache of an uploaded archive. As with a create, if the key was used before, returns the
    /// record of the first answer and deletes the archive.
    ///
    /// # Errors
    /// Fails if the order is refused, or if the archive or the record cannot be written.
    pub async fn import(&self, received: Received, key: Option<IdempotencyKey>) -> Result<Record, Error> {
        let Received { tenant, spec, spool, bytes, promise, .. } = received;
        self.complete(&tenant, move |service, tenant| async move {
            let id = promise.id;
            service.check(&spec)?;
            // The archive is kept before its record is written. The promise protects it from the sweep until
            // then.
            blocking(move || spool.keep()).await?;
            let created = {
                let lock = service.admission().lock(&tenant).await;
                promise.hand_over(&lock);
                let now = service.now();
                let mut record = Record::new(id, tenant.clone(), spec, now);
                record.import = Some(Import { bytes });
                record.note(now, format!("an archive of {bytes} bytes was received"));
                match service.admission().decide(&lock, &tenant) {
                    Ok(decision) => service.place(&lock, record, decision, key).await,
                    Err(error) => Err(error),
                }
            };
            if let Ok(Created::New(Stored { record, .. })) = &created {
                let images = &record.spec.images;
                logs::of(record).in_scope(|| tracing::info!(images = %List(images), bytes, "import ordered"));
            } else {
                archives::remove(&*service.0.volumes, vec![id]).await?;
            }
            match created? {
                Created::Before(record) => Ok(*record),
                Created::New(stored) => Ok(stored.record),
            }
        })
        .await
    }
}

impl Receiving {
    /// Appends the next bytes of the archive.
    ///
    /// # Errors
    /// Fails if the archive is too large, is compressed, or cannot be written.
    pub async fn take(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let length = self.bytes.saturating_add(bytes.len() as u64);
        if length > self.max_bytes {
            return Err(Error::ArchiveTooLarge { gib: self.spec.size_gib });
        }
        self.hash.update(bytes);
        let first = self.bytes < CHUNK as u64;
        self.bytes = length;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            let detected =
                Compression::detect(&self.buffer) != Compression::None || self.buffer.starts_with(XZ);
            if first && detected {
                return Err(Error::ArchiveCompressed);
            }
            if self.buffer.len() == CHUNK {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let (buffer, spool) = (mem::take(&mut self.buffer), self.spool.take());
        let Some(mut spool) = spool else { return Err(failed(&io::Error::other("the upload was aborted"))) };
        let written = blocking(move || {
            spool.write(&buffer)?;
            Ok((spool, buffer))
        });
        let (spool, mut buffer) = written.await?;
        buffer.clear();
        (self.buffer, self.spool) = (buffer, Some(spool));
        Ok(())
    }

    /// Ends the upload.
    ///
    /// # Errors
    /// Fails if the rest of the archive cannot be written.
    pub async fn end(mut self) -> Result<Received, Error> {
        self.flush().await?;
        let Receiving { tenant, spec, spool, bytes, hash, promise, .. } = self;
        let Some(spool) = spool else { return Err(failed(&io::Error::other("the upload was aborted"))) };
        Ok(Received { tenant, spec, spool, bytes, sha256: hash.finalize().into(), promise })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match crate::blocking::spawn(work).await {
        Ok(Err(e)) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            Err(Error::NoRoomForArchive)
        }
        Ok(done) => done.map_err(|e| failed(&e)),
        Err(e) => Err(failed(&io::Error::other(e))),
    }
}

fn failed(error: &io::Error) -> Error {
    StoreError::Failed { doing: "storing an archive next to", reason: error.to_string(), full: false }.into()
}
