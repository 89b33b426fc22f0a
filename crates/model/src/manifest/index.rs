//! Indexes (OCI image spec, image-index.md) and the selection of a platform.

use serde::Deserialize;

use super::media_type::{Kind, is_image_config};
use super::wire::WireEntry;
use super::{Descriptor, MAX_DESCRIPTORS, ManifestError, error, json};
use crate::platform::Platform;

/// An OCI index or Docker manifest list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Media type: the `mediaType` of the body, or the Content-Type, or the OCI type.
    pub media_type: String,
    /// Entries that can be an image or a nested index, in the order of the index; entries with an artifact
    /// type come last. Artifacts without a platform, attestations (`unknown/unknown`) and entries with an
    /// empty or invalid platform are omitted.
    pub manifests: Vec<Descriptor>,
    /// Entries without a valid digest or size. Such an entry is an error only if it is selected.
    pub malformed: Vec<(Option<Platform>, ManifestError)>,
}

#[derive(Deserialize)]
struct Wire {
    manifests: Vec<WireEntry>,
}

/// The role of an entry in a build.
enum Candidate {
    Image(Descriptor),
    /// An image of a platform that is also marked as an artifact.
    Artifact(Descriptor),
    Malformed(Option<Platform>, ManifestError),
    Other,
}

impl Index {
    pub(super) fn read(bytes: &[u8], media_type: String) -> Result<Self, ManifestError> {
        let wire: Wire = json::read(bytes)?;
        error::check_max("manifests", wire.manifests.len() as u64, MAX_DESCRIPTORS)?;
        let (mut manifests, mut artifacts, mut malformed) = (Vec::new(), Vec::new(), Vec::new());
        for entry in wire.manifests {
            match candidate(entry) {
                Candidate::Image(descriptor) => manifests.push(descriptor),
                Candidate::Artifact(descriptor) => artifacts.push(descriptor),
                Candidate::Malformed(platform, error) => malformed.push((platform, error)),
                Candidate::Other => {}
            }
        }
        manifests.append(&mut artifacts);
        Ok(Index { media_type, manifests, malformed })
    }

    /// Selects the entry that is best for `want` by [`Platform::preference`]; ties go to the first.
    ///
    /// The specification makes `platform` optional. An entry without a platform is selected only if no entry
    /// with one is suitable; its config then determines the platform.
    ///
    /// # Errors
    /// Returns [`ManifestError::NoPlatform`] with the available platforms, or the error of a suitable but
    /// malformed entry.
    pub fn choose(&self, want: &Platform) -> Result<&Descriptor, ManifestError> {
        let named = self.manifests.iter().filter_map(|entry| {
            let preference = want.preference(entry.platform.as_ref()?)?;
            Some((preference, entry))
        });
        let best = named.min_by_key(|(preference, _)| *preference).map(|(_, entry)| entry);
        let unnamed = || self.manifests.iter().find(|entry| entry.platform.is_none());
        best.or_else(unnamed).ok_or_else(|| {
            let fits = |platform: &Option<Platform>| {
                platform.as_ref().is_none_or(|platform| want.preference(platform).is_some())
            };
            match self.malformed.iter().find(|(platform, _)| fits(platform)) {
                Some((_, error)) => error.clone(),
                None => ManifestError::NoPlatform { want: want.to_string(), offered: self.platforms() },
            }
        })
    }

    fn platforms(&self) -> Vec<String> {
        let platforms = self.manifests.iter().filter_map(|entry| entry.platform.as_ref());
        platforms.map(Platform::to_string).collect()
    }
}

fn candidate(entry: WireEntry) -> Candidate {
    let media_type = entry.media_type.unwrap_or_default();
    let is_artifact = entry.artifact_type.is_some_and(|t| !t.is_empty() && !is_image_config(&t));
    if Kind::of(&media_type).is_none() {
        return Candidate::Other;
    }
    let platform = match entry.platform.map(|written| written.platform()) {
        None if is_artifact => return Candidate::Other,
        None => None,
        Some(Some(platform)) if platform.os != "unknown" && platform.architecture != "unknown" => {
            Some(platform)
        }
        Some(_) => return Candidate::Other,
    };
    match Descriptor::new(media_type, &entry.digest.unwrap_or_default(), entry.size.unwrap_or_default()) {
        Ok(descriptor) if is_artifact => Candidate::Artifact(Descriptor { platform, ..descriptor }),
        Ok(descriptor) => Candidate::Image(Descriptor { platform, ..descriptor }),
        Err(error) => Candidate::Malformed(platform, error),
    }
}
