//! A request by HTTP/1.1 (RFC 9112), with or without TLS.

use std::net::IpAddr;
use std::pin::pin;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{DnsName, ServerName};

use super::tls::{self, Tls};
use super::{Path, socket};
use crate::config::Http;
use crate::health::Failure;

/// The most that is read of an answer's head; of its body, nothing is waited for.
const MAX_HEAD: usize = 16 * 1024;

/// Asks, and looks at the status of the answer.
pub(super) async fn get(path: &Path, http: &Http, tls: &Tls) -> Result<(), Failure> {
    let stream = socket::connect(path, http.address, http.port).await.map_err(|error| socket::failure(&error))?;
    if !http.tls {
        return exchange(http, stream).await;
    }
    let server = match &http.name {
        Some(name) => DnsName::try_from(name.clone()).map(ServerName::DnsName),
        None => Ok(ServerName::IpAddress(IpAddr::V4(http.address).into())),
    };
    let server = server.map_err(|error| Failure::tls(&error.to_string()))?;
    let connector = TlsConnector::from(tls.config().await?);
    let stream = connector.connect(server, stream).await.map_err(|error| tls::failure(&error))?;
    exchange(http, stream).await
}

async fn exchange(http: &Http, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), Failure> {
    let failure = |error: hyper::Error| Failure::error(&in_words(&error));
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await.map_err(failure)?;
    let request = request(http)?;
    let mut answer = pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // The answer may have come with the connection's end.
        _ = connection => answer.await,
    };
    let answer = answer.map_err(failure)?;
    let status = answer.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(Failure::Status(status.as_u16())) }
}

fn request(http: &Http) -> Result<Request<Empty<Bytes>>, Failure> {
    let uri: Uri = http.path.parse().map_err(|_| Failure::error("not a path"))?;
    let host = http.name.clone().unwrap_or_else(|| http.address.to_string());
    let host = if http.port == Http::default_port(http.tls) { host } else { format!("{host}:{}", http.port) };
    Request::builder()
        .method(Method::GET)
        .uri(uri)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("mh/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| Failure::error(&error.to_string()))
}

fn in_words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_canceled() {
        "connection closed".to_owned()
    } else if error.is_parse_too_large() {
        "head of the answer too large".to_owned()
    } else if error.is_parse() {
        "no HTTP".to_owned()
    } else {
        error.to_string()
    }
}
