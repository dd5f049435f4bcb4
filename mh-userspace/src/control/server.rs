//! x
use std::{future::Future, path::Path, sync::Arc};
#[derive(Debug, thiserror::Error)]
#[error("x")]
/// x
pub struct BindError;
/// x
pub fn bind(_p: &Path) -> Result<tokio::net::UnixListener, BindError> { Err(BindError) }
/// x
pub async fn serve<B: super::api::Backend>(_l: tokio::net::UnixListener, _b: Arc<B>, s: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> { s.await; Ok(()) }
