//! Deliberate faults of the server.

use std::time::Duration;

use serde_json::json;

use super::status::Refusal;

/// Requests that a fault affects. An empty field matches all.
#[derive(Clone, Debug, Default)]
pub struct RequestMatcher {
    /// Verb: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: &'static str,
    /// Plural name of the kind, with the subresource if there is one: `jobs`, `imagecaches/status`,
    /// `pods/log`.
    pub resource: &'static str,
    /// Name of the object.
    pub name: String,
    /// User that sends the request.
    pub user: String,
}

/// Effect of a fault on a matching request.
#[derive(Clone, Debug)]
pub enum Effect {
    /// 409, as if another writer had been faster.
    Conflict,
    /// 410: the requested version can no longer be read.
    Gone,
    /// 429, with Retry-After in seconds.
    Busy(u32),
    /// 500, as if etcd had timed out.
    Broken,
    /// 403, although the roles allow the request.
    Forbidden,
    /// 401, as during the renewal of a token.
    Unauthorized,
    /// Executes the request, then closes the connection without a response.
    NoAnswer,
    /// Closes the connection before the request is executed.
    Refused,
    /// Delays the response by this time.
    Slow(Duration),
    /// Keeps a new watch open without any event or bookmark.
    Silent,
    /// Ends a new watch after this many events, in the middle of the next line.
    CutAfter(usize),
}

/// A fault that affects a limited number of requests.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Requests that the fault affects.
    pub meets: RequestMatcher,
    /// Effect on the affected requests.
    pub harm: Effect,
    /// Number of matching requests that pass before the first affected one.
    pub after: u32,
    /// Number of affected requests. `u32::MAX` means all.
    pub times: u32,
}

impl Fault {
    /// Creates a fault with the effect `harm` on the next request of this verb and resource.
    pub fn once(verb: &'static str, resource: &'static str, harm: Effect) -> Self {
        Fault {
            meets: RequestMatcher { verb, resource, ..RequestMatcher::default() },
            harm,
            after: 0,
            times: 1,
        }
    }

    /// Sets the number of affected requests.
    pub fn times(self, times: u32) -> Self {
        Fault { times, ..self }
    }

    /// Sets the number of matching requests that pass first.
    pub fn after(self, after: u32) -> Self {
        Fault { after, ..self }
    }
}

/// A request that the server received.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Verb, as in [`RequestMatcher`].
    pub verb: &'static str,
    /// Resource, as in [`RequestMatcher`].
    pub resource: String,
    /// Namespace, if there is one.
    pub namespace: String,
    /// Name of the object, if there is one.
    pub name: String,
    /// User that sent the request.
    pub user: String,
}

/// Pending faults, and the received requests.
#[derive(Debug, Default)]
pub(super) struct Faults {
    waiting: Vec<Fault>,
    pub(super) seen: Vec<Seen>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.waiting.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Returns the effect of the first fault that matches a request, and counts the fault as used.
    pub(super) fn meet(&mut self, request: &Seen) -> Option<Effect> {
        let fits = |wanted: &str, given: &str| wanted.is_empty() || wanted == given;
        for fault in &mut self.waiting {
            let meets = &fault.meets;
            if fault.times == 0
                || !fits(meets.verb, request.verb)
                || !fits(meets.resource, &request.resource)
                || !fits(&meets.name, &request.name)
                || !fits(&meets.user, &request.user)
            {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            if fault.times != u32::MAX {
                fault.times -= 1;
            }
            return Some(fault.harm.clone());
        }
        None
    }
}

impl Effect {
    /// Returns the error response, if the effect is one.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        Some(match self {
            Effect::Conflict => Refusal::new(
                409,
                "Conflict",
                "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest \
                 version and try again",
            ),
            Effect::Gone => Refusal::expired("The resourceVersion for the provided list is too old."),
            Effect::Busy(after) => {
                // apimachinery pkg/api/errors/errors.go, NewTooManyRequests.
                let mut refusal = Refusal::new(
                    429,
                    "TooManyRequests",
                    "The server has received too many requests and has asked us to try again later",
                );
                refusal.retry_after = Some(*after);
                refusal
            }
            Effect::Broken => {
                let mut refusal = Refusal::internal("Internal error occurred: etcdserver: request timed out");
                refusal.details = Some(json!({"causes": [{"message": "etcdserver: request timed out"}]}));
                refusal
            }
            Effect::Unauthorized => Refusal::unauthorized(),
            Effect::Forbidden => Refusal::new(403, "Forbidden", "forbidden on purpose"),
            _ => return None,
        })
    }
}
