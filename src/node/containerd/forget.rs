//! Removes the records of a cache from containerd.

use super::records::{Outcome, Report, is_of};
use super::{Client, Error};
use larder_model::digest::Digest;

impl Client {
    /// Removes the records that were made only for the cache (the digest of its `cache.json`), and waits
    /// until containerd has removed its documents and layers. Records of other clients are kept. A repeated
    /// call does nothing.
    ///
    /// This does not check for containers; call [`in_use`](Self::in_use) first.
    ///
    /// # Errors
    /// [`Error`]; a repeated call resumes.
    pub async fn forget(&self, cache: &Digest) -> Result<Report, Error> {
        let session = self.session();
        let all = session.records().await?;
        let mut report = Report::default();
        let mut leaving = Vec::new();
        for image in all.iter().filter(|image| is_of(image, cache)) {
            if session.leave(image, cache, &all).await? {
                report.add(&image.name, Outcome::Left);
            } else {
                leaving.push(image);
            }
        }
        let last = leaving.len().saturating_sub(1);
        for (number, image) in leaving.into_iter().enumerate() {
            session.remove(image, number == last).await?;
            report.add(&image.name, Outcome::Removed);
        }
        Ok(report)
    }
}
