//! x
/// x
pub struct Client;
impl Client {
    /// x
    pub fn new(_p: &std::path::Path) -> Self { Self }
    /// x
    pub async fn detach(&self) -> Result<(), super::server::BindError> { Ok(()) }
}
