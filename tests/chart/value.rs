//! Values of templates. Maps and lists are shared, because `set` changes its map in place.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value as Json;

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(Json),
    List(Rc<RefCell<Vec<Value>>>),
    Map(Rc<RefCell<BTreeMap<String, Value>>>),
}

impl From<&Json> for Value {
    fn from(json: &Json) -> Self {
        match json {
            Json::Array(items) => Value::list(items.iter().map(Value::from).collect()),
            Json::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| (key.clone(), Value::from(value)));
                Value::Map(Rc::new(RefCell::new(fields.collect())))
            }
            scalar => Value::Scalar(scalar.clone()),
        }
    }
}

impl Value {
    pub(crate) fn null() -> Self {
        Value::Scalar(Json::Null)
    }

    pub(crate) fn text(text: impl Into<String>) -> Self {
        Value::Scalar(Json::String(text.into()))
    }

    pub(crate) fn flag(flag: bool) -> Self {
        Value::Scalar(Json::Bool(flag))
    }

    pub(crate) fn list(items: Vec<Value>) -> Self {
        Value::List(Rc::new(RefCell::new(items)))
    }

    pub(crate) fn json(&self) -> Json {
        match self {
            Value::Scalar(scalar) => scalar.clone(),
            Value::List(items) => items.borrow().iter().map(Value::json).collect(),
            Value::Map(fields) => {
                let fields = fields.borrow();
                Json::Object(fields.iter().map(|(key, value)| (key.clone(), value.json())).collect())
            }
        }
    }

    /// Reports whether `if` treats the value as true (text/template, IsTrue).
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Value::Scalar(Json::Null) => false,
            Value::Scalar(Json::Bool(flag)) => *flag,
            Value::Scalar(Json::Number(number)) => number.as_f64() != Some(0.0),
            Value::Scalar(Json::String(text)) => !text.is_empty(),
            Value::Scalar(_) => true,
            Value::List(items) => !items.borrow().is_empty(),
            Value::Map(fields) => !fields.borrow().is_empty(),
        }
    }

    /// Returns a field of a map; null if the map does not have it.
    pub(crate) fn field(&self, name: &str) -> Self {
        match self {
            Value::Map(fields) => fields.borrow().get(name).cloned().unwrap_or_else(Value::null),
            other => panic!("cannot read the field {name} of {other:?}"),
        }
    }

    /// Formats the value as an action prints it.
    pub(crate) fn print(&self) -> String {
        match self {
            Value::Scalar(Json::String(text)) => text.clone(),
            Value::Scalar(scalar @ (Json::Number(_) | Json::Bool(_))) => scalar.to_string(),
            other => panic!("a template cannot print {other:?}"),
        }
    }

    pub(crate) fn as_text(&self) -> String {
        match self {
            Value::Scalar(Json::String(text)) => text.clone(),
            other => panic!("{other:?} is not a string"),
        }
    }

    pub(crate) fn items(&self) -> Vec<Value> {
        match self {
            Value::List(items) => items.borrow().clone(),
            other => panic!("{other:?} is not a list"),
        }
    }
}
