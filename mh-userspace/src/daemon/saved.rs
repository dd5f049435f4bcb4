//! What was ordered by hand and is to outlive mhd: `mhctl weights … --save`.
//!
//! One small JSON file per configuration file, replaced as a whole. A file that can't be read is reported and left alone: forwarding must
//! not depend on it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The file's content.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    weights: BTreeMap<String, u16>,
}

/// The file for a configuration: its path with dashes, so that several instances don't share one.
fn file(dir: &Path, config: &Path) -> PathBuf {
    let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    let name = absolute.to_string_lossy().trim_start_matches('/').replace('/', "-");
    dir.join(format!("{name}.json"))
}

/// The saved weights; none if there is no such file.
pub fn load(dir: &Path, config: &Path) -> io::Result<BTreeMap<String, u16>> {
    match fs::read(file(dir, config)) {
        Ok(bytes) => Ok(serde_json::from_slice::<Saved>(&bytes)?.weights),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

/// Saves the weights, in one step.
pub fn store(dir: &Path, config: &Path, weights: &BTreeMap<String, u16>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let path = file(dir, config);
    let new = path.with_extension("json.new");
    fs::write(&new, serde_json::to_vec_pretty(&Saved { weights: weights.clone() })?)?;
    fs::rename(&new, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_for_the_same_configuration_only() {
        let dir = tempfile::tempdir().unwrap();
        let weights: BTreeMap<_, _> = [("isp1".to_owned(), 7)].into();
        store(dir.path(), Path::new("/etc/mh/mh.toml"), &weights).unwrap();
        assert_eq!(load(dir.path(), Path::new("/etc/mh/mh.toml")).unwrap(), weights);
        assert!(load(dir.path(), Path::new("/etc/mh/other.toml")).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(file(dir.path(), Path::new("/a")), "{").unwrap();
        assert!(load(dir.path(), Path::new("/a")).is_err());
    }
}
