//! Tests of the pages with hostile content.

use chrono::DateTime;

use super::form::Form;
use super::guard::Visitor;
use super::session::Secret256;
use super::{assets, layout, list, text};
use crate::caches::service::BuildOverview;

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u{202e}\u{1b}[2J";

fn visitor() -> Visitor {
    Visitor {
        tenant: "team".parse().unwrap(),
        token: Secret256::random(),
        cookie: Some("secret-cookie".into()),
        query: Form::default(),
        is_fragment: false,
    }
}

fn assert_harmless(html: &str) {
    for forbidden in ["<script>", "<img", "'><", "\u{202e}", "\u{1b}", "secret-cookie"] {
        assert!(!html.contains(forbidden), "{forbidden}: {html}");
    }
}

#[test]
fn messages_are_escaped() {
    assert_harmless(&text::lines(HOSTILE).into_string());
    let build = BuildOverview {
        attempts: 2,
        last_error: Some(HOSTILE.into()),
        refreshing: false,
        received: u64::MAX,
        fetch_bytes: Some(1),
        layers_done: 9,
        layers: 0,
    };
    let html = list::progress(Some(&build)).into_string();
    assert!(html.contains("100%"), "{html}");
    assert_harmless(&text::lines(&list::reason(None, Some(&build))).into_string());
}

#[test]
fn a_page_has_its_frame_and_a_fragment_only_its_main_part() {
    let main = layout::Main {
        title: HOSTILE.chars().take(60).collect(),
        menu: layout::Menu::Create,
        live: Some("x\"><b>".into()),
        content: text::lines("content"),
    };
    let html = main.whole(&visitor()).into_string();
    assert!(html.contains("aria-current=\"page\">Create"), "{html}");
    assert!(
        !html.contains("<script>alert") && !html.contains("<b>") && !html.contains("secret-cookie"),
        "{html}"
    );
    assert!(html.contains("lang=\"en\"") && html.contains("href=\"#main\""));
}

#[test]
fn every_class_of_a_status_has_a_style() {
    for status in larder_model::image_cache::Status::ALL {
        let class = text::status(status).into_string();
        let class = class.split_once("status s-").unwrap().1.split('"').next().unwrap();
        assert!(assets::STYLE.contains(&format!(".s-{class} ")), "{class}");
    }
}

#[test]
fn times() {
    let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
    assert!(text::until(Some(at(7300)), at(0)).into_string().contains("in 2h"));
    assert!(text::until(Some(at(0)), at(1)).into_string().contains("expired"));
    assert_eq!(text::until(None, at(1)).into_string(), "never");
}

#[test]
fn the_script_uses_only_paths_of_the_pages() {
    for path in assets::SCRIPT.split('"').filter(|text| text.starts_with("/ui/")) {
        assert!(["/ui/sign-in", "/ui/events"].contains(&path), "{path}");
    }
    assert!(!assets::SCRIPT.contains("innerHTML") && !assets::SCRIPT.contains("eval("));
}
