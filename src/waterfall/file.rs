//! Files to send: one page that contains everything it shows.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use maud::{Markup, PreEscaped, html};

use super::{describe, legend, picture};
use crate::document::document;
use larder_model::escape::escape;
use larder_model::io_error::IoError;
use larder_model::size::ByteSize;
use larder_model::timeline::{LayerSource, Timeline};

/// The style of the page. The policy of the daemon does not apply to a file.
const STYLE: &str = include_str!("file/style.css");

/// A fact at the top of a page: its name and its value.
pub type Fact = (&'static str, String);

/// Returns a page with a title, facts, and the timeline of a build.
pub fn page(title: &str, facts: &[Fact], timeline: Option<&Timeline>) -> String {
    page_with(title, facts, &html! {}, timeline)
}

/// Returns a page with a title, facts, another section, and the timeline of a build.
pub fn page_with(title: &str, facts: &[Fact], section: &Markup, timeline: Option<&Timeline>) -> String {
    let title = escape(title);
    let head = html! {
        // A file that is opened from a disk or a mail must not load anything.
        meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
        style { (PreEscaped(STYLE)) }
    };
    let content = html! {
        main {
            h1 { (title) }
            dl {
                @for (name, value) in facts {
                    dt { (name) }
                    dd { (escape(value)) }
                }
            }
            (section)
            h2 { "Timeline" }
            @match timeline {
                None => p { "There is no timeline of a build." },
                Some(timeline) => (body(timeline)),
            }
        }
    };
    document(&title, &head, &content).into_string()
}

fn body(timeline: &Timeline) -> Markup {
    html! {
        p { (describe(timeline)) }
        (legend())
        div.scroll tabindex="0" role="region" aria-label="Timeline" { (picture(timeline)) }
        h2 { "Layers" }
        div.scroll tabindex="0" role="region" aria-label="Layers" { (layers(timeline)) }
    }
}

/// Returns the numbers of the picture as a table.
fn layers(timeline: &Timeline) -> Markup {
    let time = |span: Option<larder_model::timeline::Span>| {
        span.map_or_else(|| "-".to_owned(), |span| super::duration(span.duration_ms()))
    };
    html! {
        table {
            thead { tr {
                @for head in ["Layer", "Source", "Compressed", "Size", "Fetch", "Unpack", "Wait", "Commit"] { th scope="col" { (head) } }
            } }
            tbody {
                @for layer in &timeline.layers {
                    tr {
                        th scope="row" { code { (layer.blob.hex().chars().take(12).collect::<String>()) } }
                        td { (source(layer.source)) }
                        td { (ByteSize(layer.compressed_size)) }
                        td { (ByteSize(layer.size)) }
                        td { (time(layer.download)) }
                        td { (time(layer.unpack)) }
                        td { (time(layer.wait)) }
                        td { (time(layer.commit)) }
                    }
                }
            }
        }
    }
}

fn source(source: LayerSource) -> &'static str {
    match source {
        LayerSource::Fetched => "fetched",
        LayerSource::Reused => "reused",
        LayerSource::Present => "present",
    }
}

/// Writes a page. The file is complete or unchanged: it is renamed into place.
///
/// # Errors
/// Fails if the directory cannot be written.
pub fn write(path: &Path, page: &str) -> Result<(), IoError> {
    let failed = |source| IoError::new("writing", path.display(), source);
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let mut staged = std::ffi::OsString::from(".");
    staged.push(name);
    staged.push(format!(".{}", std::process::id()));
    let staged = path.with_file_name(staged);
    let written = write_new(&staged, page).and_then(|()| fs::rename(&staged, path));
    written.map_err(|e| {
        let _ = fs::remove_file(&staged);
        failed(e)
    })
}

fn write_new(path: &Path, page: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(page.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::tests::timeline;
    use super::*;

    #[test]
    fn a_page_contains_everything_and_escapes_names() {
        let page = page("<b>web</b>", &[("Images", "a\u{1b}[2J<i>".to_owned())], Some(&timeline()));
        assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg"), "{page}");
        assert!(!page.contains("<b>") && !page.contains("<i>") && !page.contains('\u{1b}'), "{page}");
        for outside in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(super::page("web", &[], None).contains("no timeline"));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.html");
        write(&path, "1").unwrap();
        write(&path, "2").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        let error = write(&dir.path().join("none/a.html"), "1").unwrap_err().to_string();
        assert!(error.contains("none/a.html: No such file"), "{error}");
        assert!(write(Path::new("/"), "1").is_err());
    }
}
