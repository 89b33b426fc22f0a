//! Suggests existing tags if the given tag does not exist.

use std::time::Duration;

use serde::Deserialize;

use super::error::Fault;
use super::hosts::Endpoint;
use super::request::{self, GetRequest};
use super::{Error, Inner};
use larder_model::similar::similar;

/// Maximum time for the request. The message is not worth a longer wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// Maximum size of the list, bytes.
const MAX_BODY: usize = 256 << 10;
/// Maximum number of tags in the message.
const MAX_SIMILAR: usize = 3;
/// Code of the distribution specification for a tag that does not exist in a repository that does.
const NO_TAG: &str = "MANIFEST_UNKNOWN";

/// Response of `/v2/<name>/tags/list`.
#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Vec<String>,
}

impl Inner {
    /// Adds similar tags of the repository to the error, if it means that `tag` does not exist. Sends one
    /// request.
    pub(super) async fn suggest_tags(
        &self,
        mut error: Error,
        endpoint: &Endpoint,
        repository: &str,
        tag: &str,
    ) -> Error {
        if let Error::Request { fault, .. } = &mut error
            && let Fault::NotFound(answer) = fault
            && answer.contains(NO_TAG)
            && let Ok(Ok(tags)) = tokio::time::timeout(PATIENCE, self.tags(endpoint, repository)).await
        {
            let tags = tags.iter().map(String::as_str).filter(|tag| is_tag(tag));
            let similar: Box<[String]> =
                similar(tag, tags, MAX_SIMILAR).into_iter().map(str::to_owned).collect();
            if !similar.is_empty() {
                *fault = Fault::NoTag { answer: std::mem::take(answer), similar };
            }
        }
        error
    }

    async fn tags(&self, endpoint: &Endpoint, repository: &str) -> Result<Vec<String>, Fault> {
        let path = "tags/list?n=1000";
        let mut reply = request::get(
            self,
            endpoint,
            GetRequest { repository, path, accept: None, range: None, idle: None },
        )
        .await?;
        let body = reply.whole(MAX_BODY).await?;
        let tags: Tags =
            serde_json::from_slice(&body).map_err(|e| Fault::Corrupt(format!("the list of tags: {e}")))?;
        Ok(tags.tags)
    }
}

/// Reports whether a name is a tag by the grammar of the specification, so that it can be shown.
fn is_tag(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
        && name.bytes().next().is_some_and(is_word)
}
