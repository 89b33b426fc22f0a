//! The frame of every page.

use maud::{Markup, html};

use crate::document::document;

/// Returns a page without a menu, for a person who has not signed in.
pub(super) fn plain(title: &str, content: Markup) -> Markup {
    let body = html! {
        header { nav aria-label="Larder" { strong { "Larder" } } }
        main #main tabindex="-1" { (content) }
    };
    frame(title, &body)
}

/// Returns a page with the style sheet and the script.
pub(super) fn frame(title: &str, body: &Markup) -> Markup {
    let head = html! {
        link rel="stylesheet" href="/ui/style.css";
        link rel="icon" href="/ui/icon.svg";
        script src="/ui/script.js" defer {}
    };
    document(&format!("{title} · Larder"), &head, body)
}
