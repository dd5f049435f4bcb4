//! The socket's server side.
//!
//! Invariants: access is the socket file's mode (0660, group `mh` where it exists); a client that stalls holds up nobody else; every answer
//! that is not a success has a body that says what is wrong and what mends it. A connection has `CONNECTION_TIMEOUT`, unless it follows
//! the events: it then lasts until the client or the server ends it.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body as Content,
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Path as Segment, Query, Request, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use hyper::{
    body::Bytes,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::sleep,
};

use super::{
    api::{
        Backend, ControlError, ErrorBody, Event, EventsRequest, ExplainRequest, FlowFilter, HealthOverride,
        HealthRequest, SetsRequest, WeightsRequest,
    },
    events::Follower,
};

/// The group that may use the socket, where it exists.
const GROUP: &str = "mh";
/// Connections served at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;
/// The largest request body in bytes.
const MAX_BODY: usize = 64 * 1024;
/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take in all.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long followers may take for the last events when the server ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why the socket can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error("another mhd serves {0}; stop it first, or give --socket another path")]
    InUse(PathBuf),
    /// There is something that is not a socket.
    #[error("{0} is there and is no socket; remove it, or give --socket another path")]
    NotSocket(PathBuf),
    /// An operation on files failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A socket that is listened on; its file goes with it.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The file may be gone already, and nothing can be done about it here.
        let _ = fs::remove_file(&self.path);
    }
}

/// Opens the socket. A file that a dead daemon left is replaced; one that a living daemon serves is refused.
pub fn bind(path: &Path) -> Result<Listener, BindError> {
    use std::os::unix::fs::FileTypeExt as _;
    let failed = |what| move |source| BindError::Io { what, path: path.to_owned(), source };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
    }
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(BindError::NotSocket(path.to_owned()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(BindError::InUse(path.to_owned()));
        }
        fs::remove_file(path).map_err(failed("remove the stale socket"))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    let listener = Listener { listener, path: path.to_owned() };
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed("set the mode of"))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP) {
        match chown(path, None, Some(group.gid.as_raw())) {
            // A user who is not of that group; the socket is then the user's alone.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!(
                    "{} can't be given to the group {GROUP}: {error}; run mhd as a member of it",
                    path.display()
                );
            }
            result => result.map_err(failed("set the group of"))?,
        }
    }
    Ok(listener)
}

/// Serves the backend until `shutdown` completes; requests that are under way are then finished.
pub async fn serve<B: Backend>(
    listener: Listener,
    backend: Arc<B>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let service = TowerToHyperService::new(router(backend));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let (end, ending) = watch::channel(false);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener.listener, &places) => accepted?,
            Some(_) = connections.join_next() => continue,
        };
        let Some((stream, place)) = accepted else { continue };
        let service = service.clone();
        let (unlimited, limit) = watch::channel(false);
        let limit = time_limit(limit, ending.clone());
        let service = service_fn(move |mut request| {
            request.extensions_mut().insert(Unlimited(unlimited.clone()));
            service.call(request)
        });
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that breaks off or stalls is its own affair.
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!("control connection: {error}");
                },
                () = limit => {}
            }
            drop(place);
        });
    }
    drop(listener);
    let _ = end.send(true);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Lifts the time limit of the connection that a request came by.
#[derive(Clone)]
struct Unlimited(watch::Sender<bool>);

/// How long nobody is accepted after descriptors or memory were short.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// Ends when the connection's time is over.
async fn time_limit(mut unlimited: watch::Receiver<bool>, mut ending: watch::Receiver<bool>) {
    let lifted = async {
        if unlimited.wait_for(|unlimited| *unlimited).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = sleep(CONNECTION_TIMEOUT) => {}
        () = lifted => {
            // If the sender is gone, so is the server.
            let _ = ending.wait_for(|ending| *ending).await;
            sleep(FAREWELL).await;
        }
    }
}

type Place = tokio::sync::OwnedSemaphorePermit;

