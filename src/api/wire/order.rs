//! The body of a create. It is read field by field, so that an error names the field, its value and the
//! expected value.
//!
//! Unknown fields are ignored. A duplicate key is refused. `null` equals absent for optional fields. `20.0`
//! is not an integer.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{BuildingConfig, json};
use crate::api::errors::Problem;
use crate::api::query::Query;
use larder_model::image_cache::spec::{
    MAX_IMAGES, MAX_PULL_SECRETS, MAX_RETENTION_DAYS, MAX_SIZE_GIB, MIN_SIZE_GIB, SpecError,
};
use larder_model::image_cache::{CacheId, Spec};
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;

/// Maximum length of a value in a message, characters.
const SHOWN: usize = 64;

/// An order for an image cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CreateRequest {
    /// Name of the image cache, unique in the tenant.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[a-z]([a-z0-9-]{0,126}[a-z0-9])?$",
        example = "web-1"
    )]
    pub name: String,
    /// References of the images.
    #[schema(min_items = 1, max_items = 20, example = json!(["nginx:1.27"]))]
    pub images: Vec<String>,
    /// Size of the volume, GiB; at least three times the total size of its images.
    #[schema(required = false, nullable, minimum = 20, maximum = 400, default = 20)]
    pub image_cache_size: u32,
    /// Days until it expires; 0 means never.
    #[schema(required = false, nullable, minimum = 0, maximum = 10000, default = 0)]
    pub retention_days: u32,
    /// The build settings of the image cache.
    pub building_config: BuildingConfig,
}

/// A dry run of an order: the fields of [`CreateRequest`], of which the name is optional.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PlanRequest {
    /// References of the images.
    #[schema(min_items = 1, max_items = 20, example = json!(["nginx:1.27"]))]
    pub images: Vec<String>,
    /// Size of the volume, GiB.
    #[schema(required = false, nullable, minimum = 20, maximum = 400, default = 20)]
    pub image_cache_size: u32,
    /// The build settings of the image cache.
    pub building_config: BuildingConfig,
}

impl CreateRequest {
    /// Parses the body of a create.
    pub(in crate::api) fn parse(body: &[u8]) -> Result<Self, Problem> {
        CreateRequest::parse_with(body, |given| text("name", given))
    }

    /// Parses the body of a plan, whose name is optional. Without one, only the images and the space are
    /// checked.
    pub(in crate::api) fn parse_plan(body: &[u8]) -> Result<Self, Problem> {
        CreateRequest::parse_with(body, |given| match given {
            None | Some(Value::Null) => Ok(format!("plan-{}", CacheId::random())),
            given => text("name", given),
        })
    }

    fn parse_with(
        body: &[u8],
        name: impl FnOnce(Option<&Value>) -> Result<String, Problem>,
    ) -> Result<Self, Problem> {
        let json = json::parse(body).map_err(|e| {
            if e.is_data() {
                return Problem::invalid(format!("body: {e}"));
            }
            let (line, column) = (e.line(), e.column());
            Problem::invalid(format!("body: not JSON at line {line}, column {column}: want an object"))
        })?;
        let fields = object("body", Some(&json))?;
        let building = object("building_config", fields.get("building_config"))?;
        let integer = |name, default, range| integer(name, fields.get(name), default, range);
        Ok(CreateRequest {
            name: name(fields.get("name"))?,
            images: list("images", fields.get("images"), MAX_IMAGES)?
                .ok_or_else(|| wrong("images", fields.get("images"), "an array of image references"))?,
            image_cache_size: integer("image_cache_size", MIN_SIZE_GIB, (MIN_SIZE_GIB, MAX_SIZE_GIB))?,
            retention_days: integer("retention_days", 0, (0, MAX_RETENTION_DAYS))?,
            building_config: BuildingConfig {
                cluster: text("building_config.cluster", building.get("cluster"))?,
                image_pull_secrets: list(
                    "building_config.image_pull_secrets",
                    building.get("image_pull_secrets"),
                    MAX_PULL_SECRETS,
                )?
                .unwrap_or_default(),
            },
        })
    }

