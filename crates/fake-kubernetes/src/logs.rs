//! `pods/log` (pkg/registry/core/pod/rest/log.go, pkg/kubelet/server/server.go).

use std::io;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use super::body::{Body, FLUSH};
use super::fault::Effect;
use super::kind::Id;
use super::node::Tail;
use super::object::{list, meta, text};
use super::route::{Query, Route};
use super::status::Refusal;
use super::store::State;

/// Returns the body of a log. [`Effect::CutAfter`] ends its connection after this many pieces;
/// [`Effect::Silent`] sends nothing.
pub(super) fn body(
    state: &State,
    route: &Route,
    query: &Query,
    harm: Option<&Effect>,
) -> Result<Body, Refusal> {
    let kind = state.kind("", "v1", "pods")?;
    let id = Id::new("", "pods", &route.namespace, &route.name);
    let pod = state.get(&id).ok_or_else(|| Refusal::not_found(&kind, &route.name))?;
    let requested = query.get("container");
    let containers = list(pod, "/spec/containers");
    let named = |container: &&Value| requested.is_empty() || container["name"] == requested;
    let Some(container) = containers.iter().find(named) else {
        return Err(Refusal::bad_request(format!(
            "container {requested} is not valid for pod {}",
            route.name
        )));
    };
    let name = text(container, "/name");
    let node = text(pod, "/spec/nodeName");
    if !node.is_empty() && (state.node.is_lost(node) || state.get(&Id::new("", "nodes", "", node)).is_none())
    {
        let url = format!("https://{node}:10250/containerLogs/{}/{}/{name}", route.namespace, route.name);
        return Err(Refusal::internal(format!("Get \"{url}\": dial tcp: connect: no route to host")));
    }
    let Some(log) = state.node.log(meta(pod, "uid")) else {
        let reason = text(pod, "/status/containerStatuses/0/state/waiting/reason");
        let waiting = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        return Err(Refusal::bad_request(format!(
            "container \"{name}\" in pod \"{}\" is waiting to start{waiting}",
            route.name
        )));
    };
    for unknown in ["previous", "timestamps", "sinceTime", "sinceSeconds"] {
        if !matches!(query.get(unknown), "" | "false") {
            return Err(Refusal::new(501, "NotImplemented", format!("{unknown} is not simulated")));
        }
    }
    let number = |name: &str| query.get(name).parse().ok();
    let tail = Tail::new(log, query.flag("follow"), number("tailLines"), number("limitBytes"));
    let silent = matches!(harm, Some(Effect::Silent));
    let left = match harm {
        Some(Effect::CutAfter(pieces)) => *pieces,
        _ => usize::MAX,
    };
    let pieces = stream::unfold((tail, left), move |(mut tail, left)| async move {
        if silent {
            std::future::pending::<()>().await;
        }
        if left == 0 {
            // Time for the previous pieces to arrive.
            tokio::time::sleep(FLUSH).await;
            return Some((Err(io::ErrorKind::ConnectionReset.into()), (tail, left)));
        }
        let piece = tail.next().await?;
        Some((Ok(Frame::data(Bytes::from(piece))), (tail, left - 1)))
    });
    Ok(StreamBody::new(pieces).boxed_unsync())
}
