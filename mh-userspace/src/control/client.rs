//! mhctl's side of the socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::api::{
    Binding, Count, DrainRequest, ErrorBody, Event, EventsRequest, ExplainRequest, Explanation, Flow, FlowFilter,
    HealthRequest, Policy, Reloaded, Rule, Set, SetsRequest, Stats, Status, Version, Weight, WeightsRequest,
};

/// How long an answer may take, a list of a million flows included.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why there is no answer, or not the one that was wanted.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot reach mhd at {path}: {reason}; {mend}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        reason: String,
        /// What to do.
        mend: &'static str,
    },
    /// mhd refused, with its reason.
    #[error("{0}")]
    Refused(String),
    /// The connection broke or the answer was not understood.
    #[error("mhd at {path} gave no usable answer: {reason}; is it the same version as mhctl?")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
}

/// A client of one socket. Each request is a connection.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the socket at this path; nothing is connected yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// State of uplinks and tables.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// Weights as they are.
    pub async fn weights(&self) -> Result<Vec<Weight>, ClientError> {
        self.get("/v1/weights").await
    }

    /// Sets weights.
    pub async fn set_weights(&self, request: &WeightsRequest) -> Result<Vec<Weight>, ClientError> {
        self.send(Method::PUT, "/v1/weights", Some(request)).await
    }

    /// Drains an uplink, or stops draining it.
    pub async fn set_drain(&self, uplink: &str, drain: bool, request: &DrainRequest) -> Result<(), ClientError> {
        let method = if drain { Method::PUT } else { Method::DELETE };
        self.send(method, &format!("/v1/uplinks/{}/drain", encode(uplink)), Some(request)).await
    }

    /// Sets an uplink's health.
    pub async fn set_health(&self, uplink: &str, request: &HealthRequest) -> Result<(), ClientError> {
        self.send(Method::PUT, &format!("/v1/uplinks/{}/health", encode(uplink)), Some(request)).await
    }

    /// Flows.
    pub async fn flows(&self, filter: &FlowFilter) -> Result<Vec<Flow>, ClientError> {
        self.get(&format!("/v1/flows{}", selection(filter))).await
    }

    /// How many flows there are.
    pub async fn count_flows(&self, filter: &FlowFilter) -> Result<Count, ClientError> {
        self.get(&format!("/v1/flows/count{}", selection(filter))).await
    }

    /// Removes flows.
    pub async fn flush_flows(&self, filter: &FlowFilter) -> Result<Count, ClientError> {
        self.send(Method::DELETE, &format!("/v1/flows{}", selection(filter)), None::<&()>).await
    }

    /// Bindings.
    pub async fn bindings(&self) -> Result<Vec<Binding>, ClientError> {
        self.get("/v1/bindings").await
    }

    /// Counters.
    pub async fn stats(&self) -> Result<Stats, ClientError> {
        self.get("/v1/stats").await
    }

    /// The rules, and what becomes of what none matches.
    pub async fn rules(&self) -> Result<Vec<Rule>, ClientError> {
        self.get("/v1/rules").await
    }

    /// The policies.
    pub async fn policies(&self) -> Result<Vec<Policy>, ClientError> {
        self.get("/v1/policies").await
    }

    /// The sets.
    pub async fn sets(&self, request: &SetsRequest) -> Result<Vec<Set>, ClientError> {
        let contains = request.contains.map(|address| address.to_string());
        self.get(&format!("/v1/sets{}", query([("contains", contains)]))).await
    }

    /// What would become of a packet, and why.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ClientError> {
        let pairs = [
            ("proto", Some(request.proto.clone())),
            ("src", Some(request.src.to_string())),
            ("sport", request.sport.map(|port| port.to_string())),
            ("dst", Some(request.dst.to_string())),
            ("dport", request.dport.map(|port| port.to_string())),
            ("interface", request.interface.clone()),
            ("dscp", request.dscp.map(|dscp| dscp.to_string())),
        ];
        self.get(&format!("/v1/explain{}", query(pairs))).await
    }

    /// The events that mhd keeps; with `since`, only those after that number.
    pub async fn events(&self, since: Option<u64>) -> Result<Vec<Event>, ClientError> {
        self.get(&events_path(&EventsRequest { since, follow: false })).await
    }

    /// Calls `each` with every event that mhd keeps (with `since`: after that number), and then with each as it happens, until mhd ends
    /// or `each` fails.
    pub async fn follow_events<E: From<ClientError>>(
        &self,
        since: Option<u64>,
        mut each: impl FnMut(Event) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = events_path(&EventsRequest { since, follow: true });
        let stream = UnixStream::connect(&self.path).await.map_err(|error| self.unreachable(&error))?;
        let begin = self.begin(stream, Method::GET, &path, None::<&()>);
        let begun = tokio::time::timeout(TIMEOUT, begin).await;
        let mut response = begun.map_err(|_| self.late())??;
        let mut pending = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|error| self.broken(error.to_string()))?;
            pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                each(serde_json::from_slice(&line).map_err(|error| self.broken(error.to_string()))?)?;
            }
        }
        Ok(())
    }

    /// Makes mhd read its configuration again.
    pub async fn reload(&self) -> Result<Reloaded, ClientError> {
        self.send(Method::POST, "/v1/reload", None::<&()>).await
    }

    /// Makes mhd remove every trace, and end.
    pub async fn detach(&self) -> Result<(), ClientError> {
        self.send(Method::POST, "/v1/detach", None::<&()>).await
    }

    /// mhd's version.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| self.unreachable(&error))?;
        let exchange = async {
            let response = self.begin(stream, method, path, body).await?;
            let bytes = self.body(response).await?;
            serde_json::from_slice(&bytes).map_err(|error| self.broken(error.to_string()))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(result) => result,
            Err(_) => Err(self.late()),
        }
    }

    /// Sends a request; the answer's head is there and is no refusal, and its body comes.
    async fn begin(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>, ClientError> {
        let broken = |error: hyper::Error| self.broken(error.to_string());
        let content = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| self.broken(error.to_string()))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "mh")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(content)))
            .map_err(|error| self.broken(error.to_string()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the answer's body; how does not matter then.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(refusal(status, &self.body(response).await?)) }
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = response.into_body().collect().await.map_err(|error| self.broken(error.to_string()))?;
        Ok(body.to_bytes())
    }

    fn late(&self) -> ClientError {
        self.broken(format!("none within {} s", TIMEOUT.as_secs()))
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        let (reason, mend) = match error.kind() {
            io::ErrorKind::NotFound => ("no such file".to_owned(), "is mhd running? (or give --socket PATH)"),
            io::ErrorKind::ConnectionRefused => {
                ("nobody listens".to_owned(), "is mhd running? (or give --socket PATH)")
            }
            io::ErrorKind::PermissionDenied => {
                ("permission denied".to_owned(), "run as root, or as a member of the group mh")
            }
            _ => (error.to_string(), "give the daemon's socket with --socket PATH"),
        };
        ClientError::Unreachable { path: self.path.clone(), reason, mend }
    }

    fn broken(&self, reason: String) -> ClientError {
        ClientError::Broken { path: self.path.clone(), reason }
    }
}

/// mhd's reason for not doing it.
fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    let reason = serde_json::from_slice::<ErrorBody>(body);
    ClientError::Refused(reason.map_or_else(|_| format!("HTTP status {status}"), |body| body.error))
}

fn events_path(request: &EventsRequest) -> String {
    let since = request.since.map_or_else(String::new, |since| format!("&since={since}"));
    format!("/v1/events?follow={}{since}", request.follow)
}

/// A path segment or query value with everything but unreserved characters escaped (RFC 3986 section 2.3).
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn selection(filter: &FlowFilter) -> String {
    query([
        ("uplink", filter.uplink.clone()),
        ("src", filter.src.map(|net| net.to_string())),
        ("dst", filter.dst.map(|net| net.to_string())),
        ("proto", filter.proto.clone()),
        ("limit", filter.limit.map(|limit| limit.to_string())),
    ])
}

/// A query of the pairs that have a value.
fn query<const N: usize>(pairs: [(&str, Option<String>); N]) -> String {
    let given = pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encode(&value?))));
    let pairs: Vec<String> = given.collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}