    /// Reads the query of an import, whose body is the archive.
    pub(in crate::api) fn of_query(query: &Query) -> Result<Self, Problem> {
        let wanted = |field: &str| {
            let given = query.one(field)?;
            given.ok_or_else(|| Problem::invalid(format!("query: {field} is missing, send it once")))
        };
        let number = |field: &str, default: u32, (least, most): (u32, u32)| {
            let Some(given) = query.one(field)? else { return Ok(default) };
            let digits = !given.is_empty() && given.bytes().all(|b| b.is_ascii_digit());
            let number = given.parse().ok().filter(|number| digits && (least..=most).contains(number));
            number.ok_or_else(|| {
                let given = quoted(given);
                Problem::invalid(format!(
                    "query: {field}: {given} given, want an integer from {least} to {most}"
                ))
            })
        };
        Ok(CreateRequest {
            name: wanted("name")?.to_owned(),
            images: query.all("image").map(str::to_owned).collect(),
            image_cache_size: number("image_cache_size", MIN_SIZE_GIB, (MIN_SIZE_GIB, MAX_SIZE_GIB))?,
            retention_days: number("retention_days", 0, (0, MAX_RETENTION_DAYS))?,
            building_config: BuildingConfig {
                cluster: wanted("cluster")?.to_owned(),
                image_pull_secrets: Vec::new(),
            },
        })
    }

    /// Returns the specification, after checking that every field is within its limits.
    pub(crate) fn into_spec(self) -> Result<Spec, Problem> {
        let name = self.name.parse();
        let name = name.map_err(|e| Problem::invalid(format!("name: {} given, {e}", quoted(&self.name))))?;
        let images = self.images.iter().enumerate().map(|(at, image)| {
            let parsed = image.parse::<ImageReference>();
            parsed.map_err(|e| Problem::invalid(format!("images[{at}]: {e}")))
        });
        for (at, secret) in self.building_config.image_pull_secrets.iter().enumerate() {
            secret
                .parse::<PullSecretName>()
                .map_err(|e| Problem::invalid(format!("building_config.image_pull_secrets[{at}]: {e}")))?;
        }
        let spec = Spec {
            name,
            images: images.collect::<Result<_, _>>()?,
            size_gib: self.image_cache_size,
            retention_days: self.retention_days,
            cluster: self.building_config.cluster,
            pull_secrets: self.building_config.image_pull_secrets,
        };
        spec.check().map_err(|e| Problem::invalid(e.to_string()))?;
        Ok(spec)
    }
}

fn wrong(field: &str, given: Option<&Value>, wanted: &str) -> Problem {
    match given {
        None => Problem::invalid(format!("{field}: missing, want {wanted}")),
        Some(given) => Problem::invalid(format!("{field}: {} given, want {wanted}", shown(given))),
    }
}

/// Formats a value for a message: shortened, and without control characters that could affect a terminal.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(bool) => bool.to_string(),
        Value::Number(number) => number.to_string().chars().take(SHOWN).collect(),
        Value::String(text) => quoted(text),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

fn object<'a>(field: &str, given: Option<&'a Value>) -> Result<&'a Map<String, Value>, Problem> {
    given.and_then(Value::as_object).ok_or_else(|| wrong(field, given, "an object"))
}

fn text(field: &str, given: Option<&Value>) -> Result<String, Problem> {
    let text = given.and_then(Value::as_str).ok_or_else(|| wrong(field, given, "a string"))?;
    Ok(text.to_owned())
}

