//! Expiry: flows that have been idle too long, and bindings that nothing uses.
//!
//! One lifetime for both: a binding goes only when its own time is over and no flow is left that uses it. The walk reads in batches and
//! removes one by one; packets go on meanwhile, and a flow that a packet revives between the look and the removal loses its entry
//! only, which the next packet restores from the binding.

use std::collections::HashMap;

use mh_common::{
    abi::Timeouts,
    address::Ipv4,
    binding::{End, Outside},
    flow::State,
    time::{self, Tick},
};

use super::{
    DatapathError,
    flows::{Filter, Flow},
    tables::Tables,
};

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows removed.
    pub flows: u64,
    /// Bindings removed.
    pub bindings: u64,
}

/// Removes what has expired as of `now`.
pub fn sweep(tables: &mut Tables, timeouts: &Timeouts, now: Tick) -> Result<Swept, DatapathError> {
    let mut unused: HashMap<End<Ipv4>, Outside<Ipv4>> =
        tables.bindings()?.into_iter().filter(|(_, outside)| time::passed(now, outside.expires)).collect();
    let mut expired = Vec::new();
    tables.each_flow(&Filter::default(), |flow| {
        if is_expired(&flow, timeouts, now) {
            expired.push(flow);
        } else {
            unused.remove(&flow.inside_end());
        }
        true
    })?;
    for flow in &expired {
        tables.remove_half(&flow.forward.other_key(flow.key.protocol))?;
        tables.remove_half(&flow.key)?;
    }
    let mut lone = Vec::new();
    tables.each_lone_reply(now, |protocol| State::Established.timeout(protocol, timeouts), |key| lone.push(key))?;
    for key in &lone {
        tables.remove_half(key)?;
    }
    let mut swept = Swept { flows: expired.len() as u64, bindings: 0 };
    for (inside, outside) in &unused {
        // A new flow may have taken it up since.
        let still = tables.by_inside4.get(inside, 0).is_ok_and(|o| o.expires == outside.expires);
        if still {
            tables.remove_binding(inside, outside)?;
            swept.bindings += 1;
        }
    }
    Ok(swept)
}

fn is_expired(flow: &Flow, timeouts: &Timeouts, now: Tick) -> bool {
    let state: State = flow.state();
    flow.idle(now) > state.timeout(flow.key.protocol, timeouts)
}
