//! What goes wrong on purpose.

use std::time::Duration;

use serde_json::json;

use super::status::Refusal;

/// Which requests a fault meets. What is empty meets all.
#[derive(Clone, Debug, Default)]
pub struct Meets {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: &'static str,
    /// Plural name of the kind, with the subresource if there is one: `jobs`, `imagecaches/status`, `pods/log`.
    pub resource: &'static str,
    /// Name of the object.
    pub name: String,
    /// User that asks.
    pub user: String,
}

/// What goes wrong with the requests that it meets.
#[derive(Clone, Debug)]
pub enum Harm {
    /// 409 as if another writer had been faster.
    Conflict,
    /// 410: what is asked for is no more there to be read.
    Gone,
    /// 429, with Retry-After in seconds.
    Busy(u32),
    /// 500.
    Broken,
    /// 403 though the roles allow it.
    Forbidden,
    /// 401, as while a token is being renewed.
    Unauthorized,
    /// The request is carried out, and the connection ends before the answer.
    NoAnswer,
    /// The connection ends before the request is read.
    Refused,
    /// The answer comes so much later.
    Slow(Duration),
    /// A watch that begins tells nothing, not even bookmarks, and stays open.
    Silent,
    /// A watch that begins ends after so many events, in the middle of the next line.
    CutAfter(usize),
}

/// A fault: met so many times, then gone.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which requests.
    pub meets: Meets,
    /// What happens to them.
    pub harm: Harm,
    /// So many requests are let through before.
    pub after: u32,
    /// How often; `u32::MAX` is for ever.
    pub times: u32,
}

impl Fault {
    /// `harm` to the next request of this verb and resource.
    pub fn once(verb: &'static str, resource: &'static str, harm: Harm) -> Self {
        Fault { meets: Meets { verb, resource, ..Meets::default() }, harm, after: 0, times: 1 }
    }

    /// The same fault so many times.
    pub fn times(self, times: u32) -> Self {
        Fault { times, ..self }
    }

    /// The same fault after so many requests that it spares.
    pub fn after(self, after: u32) -> Self {
        Fault { after, ..self }
    }
}

/// A request that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// As in [`Meets`].
    pub verb: &'static str,
    /// As in [`Meets`].
    pub resource: String,
    /// Namespace, if there is one.
    pub namespace: String,
    /// Name, if there is one.
    pub name: String,
    /// Who asked.
    pub user: String,
}

/// Faults that are to come, and requests that were seen.
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

    /// The fault that a request meets, used up once.
    pub(super) fn meet(&mut self, request: &Seen) -> Option<Harm> {
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

impl Harm {
    /// The answer, where the harm is one.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        Some(match self {
            Harm::Conflict => Refusal::new(
                409,
                "Conflict",
                "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest \
                 version and try again",
            ),
            Harm::Gone => Refusal::expired("The resourceVersion for the provided list is too old."),
            Harm::Busy(after) => {
                // apimachinery pkg/api/errors/errors.go, NewTooManyRequests.
                let mut refusal = Refusal::new(
                    429,
                    "TooManyRequests",
                    "The server has received too many requests and has asked us to try again later",
                );
                refusal.retry_after = Some(*after);
                refusal
            }
            Harm::Broken => {
                let mut refusal = Refusal::internal("Internal error occurred: etcdserver: request timed out");
                refusal.details = Some(json!({"causes": [{"message": "etcdserver: request timed out"}]}));
                refusal
            }
            Harm::Unauthorized => Refusal::unauthorized(),
            Harm::Forbidden => Refusal::new(403, "Forbidden", "forbidden on purpose"),
            _ => return None,
        })
    }
}
