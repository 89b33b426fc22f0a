//! The pages of a visitor: menu and main part.

use axum::response::Response;
use maud::{Markup, html};

use super::frame::frame;
use super::guard::{TOKEN, Visitor};
use super::respond;
use crate::version::VERSION;

/// A page of the menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Menu {
    Caches,
    Capacity,
    Create,
}

impl Menu {
    const ALL: [(Menu, &'static str, &'static str); 3] = [
        (Menu::Caches, "/ui/", "Caches"),
        (Menu::Capacity, "/ui/capacity", "Capacity"),
        (Menu::Create, "/ui/create", "Create"),
    ];
}

/// The main part of a page.
#[derive(Debug)]
pub(super) struct Main {
    /// Title of the page.
    pub(super) title: String,
    /// The page of the menu to which it belongs.
    pub(super) menu: Menu,
    /// The state of the page in one sentence, which a screen reader reads when it changes. `None` if the page
    /// does not change by itself.
    pub(super) live: Option<String>,
    /// The content of the main part.
    pub(super) content: Markup,
}

impl Main {
    fn markup(&self) -> Markup {
        html! {
            main #main tabindex="-1" data-live=[self.live.as_ref()] data-title=(self.title) { (self.content) }
        }
    }

    /// Returns the page as an answer, or only its main part if the script requests that.
    pub(super) fn answer(&self, visitor: &Visitor) -> Response {
        respond::page(if visitor.is_fragment { self.markup() } else { self.whole(visitor) })
    }

    /// Returns the whole page.
    pub(super) fn whole(&self, visitor: &Visitor) -> Markup {
        frame(
            &self.title,
            &html! {
                a.skip href="#main" { "Skip to the content" }
                header {
                    nav aria-label="Larder" {
                        strong { "Larder" }
                        @for (menu, path, name) in Menu::ALL {
                            a href=(path) aria-current=[(menu == self.menu).then_some("page")] { (name) }
                        }
                    }
                    (who(visitor))
                }
                (self.markup())
                p #announce.quiet role="status" aria-live="polite" {}
                footer { "Larder " (VERSION.version) " · " a href="/openapi.json" { "API" } }
            },
        )
    }
}

/// Returns the name of the tenant, and the button to sign out.
fn who(visitor: &Visitor) -> Markup {
    html! {
        div.who {
            span { "Tenant " strong { (visitor.tenant) } }
            @if visitor.cookie.is_some() {
                form method="post" action="/ui/sign-out" {
                    (token(visitor))
                    button { "Sign out" }
                }
            }
        }
    }
}

/// Returns the hidden field that every form needs.
pub(super) fn token(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name=(TOKEN) value=(visitor.token.text()); }
}
