//! Requests by HTTP to a server that answers in every way, with and without TLS.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, SanType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::super::http::get;
use super::super::tls::Tls;
use super::{loopback, run};
use crate::config::Http;
use crate::health::Failure;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn http(tls: bool, port: u16, name: Option<&str>) -> Http {
    Http { tls, address: LOCALHOST, port, name: name.map(str::to_owned), path: "/up?a=b".to_owned() }
}

/// Reads the head of a request, and answers.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { break };
        request.push(byte);
    }
    // The client may have gone by then.
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
    String::from_utf8(request).unwrap()
}

/// Asks a server that answers with these bytes, and closes; gives the request too.
fn asked(name: Option<&str>, bytes: &[u8]) -> (Result<(), Failure>, String) {
    run(async {
        let server = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let http = http(false, server.local_addr().unwrap().port(), name);
        let (path, tls) = (loopback(), Tls::default());
        tokio::join!(get(&path, &http, &tls), async { answer(server.accept().await.unwrap().0, bytes).await })
    })
}

#[test]
fn the_request_names_its_host() {
    let (result, request) = asked(None, b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(result, Ok(()));
    let lines: Vec<&str> = request.lines().collect();
    assert_eq!(lines[0], "GET /up?a=b HTTP/1.1");
    assert!(lines.iter().any(|line| line.starts_with("host: 127.0.0.1:")), "{request}");
    assert!(lines.contains(&"connection: close"), "{request}");
    let (_, request) = asked(Some("www.example.org"), b"");
    assert!(request.contains("host: www.example.org:"), "{request}");
}

#[test]
fn the_status_decides() {
    for (status, expected) in [
        (200, Ok(())),
        (302, Ok(())),
        (399, Ok(())),
        (404, Err(Failure::Status(404))),
        (503, Err(Failure::Status(503))),
    ] {
        // With a body that never comes, and with none at all.
        for length in [1000, 0] {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            assert_eq!(asked(None, head.as_bytes()).0, expected, "{head}");
        }
    }
}

#[test]
fn what_is_no_answer() {
    let failed = |bytes: &[u8]| asked(None, bytes).0.unwrap_err().to_string();
    assert_eq!(failed(b""), "connection closed");
    assert_eq!(failed(b"HTTP/1.1 200"), "connection closed");
    assert_eq!(failed(b"SSH-2.0-OpenSSH_9.2\r\n"), "no HTTP");
    let endless = [b"HTTP/1.1 200 OK\r\nA: ".as_slice(), &vec![b'a'; 1 << 20]].concat();
    assert_eq!(failed(&endless), "head of the answer too large");
    run(async {
        let free = TcpListener::bind((LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        assert_eq!(get(&loopback(), &http(false, free, None), &Tls::default()).await, Err(Failure::Refused));
    });
}

/// A certificate for these names, and how it is changed; and a server's config with it.
fn server(names: Vec<SanType>, change: impl FnOnce(&mut CertificateParams)) -> (RootCertStore, ServerConfig) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    (roots, config)
}

/// Asks a server with this certificate for `name`, and gives the name of the handshake too.
fn asked_by_tls(
    name: Option<&str>,
    roots: RootCertStore,
    config: ServerConfig,
) -> (Result<(), Failure>, Option<String>) {
    run(async {
        let server = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let http = http(true, server.local_addr().unwrap().port(), name);
        let (path, tls) = (loopback(), Tls::with(roots));
        tokio::join!(get(&path, &http, &tls), async {
            let (stream, _) = server.accept().await.unwrap();
            let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.ok()?;
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            answer(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            name
        })
    })
}

fn dns_name(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

#[test]
fn certificates_are_held_to_the_name_or_the_address() {
    let (roots, config) = server(vec![dns_name("www.example.org")], |_| {});
    let asked = |name: Option<&str>| asked_by_tls(name, roots.clone(), config.clone());
    assert_eq!(asked(Some("www.example.org")), (Ok(()), Some("www.example.org".to_owned())));
    let other = Err(Failure::tls("certificate for another name"));
    assert_eq!(asked(Some("www.example.com")).0, other);
    assert_eq!(asked(None).0, other);
    let (roots, config) = server(vec![SanType::IpAddress(LOCALHOST.into())], |_| {});
    assert_eq!(asked_by_tls(None, roots, config), (Ok(()), None));
}

#[test]
fn certificates_that_do_not_hold() {
    let name = || vec![dns_name("a.example")];
    let failed = |roots, config| asked_by_tls(Some("a.example"), roots, config).0.unwrap_err().to_string();
    let (_, config) = server(name(), |_| {});
    let (others, _) = server(name(), |params| params.distinguished_name.push(rcgen::DnType::CommonName, "another"));
    assert_eq!(failed(others, config), "certificate of unknown issuer");
    let (roots, config) = server(name(), |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    assert_eq!(failed(roots, config), "certificate expired");
    let (roots, config) = server(name(), |params| params.not_before = rcgen::date_time_ymd(4000, 1, 1));
    assert_eq!(failed(roots, config), "certificate not valid yet");
}

#[test]
fn a_server_without_tls() {
    let result = run(async {
        let server = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let http = http(true, server.local_addr().unwrap().port(), None);
        let (path, tls) = (loopback(), Tls::with(RootCertStore::empty()));
        let serve = async {
            let (mut stream, _) = server.accept().await.unwrap();
            stream.write_all(b"220 mail.example.org ESMTP\r\n").await.unwrap();
            // Held until the client has gone.
            while stream.read_u8().await.is_ok() {}
        };
        tokio::join!(get(&path, &http, &tls), serve).0
    });
    assert_eq!(result, Err(Failure::tls("no TLS")));
}
