//! What was ordered by hand and is to outlive mhd: `mhctl weights … --save`, and the same of drains and health.
//!
//! One small JSON file per configuration file, replaced as a whole. Each kind of order is saved by itself: what is in force of it then.
//! Orders for uplinks that are not configured stay in the file, for the day that they are again. A file that can't be read is reported
//! and left alone: forwarding must not depend on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{config::Config, control::api::HealthOverride, core::Overrides};

/// The file's content. What is missing was not saved: older versions knew weights alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    /// Weights by uplink.
    pub weights: BTreeMap<String, u16>,
    /// Uplinks that are drained.
    pub drained: BTreeSet<String>,
    /// Uplinks whose health is set.
    pub health: BTreeMap<String, HealthOverride>,
}

impl Saved {
    /// The orders that they stand for.
    pub fn overrides(&self) -> Overrides {
        Overrides { weights: self.weights.clone(), drained: self.drained.clone(), health: self.health.clone() }
    }

    /// Names that are no uplinks of the configuration.
    pub fn strangers(&self, config: &Config) -> BTreeSet<String> {
        let names = self.weights.keys().chain(&self.drained).chain(self.health.keys());
        names.filter(|name| config.uplink_index(name).is_none()).cloned().collect()
    }
}

/// The file for a configuration: its path with dashes, so that several instances don't share one.
fn file(dir: &Path, config: &Path) -> PathBuf {
    let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    let name = absolute.to_string_lossy().trim_start_matches('/').replace('/', "-");
    dir.join(format!("{name}.json"))
}

/// What was saved; nothing if there is no such file.
pub fn load(dir: &Path, config: &Path) -> io::Result<Saved> {
    match fs::read(file(dir, config)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Saved::default()),
        Err(error) => Err(error),
    }
}

/// Saves, in one step.
pub fn store(dir: &Path, config: &Path, saved: &Saved) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let path = file(dir, config);
    let new = path.with_extension("json.new");
    let mut content = fs::File::create(&new)?;
    content.write_all(&serde_json::to_vec_pretty(saved)?)?;
    // Before the name is: a machine that loses power has the old file or the new one.
    content.sync_all()?;
    fs::rename(&new, &path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn saved() -> Saved {
        Saved {
            weights: [("isp1".to_owned(), 7)].into(),
            drained: ["isp2".to_owned()].into(),
            health: [("gone".to_owned(), HealthOverride::Down)].into(),
        }
    }

    #[test]
    fn what_is_stored_is_loaded_for_the_same_configuration_only() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), Path::new("/etc/mh/mh.toml"), &saved()).unwrap();
        assert_eq!(load(dir.path(), Path::new("/etc/mh/mh.toml")).unwrap(), saved());
        assert_eq!(load(dir.path(), Path::new("/etc/mh/other.toml")).unwrap(), Saved::default());
    }

    #[test]
    fn a_file_of_weights_alone_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(file(dir.path(), Path::new("/a")), r#"{"weights": {"isp1": 7}}"#).unwrap();
        assert_eq!(load(dir.path(), Path::new("/a")).unwrap(), Saved { weights: saved().weights, ..Saved::default() });
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["{", r#"{"weights": {"isp1": -1}}"#, r#"{"health": {"isp1": "ill"}}"#] {
            fs::write(file(dir.path(), Path::new("/a")), content).unwrap();
            assert!(load(dir.path(), Path::new("/a")).is_err(), "{content}");
        }
    }

    #[test]
    fn names_that_are_no_uplinks_are_known() {
        let text = "lan = [\"lan0\"]\n[uplink.isp1]\ninterface = \"wan1\"\n[uplink.isp2]\ninterface = \"wan2\"\n";
        let config = config::parse(text).unwrap().config;
        assert_eq!(saved().strangers(&config), ["gone".to_owned()].into());
        assert_eq!(saved().overrides().health["gone"], HealthOverride::Down);
    }
}
