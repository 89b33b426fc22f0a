//! Request paths and queries (apiserver pkg/endpoints/request/requestinfo.go).

use hyper::Method;

/// Resource that a path names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) namespace: String,
    pub(super) plural: String,
    pub(super) name: String,
    pub(super) subresource: String,
}

impl Route {
    /// Parses `/api/v1/…` and `/apis/<group>/<version>/…`. `None` if the path names no resource.
    pub(super) fn read(path: &str) -> Option<Self> {
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // The path names the namespace itself or its subresource.
            ["namespaces", _, "status" | "finalize"] | ["namespaces"] | ["namespaces", _] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            _ => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, subresource] => (*plural, *name, *subresource),
            _ => return None,
        };
        Some(Route {
            group: group.to_owned(),
            version: version.to_owned(),
            namespace: namespace.to_owned(),
            plural: plural.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
        })
    }

    /// Returns the verb of the request, or `None` if the method does not fit the path.
    pub(super) fn verb(&self, method: &Method, query: &Query) -> Option<&'static str> {
        let one = !self.name.is_empty();
        Some(match method.as_str() {
            "GET" if one => "get",
            "GET" if query.flag("watch") => "watch",
            "GET" => "list",
            "POST" if !one || !self.subresource.is_empty() => "create",
            "PUT" if one => "update",
            "PATCH" if one => "patch",
            "DELETE" if one => "delete",
            "DELETE" => "deletecollection",
            _ => return None,
        })
    }

    /// Returns the resource with its subresource: `jobs`, `pods/log`.
    pub(super) fn resource(&self) -> String {
        if self.subresource.is_empty() {
            self.plural.clone()
        } else {
            format!("{}/{}", self.plural, self.subresource)
        }
    }
}

/// Query parameters of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn read(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// Returns a parameter, or an empty string if it is missing.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(given, _)| given == name).map_or("", |(_, value)| value)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1")
    }
}

/// Decodes percent-encoding and `+`.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((sign, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (sign, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = &after[2..];
                continue;
            }
            (b'+', _, _) => bytes.push(b' '),
            (sign, _, _) => bytes.push(*sign),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
