//! What was made known of a cache is forgotten.

use super::records::{Outcome, Report, is_of};
use super::{Client, Error};
use larder_model::digest::Digest;

impl Client {
    /// Removes the records that were made of the cache (the digest of its `cache.json`) and of no other, and waits until
    /// containerd has let go of its documents and layers. What others made stays. Again, it does nothing.
    ///
    /// Containers are not looked at: [`in_use`](Self::in_use) is asked first.
    ///
    /// # Errors
    /// [`Error`]; the same again goes on where it ended.
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
