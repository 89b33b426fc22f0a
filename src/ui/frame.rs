//! The frame of every document.

use maud::{DOCTYPE, Markup, html};

/// Returns a page without a menu, for a person who has not signed in.
pub(super) fn plain(title: &str, content: Markup) -> Markup {
    frame(
        title,
        html! {
            header { nav aria-label="Larder" { strong { "Larder" } } }
            main #main tabindex="-1" { (content) }
        },
    )
}

/// Returns a document with the style sheet and the script.
pub(super) fn frame(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Larder" }
                link rel="stylesheet" href="/ui/style.css";
                link rel="icon" href="/ui/icon.svg";
                script src="/ui/script.js" defer {}
            }
            body { (body) }
        }
    }
}