async fn accept(listener: &UnixListener, places: &Arc<Semaphore>) -> io::Result<Option<(UnixStream, Place)>> {
    let Ok(place) = Arc::clone(places).acquire_owned().await else { return Ok(None) };
    match listener.accept().await {
        Ok((stream, _)) => Ok(Some((stream, place))),
        // The client went away before it was accepted.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
        // Descriptors or memory are short for the moment.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) =>
        {
            sleep(SHORTAGE_PAUSE).await;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn router<B: Backend>(backend: Arc<B>) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(b): State<Arc<B>>| answer(b.status().await)))
        .route(
            "/v1/weights",
            get(async |State(b): State<Arc<B>>| answer(b.weights().await)).put(
                async |State(b): State<Arc<B>>, Body(request): Body<WeightsRequest>| {
                    answer(b.set_weights(request).await)
                },
            ),
        )
        .route(
            "/v1/uplinks/{name}/drain",
            put(async |State(b): State<Arc<B>>, Segment(name): Segment<String>, Optional(request): Optional<_>| {
                answer(b.set_drain(name, true, request).await)
            })
            .delete(
                async |State(b): State<Arc<B>>, Segment(name): Segment<String>, Optional(request): Optional<_>| {
                    answer(b.set_drain(name, false, request).await)
                },
            ),
        )
        .route(
            "/v1/uplinks/{name}/health",
            put(async |State(b): State<Arc<B>>, Segment(name): Segment<String>, Body(health): Body<Health>| {
                answer(b.set_health(name, health.request()).await)
            }),
        )
        .route(
            "/v1/flows",
            get(async |State(b): State<Arc<B>>, Selection(filter): Selection<FlowFilter>| {
                answer(b.flows(filter).await)
            })
            .delete(async |State(b): State<Arc<B>>, Selection(filter): Selection<FlowFilter>| {
                answer(b.flush_flows(filter).await)
            }),
        )
        .route(
            "/v1/flows/count",
            get(async |State(b): State<Arc<B>>, Selection(filter): Selection<FlowFilter>| {
                answer(b.count_flows(filter).await)
            }),
        )
        .route("/v1/bindings", get(async |State(b): State<Arc<B>>| answer(b.bindings().await)))
        .route("/v1/stats", get(async |State(b): State<Arc<B>>| answer(b.stats().await)))
        .route("/v1/rules", get(async |State(b): State<Arc<B>>| answer(b.rules().await)))
        .route("/v1/policies", get(async |State(b): State<Arc<B>>| answer(b.policies().await)))
        .route(
            "/v1/sets",
            get(async |State(b): State<Arc<B>>, Selection(request): Selection<SetsRequest>| {
                answer(b.sets(request).await)
            }),
        )
        .route(
            "/v1/explain",
            get(async |State(b): State<Arc<B>>, Selection(request): Selection<ExplainRequest>| {
                answer(b.explain(request).await)
            }),
        )
        .route(
            "/v1/events",
            get(
                async |State(b): State<Arc<B>>,
                       Extension(limit): Extension<Unlimited>,
                       Selection(request): Selection<EventsRequest>| {
                    events(b.as_ref(), &limit, request)
                },
            ),
        )
        .route("/v1/reload", post(async |State(b): State<Arc<B>>| answer(b.reload().await)))
        .route("/v1/detach", post(async |State(b): State<Arc<B>>| answer(b.detach().await)))
        .route("/v1/version", get(async |State(b): State<Arc<B>>| answer(b.version().await)))
        .fallback(async |request: Request| {
            refuse(
                StatusCode::NOT_FOUND,
                format!("there is no {}; docs/http-api.md lists what there is", request.uri().path()),
            )
        })
        .method_not_allowed_fallback(async |request: Request| {
            let (method, path) = (request.method(), request.uri().path());
            refuse(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}; see docs/http-api.md"))
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(backend)
}

fn events<B: Backend>(backend: &B, limit: &Unlimited, request: EventsRequest) -> Response {
    let log = backend.event_log();
    if !request.follow {
        return answer(Ok(log.list(request.since)));
    }
    match log.follow(request.since) {
        Ok(follower) => {
            limit.0.send_replace(true);
            let lines = futures::stream::unfold(follower, async |mut follower: Follower| {
                let events = follower.next().await?;
                Some((lines(&events), follower))
            });
            ([(axum::http::header::CONTENT_TYPE, "application/x-ndjson")], Content::from_stream(lines)).into_response()
        }
        Err(error) => answer::<()>(Err(error)),
    }
}

/// A JSON document a line.
fn lines(events: &[Event]) -> serde_json::Result<Bytes> {
    let mut text = Vec::new();
    for event in events {
        serde_json::to_writer(&mut text, event)?;
        text.push(b'\n');
    }
    Ok(text.into())
}

fn refuse(status: StatusCode, error: String) -> Response {
    (status, Json(ErrorBody { error })).into_response()
}

fn answer<T: Serialize>(result: Result<T, ControlError>) -> Response {
    match result {
        Ok(document) => Json(document).into_response(),
        Err(error) => {
            let status = match error {
                ControlError::NotFound(_) => StatusCode::NOT_FOUND,
                ControlError::Invalid(_) => StatusCode::BAD_REQUEST,
                ControlError::Conflict(_) => StatusCode::CONFLICT,
                ControlError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refuse(status, error.to_string())
        }
    }
}

/// A JSON body; a bad one is refused with a JSON body too. The content type does not matter (curl sends forms by default).
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, Response> {
        request
            .headers_mut()
            .insert(axum::http::header::CONTENT_TYPE, axum::http::HeaderValue::from_static("application/json"));
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection @ (JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_))) => {
                Err(refuse(StatusCode::BAD_REQUEST, rejection.body_text()))
            }
            Err(rejection) => Err(refuse(rejection.status(), rejection.body_text())),
        }
    }
}

/// A JSON body as [`Body`], or its default if there is none.
struct Optional<T>(T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for Optional<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        if hyper::body::Body::is_end_stream(request.body()) {
            return Ok(Self(T::default()));
        }
        Body::from_request(request, state).await.map(|Body(body)| Self(body))
    }
}

/// The body of a request for an uplink's health: the word alone, or with more to say.
#[derive(Deserialize)]
#[serde(untagged, expecting = "give \"up\", \"down\" or \"auto\", or {\"health\": \"up\", \"save\": true}")]
enum Health {
    Word(HealthOverride),
    Request(HealthRequest),
}

impl Health {
    const fn request(self) -> HealthRequest {
        match self {
            Self::Word(health) => HealthRequest { health, save: false },
            Self::Request(request) => request,
        }
    }
}

/// What the query selects; a bad query is refused with a JSON body.
struct Selection<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Selection<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let result: Result<_, QueryRejection> = Query::from_request_parts(parts, state).await;
        match result {
            Ok(Query(selection)) => Ok(Self(selection)),
            Err(rejection) => Err(refuse(StatusCode::BAD_REQUEST, rejection.body_text())),
        }
    }
}
