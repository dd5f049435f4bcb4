//! Actions of [`crate::reconcile`] on the real datapath.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{Ebpf, programs::SchedClassifier};
use mh_common::{
    abi::{self, Live, program},
    rules::RuleSet,
};

use super::{
    DatapathError, attach,
    cache::Keeper,
    load::{self, Loaded},
    policy::Prepared,
    routing,
    tables::Tables,
    upgrade,
};
use crate::{
    config,
    control::api::UplinkStats,
    core::{Hook, Indices, ManagedInterface, RuleTable},
    reconcile::Action,
};

/// The datapath in the controller's hands.
pub struct Datapath {
    ebpf: Ebpf,
    dir: PathBuf,
    tables: Tables,
    /// Interfaces that the programs run on, and whether XDP does.
    attached: BTreeMap<u32, bool>,
    /// The rules that are in force, if that is known.
    rules: Option<Arc<RuleTable>>,
    /// Rules that may be put in force.
    prepared: Option<(Arc<RuleTable>, Prepared)>,
}

impl Datapath {
    /// Loads it, adopting what is pinned. The second part is what the user should know.
    pub fn open(dir: &Path, sizes: &config::Datapath, debug: bool) -> Result<(Self, Vec<String>), DatapathError> {
        let Loaded { ebpf, dir, notes, adopted } = load::load(dir, sizes, debug)?;
        let tables = Tables::open(&dir)?;
        if adopted {
            tracing::info!("adopted the maps pinned in {}", dir.display());
        }
        Ok((Self { ebpf, dir, tables, attached: BTreeMap::new(), rules: None, prepared: None }, notes))
    }

    /// The numbers that the adopted uplinks, policies and rules have.
    pub fn indices(&self) -> Result<Indices, DatapathError> {
        let tables = &self.tables;
        Ok(Indices::adopt(tables.uplinks()?, tables.policies()?, tables.rules_in_force()?.as_ref()))
    }

    /// Health and neighbour epoch in force.
    pub fn live(&self) -> Result<Live, DatapathError> {
        self.tables.live.get(&0, 0).map_err(DatapathError::map("read the live state"))
    }

    /// The gateways (interface, address) of the adopted uplinks.
    pub fn gateways(&self) -> Result<Vec<(u32, Ipv4Addr)>, DatapathError> {
        let uplinks = self.tables.uplinks()?.into_iter().filter(|(_, uplink)| uplink.ifindex != 0);
        Ok(uplinks.map(|(_, uplink)| (uplink.ifindex, uplink.v4.gateway.into())).collect())
    }

    /// An uplink's counters.
    pub fn uplink_stats(&self, index: u8) -> Result<UplinkStats, DatapathError> {
        self.tables.uplink_stats(index)
    }

    /// Who shares the flow cache out.
    pub fn keeper(&mut self) -> Result<Keeper, DatapathError> {
        let program: &mut SchedClassifier = load::program_of(&mut self.ebpf, program::SETTLE)?;
        let descriptor =
            program.fd().and_then(|program| Ok(program.try_clone()?)).map_err(load::refused(program::SETTLE))?;
        Keeper::new(&self.dir, descriptor)
    }

    /// The BPF object, for its log.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Where everything is pinned.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The record of a managed interface.
    pub(super) fn interface(&self, ifindex: u32) -> Result<abi::Interface, DatapathError> {
        self.tables.interfaces.get(&ifindex, 0).map_err(DatapathError::map("find the interface in the datapath"))
    }

    /// Whether XDP runs on the interface; `None` if no program does.
    pub fn hook(&self, ifindex: u32) -> Option<bool> {
        self.attached.get(&ifindex).copied()
    }

