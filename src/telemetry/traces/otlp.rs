//! OTLP/HTTP with JSON: the body of a request to `/v1/traces`.
//!
//! The protocol is <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>: names in
//! lowerCamelCase, IDs in hexadecimal, 64-bit numbers as strings, and enums as numbers.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::build::{Attribute, Span};
use crate::version::VERSION;
use larder_model::digest::hex;

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u8 = 1;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// Returns the body of a request that exports the spans of one trace.
pub(super) fn request((trace, spans): &([u8; 16], Vec<Span>)) -> String {
    let trace = hex(trace);
    let spans: Vec<Value> = spans.iter().map(|of_trace| span(&trace, of_trace)).collect();
    let resource = [
        attribute("service.name", &Attribute::Text(env!("CARGO_PKG_NAME").to_owned())),
        attribute("service.version", &Attribute::Text(VERSION.version.to_owned())),
    ];
    let scope = json!({"name": env!("CARGO_PKG_NAME"), "version": VERSION.version});
    let scoped = json!({"scope": scope, "spans": spans});
    json!({"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [scoped]}]}).to_string()
}

fn span(trace: &str, span: &Span) -> Value {
    let attributes: Vec<Value> = span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    let mut found = json!({
        "traceId": trace,
        "spanId": hex(&span.id),
        "name": span.name,
        "kind": INTERNAL,
        "startTimeUnixNano": nanoseconds(span.start),
        "endTimeUnixNano": nanoseconds(span.end.max(span.start)),
        "attributes": attributes,
    });
    if let Some(parent) = span.parent {
        found["parentSpanId"] = hex(&parent).into();
    }
    if span.failed {
        found["status"] = json!({"code": ERROR});
    }
    found
}

fn attribute(key: &str, value: &Attribute) -> Value {
    let value = match value {
        Attribute::Text(text) => json!({"stringValue": text}),
        Attribute::Number(number) => json!({"intValue": number.to_string()}),
    };
    json!({"key": key, "value": value})
}

fn nanoseconds(time: DateTime<Utc>) -> String {
    time.timestamp_nanos_opt().unwrap_or_default().max(0).to_string()
}
