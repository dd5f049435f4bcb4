//! What changed between two views of the uplinks: the events that people and hooks are told of.
//!
//! Pure. Every change of state, reason or warning is one [`Change`]: also of the reason alone, of an uplink that is new, and of one that is
//! configured no more.

use super::{UplinkState, UplinkView};

/// Why an uplink that is configured no more has no state.
const REMOVED: &str = "removed from the configuration";

/// What changed about an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The uplink.
    pub uplink: String,
    /// Its interface.
    pub interface: String,
    /// Its state before; `None`: it had none.
    pub previous: Option<UplinkState>,
    /// Its state now; `None`: it is configured no more.
    pub state: Option<UplinkState>,
    /// Why it is in that state.
    pub reason: String,
}

/// The changes from one list of views to another: first those of uplinks that are there, in their order, then those of uplinks that
/// are gone.
pub fn changes(before: &[UplinkView], after: &[UplinkView]) -> Vec<Change> {
    let named = |views: &'_ [UplinkView], name: &str| views.iter().position(|view| view.name == name);
    let there = after.iter().filter_map(|view| {
        let former = named(before, &view.name).and_then(|at| before.get(at));
        let told = |view: &UplinkView| (view.state, view.told());
        let changed = former.is_none_or(|former| told(former) != told(view));
        changed.then(|| Change {
            uplink: view.name.clone(),
            interface: view.interface.clone(),
            previous: former.map(|former| former.state),
            state: Some(view.state),
            reason: view.told(),
        })
    });
    let gone = before.iter().filter(|former| named(after, &former.name).is_none()).map(|former| Change {
        uplink: former.name.clone(),
        interface: former.interface.clone(),
        previous: Some(former.state),
        state: None,
        reason: REMOVED.to_owned(),
    });
    there.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use UplinkState::{Down, Draining, Up};

    fn view(name: &str, state: UplinkState, reason: &str) -> UplinkView {
        UplinkView {
            index: 0,
            name: name.to_owned(),
            interface: format!("{name}-if"),
            state,
            reason: reason.to_owned(),
            warning: None,
            tier: Some(0),
            addresses: Vec::new(),
            gateway: None,
            configured_weight: 1,
            configured_by_capacity: false,
            weight: 1,
            by_capacity: false,
            effective_weight: 1,
            share: 1.0,
            capacity: None,
        }
    }

    fn told(
        before: &[UplinkView],
        after: &[UplinkView],
    ) -> Vec<(String, Option<UplinkState>, Option<UplinkState>, String)> {
        changes(before, after).into_iter().map(|c| (c.uplink, c.previous, c.state, c.reason)).collect()
    }

    #[test]
    fn what_stays_is_no_event() {
        let views = [view("a", Up, "link up"), view("b", Down, "no carrier")];
        assert_eq!(changes(&views, &views), []);
        // What is not told of an uplink may change as it likes.
        let mut lighter = views.clone();
        lighter[0].weight = 7;
        assert_eq!(changes(&views, &lighter), []);
    }

    #[test]
    fn state_and_reason_are_told_each() {
        let before = [view("a", Up, "link up"), view("b", Down, "no carrier"), view("c", Up, "link up")];
        let after = [view("a", Down, "no carrier"), view("b", Down, "by hand"), view("c", Up, "link up")];
        assert_eq!(
            told(&before, &after),
            [
                ("a".into(), Some(Up), Some(Down), "no carrier".into()),
                ("b".into(), Some(Down), Some(Down), "by hand".into()),
            ]
        );
        assert_eq!(changes(&before, &after)[0].interface, "a-if");
    }

    #[test]
    fn uplinks_come_and_go() {
        let (one, other) = ([view("a", Up, "link up")], [view("b", Draining, "by hand")]);
        let (both, turned) = ([one.clone(), other.clone()].concat(), [other.clone(), one.clone()].concat());
        assert_eq!(told(&[], &one), [("a".into(), None, Some(Up), "link up".into())]);
        assert_eq!(told(&both, &other), [("a".into(), Some(Up), None, "removed from the configuration".into())]);
        // The order of the list says nothing.
        assert_eq!(changes(&both, &turned), []);
    }
}
