//! Health of uplinks.

/// Placeholder until the probes' branch is merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// It can be used.
    pub up: bool,
    /// Why, or why not.
    pub reason: String,
    /// What does not keep it from being used, but people should know.
    pub warning: Option<String>,
    /// Round-trip time.
    pub rtt: Option<std::time::Duration>,
    /// Loss, from 0 to 1.
    pub loss: Option<f64>,
}
