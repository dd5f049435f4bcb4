//! What tests ask a scene, and tell it, beyond what it is built with.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Scene;

impl Scene {
    /// Writes the scene's config (weights 1:1) with `sections` after it, and has mhd read it.
    ///
    /// # Errors
    /// If mhd refuses it.
    pub fn reconfigure(&self, sections: &str) -> Result<()> {
        self.configure(&format!("{}\n{sections}\n", self.lab.config(&[1, 1])))
    }

    /// Writes a config and has mhd read it.
    ///
    /// # Errors
    /// If mhd refuses it.
    pub fn configure(&self, config: &str) -> Result<()> {
        self.mhd.write_config(config)?;
        self.mhd.ctl(&["reload"]).map(drop)
    }

    /// The counter of that name, whatever becomes of the packets that it counts.
    ///
    /// # Errors
    /// If there is none.
    pub fn count_of(&self, verdict: &str) -> Result<u64> {
        let stats = self.mhd.ctl_json(&["stats"])?;
        let found = ["verdicts", "drops"].into_iter().find_map(|section| stats[section][verdict].as_u64());
        found.with_context(|| format!("no counter {verdict} in {stats}"))
    }

    /// What `mhctl bindings --json` gives.
    ///
    /// # Errors
    /// If it isn't an array.
    pub fn bindings(&self) -> Result<Vec<Value>> {
        let document = self.mhd.ctl_json(&["bindings"])?;
        document.as_array().cloned().with_context(|| format!("no array of bindings: {document}"))
    }
}
