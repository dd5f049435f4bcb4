//! Which uplink has which index in the datapath.

use std::collections::{BTreeMap, BTreeSet};

use mh_common::abi::{self, MAX_UPLINKS};

use crate::config::Config;

/// Which uplink has which index in the datapath. An uplink keeps its index as long as it is configured, across reloads and restarts,
/// since its flows know it by the index alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indices {
    by_name: BTreeMap<String, u8>,
}

impl Indices {
    /// The indices that the datapath's uplink records tell of.
    pub fn adopt(uplinks: impl IntoIterator<Item = (u8, abi::Uplink)>) -> Self {
        let by_name = uplinks.into_iter().filter_map(|(index, uplink)| Some((name_of(&uplink)?, index))).collect();
        Self { by_name }
    }

    /// Gives every configured uplink an index: its own if it has one, else the lowest that is free, if possible not one that has just come
    /// free. Returns the indices of uplinks that are configured no more: their flows have to go before the index may serve another uplink.
    pub fn assign(&mut self, config: &Config) -> Vec<u8> {
        let mut gone = Vec::new();
        self.by_name.retain(|name, index| {
            let stays = config.uplink_index(name).is_some();
            if !stays {
                gone.push(*index);
            }
            stays
        });
        for uplink in &config.uplinks {
            if !self.by_name.contains_key(&uplink.name) {
                let taken: BTreeSet<u8> = self.by_name.values().copied().collect();
                let free = (0u8..).take(MAX_UPLINKS).filter(|index| !taken.contains(index));
                let free = free.min_by_key(|index| (gone.contains(index), *index));
                self.by_name.extend(free.map(|index| (uplink.name.clone(), index)));
            }
        }
        gone
    }

    /// The index of an uplink.
    pub fn get(&self, name: &str) -> Option<u8> {
        self.by_name.get(name).copied()
    }

    /// The name of the uplink with this index.
    pub fn name(&self, index: u8) -> Option<&str> {
        self.by_name.iter().find(|(_, i)| **i == index).map(|(name, _)| name.as_str())
    }
}

fn name_of(uplink: &abi::Uplink) -> Option<String> {
    let len = uplink.name.iter().position(|b| *b == 0).unwrap_or(uplink.name.len());
    (len > 0).then(|| String::from_utf8_lossy(&uplink.name[..len]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, core::records};

    #[test]
    fn an_uplink_keeps_its_index_across_configurations_and_restarts() {
        let config = |names: &[&str]| {
            let uplinks: String = names.iter().map(|n| format!("[uplink.{n}]\ninterface = \"{n}\"\n")).collect();
            config::parse(&format!("lan = [\"lan0\"]\n{uplinks}")).unwrap().config
        };
        let mut indices = Indices::default();
        indices.assign(&config(&["a", "b", "c"]));
        // The index that comes free is not given away as long as there are others.
        assert_eq!(indices.assign(&config(&["c", "d", "b"])), [0]);
        assert_eq!((indices.get("b"), indices.get("c"), indices.get("d")), (Some(1), Some(2), Some(3)));
        let record = |name: &str| abi::Uplink { name: records::padded(name), ..abi::Uplink::default() };
        let uplinks = ["", "b", "c", "d"].map(record);
        assert_eq!(Indices::adopt((0..).zip(uplinks)), indices);
    }

    #[test]
    fn an_index_is_given_away_when_there_is_no_other() {
        let config = |from: usize| {
            let uplinks: String =
                (from..from + MAX_UPLINKS).map(|n| format!("[uplink.u{n}]\ninterface = \"w{n}\"\n")).collect();
            config::parse(&format!("lan = [\"lan0\"]\n{uplinks}")).unwrap().config
        };
        let mut indices = Indices::default();
        indices.assign(&config(0));
        assert_eq!(indices.assign(&config(1)), [0]);
        assert_eq!(indices.get("u32"), Some(0));
    }
}
