//! The outer part of every HTML document: pages of the daemon, and files to send.

use maud::{DOCTYPE, Markup, html};

/// Returns a document. `head` has its style, and everything else that differs.
pub(crate) fn document(title: &str, head: &Markup, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                (head)
            }
            body { (body) }
        }
    }
}
