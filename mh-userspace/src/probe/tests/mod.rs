//! The parts of a prober, by the loopback interface: rounds, HTTP with and without TLS, DNS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod dns;
mod http;
mod rounds;

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::runtime;
use tokio::time::timeout;

use super::Path;

/// The way to servers of the test.
fn loopback() -> Path {
    Path { interface: "lo".to_owned(), source: Ipv4Addr::LOCALHOST, mark: 0 }
}

/// Runs a test to its end, at most for ten seconds.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(10), test).await.expect("the test hangs") })
}