    /// Does one action. Copies in the flow cache that depend on what it changes are void afterwards.
    pub fn apply(&mut self, action: &Action) -> Result<(), DatapathError> {
        let done = self.act(action);
        // Also after a failure, which may have changed a part.
        match action {
            Action::SetLive { .. }
            | Action::SetRouting(_)
            | Action::KeepGateway(..)
            | Action::LeaveGateway(..)
            | Action::SetPolicy(..)
            | Action::RemovePolicy(_)
            | Action::SetRules { .. }
            | Action::SetRuleInterface(..) => {}
            _ => self.tables.void_copies()?,
        }
        done
    }

    fn act(&mut self, action: &Action) -> Result<(), DatapathError> {
        let tables = &mut self.tables;
        match action {
            Action::SetLive { healthy, neighbour_epoch } => tables.set_live(*healthy, *neighbour_epoch),
            Action::SetSettings(wanted) => {
                let found = tables.settings.get(&0, 0).map_err(DatapathError::map("read the settings"))?;
                let settings = abi::Settings { abi_version: found.abi_version, seed: found.seed, ..*wanted };
                tables.settings.set(0, settings, 0).map_err(DatapathError::map("write the settings"))
            }
            Action::SetUplink(index, uplink) => {
                tables.uplinks.set(u32::from(*index), *uplink, 0).map_err(DatapathError::map("write an uplink"))?;
                tables.hatch_misplaced(*index)
            }
            Action::SetPool(index, pool) => {
                let written = tables.pools.set(u32::from(*index), *pool, 0);
                written.map_err(DatapathError::map("write an uplink's addresses"))?;
                tables.hatch_misplaced(*index)
            }
            Action::SetOutside(address, uplinks) => tables
                .outside4
                .insert(mh_common::address::Ipv4::from(*address), *uplinks, 0)
                .map_err(DatapathError::map("note an outside address")),
            Action::RemoveOutside(address) => tables.outside4.forget(&(*address).into()),
            Action::SetForward(port, to) => tables.set_forward(port, to),
            Action::RemoveForward(port) => tables.remove_forward(port),
            Action::SetRouting(routing) => routing::apply(routing),
            Action::KeepGateway(ifindex, gateway) => routing::keep_gateway(*ifindex, *gateway),
            Action::LeaveGateway(ifindex, gateway) => routing::leave_gateway(*ifindex, *gateway),
            Action::RemoveUplink(index) => {
                tables
                    .pools
                    .set(u32::from(*index), abi::Pool::default(), 0)
                    .map_err(DatapathError::map("write an uplink's addresses"))?;
                tables
                    .uplinks
                    .set(u32::from(*index), abi::Uplink::default(), 0)
                    .map_err(DatapathError::map("write an uplink"))?;
                tables.forget_uplink(*index)
            }
            Action::SetPolicy(index, policy) => tables.set_policy(*index, policy),
            Action::RemovePolicy(index) => tables.remove_policy(*index),
            Action::SetRules { rules, interfaces } => self.set_rules(rules, interfaces),
            Action::SetRuleInterface(ifindex, rules) => tables.set_rule_interface(*ifindex, rules.as_ref()),
            Action::AddLocal(address) => tables
                .local4
                .insert(mh_common::address::Ipv4::from(*address), 1, 0)
                .map_err(DatapathError::map("note an own address")),
            Action::RemoveLocal(address) => tables.local4.forget(&(*address).into()),
            Action::Attach(ifindex, interface) => self.attach(*ifindex, interface),
            Action::Detach(ifindex) => {
                let flags = tables.interfaces.get(ifindex, 0).map_or(0, |record| record.flags);
                attach::detach(&self.dir, *ifindex, flags)?;
                self.attached.remove(ifindex);
                self.tables.interfaces.forget(ifindex)
            }
        }
    }

