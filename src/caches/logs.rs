//! Spans that give the log lines about an image cache its tenant, ID and name.

use tracing::Span;

use super::record::Record;
use larder_model::image_cache::{CacheId, CacheName, TenantName};

/// Field with the name of the image cache. `name` would be the name of the span in the JSON format.
const NAME: &str = "cache_name";

/// Returns a span for lines about a cache. If the name is not known yet, [`name`] adds it.
pub fn span(tenant: &TenantName, id: CacheId, name: Option<&CacheName>) -> Span {
    let name = name.map(CacheName::as_str);
    // A filter such as `warn` removes spans of lower levels, and with them the fields of its lines.
    tracing::error_span!("cache", %tenant, cache = %id, cache_name = name)
}

/// Returns a span for lines about the cache of a record.
pub fn of(record: &Record) -> Span {
    span(&record.tenant, record.id, Some(&record.spec.name))
}

/// Adds the name of a cache to the current span, if that has a field for it. Call it once for each span.
pub fn name(name: &CacheName) {
    Span::current().record(NAME, name.as_str());
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::caches::record;

    #[test]
    fn a_line_has_the_name_at_every_level() {
        let record = record::tests::record();
        for level in ["trace", "warn"] {
            let lines = tempfile::NamedTempFile::new().unwrap();
            let subscriber = tracing_subscriber::fmt()
                .with_env_filter(level)
                .with_ansi(false)
                .with_writer(Arc::new(lines.reopen().unwrap()))
                .finish();
            tracing::subscriber::with_default(subscriber, || {
                of(&record).in_scope(|| tracing::warn!("at once"));
                span(&record.tenant, record.id, None).in_scope(|| {
                    name(&record.spec.name);
                    tracing::warn!("later");
                });
            });
            let text = fs::read_to_string(lines.path()).unwrap();
            let fields = format!("cache{{tenant=team cache={} cache_name=\"web\"}}", record.id);
            assert_eq!(text.matches(&fields).count(), 2, "{level}: {text}");
        }
    }
}