fn integer(
    field: &str,
    given: Option<&Value>,
    default: u32,
    (least, most): (u32, u32),
) -> Result<u32, Problem> {
    let Some(value) = given.filter(|value| !value.is_null()) else { return Ok(default) };
    let fits = value.as_u64().and_then(|number| u32::try_from(number).ok());
    let fits = fits.filter(|number| (least..=most).contains(number));
    fits.ok_or_else(|| wrong(field, given, &format!("an integer from {least} to {most}")))
}

/// Reads an array of strings. `None` if it is absent.
fn list(field: &str, given: Option<&Value>, most: usize) -> Result<Option<Vec<String>>, Problem> {
    let Some(value) = given.filter(|value| !value.is_null()) else { return Ok(None) };
    let items = value.as_array().ok_or_else(|| wrong(field, given, "an array of strings"))?;
    if items.len() > most {
        let fault = match field {
            "images" => SpecError::Images(items.len()),
            _ => SpecError::PullSecrets,
        };
        return Err(Problem::invalid(fault.to_string()));
    }
    let texts = items.iter().enumerate().map(|(at, item)| text(&format!("{field}[{at}]"), Some(item)));
    texts.collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({"name": "web", "images": ["nginx:1"], "building_config": {"cluster": "c"}})
    }

    fn spec(body: &Value) -> Result<Spec, String> {
        let order = CreateRequest::parse(body.to_string().as_bytes()).and_then(CreateRequest::into_spec);
        order.map_err(|problem| problem.message().to_owned())
    }

    /// Returns the message for a body in which one field is changed.
    fn fault(field: &str, value: Value) -> String {
        let mut body = good();
        match field.strip_prefix("building_config.") {
            Some(inner) => body["building_config"][inner] = value,
            None => body[field] = value,
        }
        let message = spec(&body).unwrap_err();
        assert!(message.starts_with(field), "{message}");
        message
    }

    #[test]
    fn defaults_and_limits() {
        let plain = spec(&good()).unwrap();
        assert_eq!((plain.size_gib, plain.retention_days, plain.pull_secrets.len()), (20, 0, 0));
        let mut body = good();
        body["image_cache_size"] = json!(400);
        body["retention_days"] = json!(10_000);
        body["images"] = json!(vec!["nginx"; 20]);
        body["building_config"]["image_pull_secrets"] = json!(["a:b", "team-a:reg.cred"]);
        body["surprise"] = json!({"deep": [1, 2.5, null]});
        let full = spec(&body).unwrap();
        assert_eq!((full.size_gib, full.retention_days, full.images.len()), (400, 10_000, 20));
        assert_eq!(full.pull_secrets, ["a:b", "team-a:reg.cred"]);
        for optional in ["image_cache_size", "retention_days"] {
            body[optional] = Value::Null;
        }
        body["building_config"]["image_pull_secrets"] = Value::Null;
        assert_eq!(spec(&body).unwrap().size_gib, 20);
    }

    #[test]
    fn faults_name_field_given_and_wanted() {
        assert_eq!(fault("name", json!(5)), "name: 5 given, want a string");
        assert_eq!(
            fault("image_cache_size", json!("20")),
            "image_cache_size: \"20\" given, want an integer from 20 to 400"
        );
        for size in [json!(19), json!(401), json!(20.0), json!(20.5), json!(true), json!(-1), json!(u64::MAX)]
        {
            fault("image_cache_size", size);
        }
        for days in [json!(-1), json!(10_001), json!("1"), json!([]), json!(0.0)] {
            fault("retention_days", days);
        }
        for name in ["", "A", "1a", "a-", "a_b", "a\u{1b}[2J", &"a".repeat(129)] {
            let message = fault("name", json!(name));
            assert!(!message.contains('\u{1b}') && message.len() < 300, "{message}");
        }
        for images in
            [json!([]), json!(null), json!("nginx"), json!(["UPPER"]), json!([5]), json!(vec!["a"; 21])]
        {
            fault("images", images);
        }
        assert!(fault("images", json!(["ok", "not ok"])).starts_with("images[1]: "));
        for config in [json!(null), json!("c"), json!([])] {
            fault("building_config", config);
        }
        for cluster in [json!(null), json!(""), json!(5), json!("c".repeat(513))] {
            fault("building_config.cluster", cluster);
        }
        let message = fault("building_config.image_pull_secrets", json!(["a:b", "no secret"]));
        assert!(message.starts_with("building_config.image_pull_secrets[1]: \"no secret\" is"), "{message}");
        for text in
            ["", ":", "a", "a:", ":b", "A:b", "a:b:c", "../../etc:passwd", "a/b:c", "a:*", "*", " a:b"]
        {
            assert!(
                fault("building_config.image_pull_secrets", json!([text])).contains("want namespace:name")
            );
        }
        for secrets in [json!("a:b"), json!([5]), json!(vec!["a:b"; 65]), json!(["a".repeat(513)])] {
            fault("building_config.image_pull_secrets", secrets);
        }
        let absent = spec(&json!({"images": ["a"], "building_config": {"cluster": "c"}})).unwrap_err();
        assert_eq!(absent, "name: missing, want a string");
    }

    #[test]
    fn the_query_of_an_import() {
        let of = |text: &str| {
            let order = Query::parse(Some(text)).and_then(|query| CreateRequest::of_query(&query));
            order.and_then(CreateRequest::into_spec).map_err(|problem| problem.message().to_owned())
        };
        let plain = of("name=web&image=nginx:1&image=redis:7&cluster=c").unwrap();
        assert_eq!((plain.size_gib, plain.retention_days, plain.images.len()), (20, 0, 2));
        let full = of("name=web&image=a&cluster=c&image_cache_size=400&retention_days=10000&more=x").unwrap();
        assert_eq!((full.size_gib, full.retention_days), (400, 10_000));
        for bad in [
            "",
            "name=web&cluster=c",
            "image=a&cluster=c",
            "name=web&image=a",
            "name=web&name=x&image=a&cluster=c",
            "name=Web&image=a&cluster=c",
            "name=web&image=A%20B&cluster=c",
            "name=web&image=a&cluster=",
            "name=web&image=a&cluster=c&image_cache_size=19",
            "name=web&image=a&cluster=c&image_cache_size=401",
            "name=web&image=a&cluster=c&image_cache_size=%2B20",
            "name=web&image=a&cluster=c&image_cache_size=",
            "name=web&image=a&cluster=c&retention_days=-1",
            "name=web&image=a&cluster=c&retention_days=99999999999999999999",
            &format!("name=web&cluster=c{}", "&image=a".repeat(21)),
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_body_that_is_not_an_object_is_refused() {
        for bad in ["", "{", "[]", "5", "null", "\"x\"", "{\"name\":}", "\u{feff}{}", "{} {}"] {
            let message = CreateRequest::parse(bad.as_bytes()).unwrap_err().message().to_owned();
            assert!(message.starts_with("body: "), "{bad}: {message}");
        }
        let deep = "[".repeat(100_000);
        assert!(CreateRequest::parse(deep.as_bytes()).is_err());
        assert!(CreateRequest::parse(b"{\"name\":\"\xff\"}").is_err());
    }

    #[test]
    fn duplicate_keys_are_refused() {
        for body in [
            r#"{"name":"a","name":"b","images":["x"],"building_config":{"cluster":"c"}}"#,
            r#"{"name":"a","images":["x"],"building_config":{"cluster":"c","cluster":"c"}}"#,
            r#"{"name":"a","images":["x"],"building_config":{"cluster":"c"},"more":{"a\u001b":1,"a\u001b":1}}"#,
        ] {
            let message = CreateRequest::parse(body.as_bytes()).unwrap_err().message().to_owned();
            assert!(message.starts_with("body: duplicate key "), "{message}");
            assert!(!message.contains('\u{1b}'), "{message}");
        }
    }
}