    /// Removes what a former controller left that is not wanted any more.
    pub fn remove_leftovers(&mut self, desired: &crate::core::Desired) -> Result<(), DatapathError> {
        let recorded: Vec<u32> = self.tables.interfaces.keys().filter_map(Result::ok).collect();
        for ifindex in attach::pinned(&self.dir)?.into_iter().chain(recorded) {
            if !desired.interfaces.contains_key(&ifindex) {
                self.apply(&Action::Detach(ifindex))?;
            }
        }
        let local: Vec<_> = self.tables.local4.keys().filter_map(Result::ok).collect();
        for address in local.into_iter().map(Ipv4Addr::from).filter(|a| !desired.local.contains(a)) {
            self.apply(&Action::RemoveLocal(address))?;
        }
        let outside: Vec<_> = self.tables.outside4.keys().filter_map(Result::ok).collect();
        for address in outside.into_iter().map(Ipv4Addr::from).filter(|a| !desired.outside.contains_key(a)) {
            self.apply(&Action::RemoveOutside(address))?;
        }
        for (index, policy) in self.tables.policies()? {
            if policy.eligible | policy.members != 0 && !desired.policies.contains_key(&index) {
                self.apply(&Action::RemovePolicy(index))?;
            }
        }
        for port in self.tables.forwards()?.into_iter().filter(|port| !desired.forwards.contains_key(port)) {
            self.apply(&Action::RemoveForward(port))?;
        }
        Ok(())
    }

    /// All interfaces have this version's programs: so have the maps this version, and nothing of an older one is needed any more.
    pub fn finish_upgrade(&mut self) -> Result<(), DatapathError> {
        let found = self.tables.settings.get(&0, 0).map_err(DatapathError::map("read the settings"))?;
        if found.abi_version != abi::VERSION {
            let settings = abi::Settings { abi_version: abi::VERSION, ..found };
            self.tables.settings.set(0, settings, 0).map_err(DatapathError::map("write the settings"))?;
        }
        upgrade::remove(&self.dir)
    }

    /// Takes note that these rules are in the maps already, beside those in force.
    pub fn take_prepared(&mut self, rules: Arc<RuleTable>, prepared: Prepared) {
        self.prepared = Some((rules, prepared));
    }

    /// Puts rules in force: those that are need nothing, those that were prepared one write.
    fn set_rules(&mut self, rules: &Arc<RuleTable>, interfaces: &BTreeMap<u32, RuleSet>) -> Result<(), DatapathError> {
        let in_force = match &self.rules {
            Some(in_force) => in_force == rules,
            None => self.tables.has_rules(rules)?,
        };
        if in_force {
            self.rules = Some(rules.clone());
            return self.tables.set_rule_interfaces(interfaces);
        }
        let prepared = self.prepared.take().filter(|(table, _)| table == rules);
        let switched = match prepared {
            Some((_, prepared)) => self.tables.switch_rules(prepared, interfaces)?,
            None => false,
        };
        if !switched {
            let prepared = self.tables.prepare_rules(rules)?;
            self.tables.switch_rules(prepared, interfaces)?;
        }
        self.rules = Some(rules.clone());
        Ok(())
    }

    fn attach(&mut self, ifindex: u32, interface: &ManagedInterface) -> Result<(), DatapathError> {
        let mut record = interface.interface;
        // Known before the programs run; how they run is added when they do.
        const HOW: u8 = abi::INTERFACE_XDP | abi::INTERFACE_CLSACT;
        if let Ok(former) = self.tables.interfaces.get(&ifindex, 0) {
            record.flags |= former.flags & HOW;
        }
        let write = |tables: &mut Tables, record: abi::Interface| {
            tables.interfaces.insert(ifindex, record, 0).map_err(DatapathError::map("write an interface"))
        };
        write(&mut self.tables, record)?;
        let done = attach::attach(&mut self.ebpf, &self.dir, ifindex, interface)?;
        let xdp = done & abi::INTERFACE_XDP != 0;
        let flags = record.flags & !abi::INTERFACE_XDP | done;
        if record.flags != flags {
            record.flags = flags;
            write(&mut self.tables, record)?;
        }
        if interface.hook == Hook::None {
            self.attached.remove(&ifindex);
        } else if self.attached.insert(ifindex, xdp).is_none() {
            let name = &interface.name;
            tracing::info!("{} runs on {name}", if xdp { "XDP and TC" } else { "TC" });
        }
        Ok(())
    }
}
