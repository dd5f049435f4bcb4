//! From weights to slots: how a hash value becomes an uplink.
//!
//! A slot table has [`SLOTS`] slots, each naming an uplink; a flow's hash picks the slot. [`fill`] gives every uplink its share,
//! exact to one slot, and keeps as many slots as they are as can be: the number that moves is the least possible for the new
//! shares, since a slot changes its uplink only if that uplink has more slots than its new share (see docs/adr/0003-slots.md).
//! Pinned flows do not look at the table at all; moving few slots keeps hosts and mid-flow restarts where they were.

use crate::abi::MAX_UPLINKS;

/// Slots in a table; a power of two. A share is exact to 1/4096.
pub const SLOTS: usize = 4096;

/// A slot that names no uplink.
pub const NO_UPLINK: u8 = 0xff;

/// Which uplink each slot names. 4 KiB, no alignment.
pub type SlotTable = [u8; SLOTS];

/// A table of which every slot names no uplink.
pub const EMPTY: SlotTable = [NO_UPLINK; SLOTS];

/// The slot of a hash value.
#[inline(always)]
pub const fn slot(hash: u64) -> usize {
    hash as usize & (SLOTS - 1)
}

/// How many slots each uplink gets: proportional to its weight, by the largest remainder, ties to the lower index.
/// The shares add up to [`SLOTS`], or to zero if all weights are zero. A weight above zero gets at least one slot as long as
/// there are fewer than [`SLOTS`] times as many other weights.
pub fn shares(weights: &[u32; MAX_UPLINKS]) -> [u16; MAX_UPLINKS] {
    let mut shares = [0u16; MAX_UPLINKS];
    let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
    if total == 0 {
        return shares;
    }
    let mut remainders = [0u64; MAX_UPLINKS];
    let mut given = 0usize;
    for (i, &weight) in weights.iter().enumerate() {
        let scaled = u64::from(weight) * SLOTS as u64;
        shares[i] = (scaled / total) as u16;
        remainders[i] = scaled % total;
        given += usize::from(shares[i]);
    }
    while given < SLOTS {
        let mut best = 0;
        for i in 1..MAX_UPLINKS {
            if remainders[i] > remainders[best] {
                best = i;
            }
        }
        shares[best] += 1;
        remainders[best] = 0;
        given += 1;
    }
    shares
}

/// Gives each uplink its share of the table and returns how many slots changed their uplink, which is the least possible.
///
/// Slots to give up are spread over the table (every k-th of those that an uplink has too many), so that neighbouring hash
/// values don't move together. If all weights are zero, every slot names [`NO_UPLINK`].
pub fn fill(table: &mut SlotTable, weights: &[u32; MAX_UPLINKS]) -> usize {
    let target = shares(weights);
    if target.iter().all(|&t| t == 0) {
        let moved = table.iter().filter(|&&s| s != NO_UPLINK).count();
        *table = EMPTY;
        return moved;
    }
    let mut have = [0u16; MAX_UPLINKS];
    for &owner in table.iter() {
        if let Some(count) = have.get_mut(usize::from(owner)) {
            *count += 1;
        }
    }
    // Release what is over the target, spread evenly: of `have` slots the uplink keeps `target` (Bresenham).
    let mut seen = [0u32; MAX_UPLINKS];
    for slot in table.iter_mut() {
        let owner = usize::from(*slot);
        if owner >= MAX_UPLINKS {
            *slot = NO_UPLINK;
            continue;
        }
        let (have, target) = (u32::from(have[owner]), u32::from(target[owner]));
        if have > target {
            let nth = seen[owner];
            seen[owner] += 1;
            if (nth + 1) * target / have == nth * target / have {
                *slot = NO_UPLINK;
            }
        }
    }
    let mut missing = [0u16; MAX_UPLINKS];
    for i in 0..MAX_UPLINKS {
        missing[i] = target[i].saturating_sub(have[i]);
    }
    // Hand the free slots out in turn, each time to the uplink that lacks the largest part of its share.
    let mut moved = 0;
    for slot in table.iter_mut().filter(|s| **s == NO_UPLINK) {
        let mut best = 0;
        for i in 1..MAX_UPLINKS {
            // missing[i] / target[i] > missing[best] / target[best], without division
            if u32::from(missing[i]) * u32::from(target[best]) > u32::from(missing[best]) * u32::from(target[i])
                || (missing[best] == 0 && missing[i] > 0)
            {
                best = i;
            }
        }
        if missing[best] == 0 {
            break;
        }
        missing[best] -= 1;
        *slot = best as u8;
        moved += 1;
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weights(list: &[u32]) -> [u32; MAX_UPLINKS] {
        let mut all = [0; MAX_UPLINKS];
        all[..list.len()].copy_from_slice(list);
        all
    }

    fn count(table: &SlotTable) -> [u16; MAX_UPLINKS] {
        let mut counts = [0; MAX_UPLINKS];
        table.iter().filter(|&&s| s != NO_UPLINK).for_each(|&s| counts[usize::from(s)] += 1);
        counts
    }

    #[test]
    fn two_to_one() {
        let mut table = EMPTY;
        assert_eq!(fill(&mut table, &weights(&[2, 1])), SLOTS);
        assert_eq!(count(&table)[..2], [2731, 1365]);
    }

    #[test]
    fn a_dead_uplink_moves_only_its_own_slots() {
        let mut table = EMPTY;
        fill(&mut table, &weights(&[2, 1, 1]));
        let before = table;
        assert_eq!(fill(&mut table, &weights(&[2, 0, 1])), 1024);
        assert!(before.iter().zip(&table).all(|(&b, &a)| b == a || b == 1));
    }

    #[test]
    fn no_weight_at_all_empties_the_table() {
        let mut table = EMPTY;
        fill(&mut table, &weights(&[1]));
        assert_eq!(fill(&mut table, &weights(&[0])), SLOTS);
        assert_eq!(table, EMPTY);
    }

    fn any_weights() -> impl Strategy<Value = [u32; MAX_UPLINKS]> {
        prop::collection::vec(prop_oneof![Just(0u32), 1u32..10, 1u32..=65535], 1..=MAX_UPLINKS)
            .prop_map(|w| weights(&w))
    }

    proptest! {
        #[test]
        fn shares_are_exact_to_one_slot(weights in any_weights()) {
            let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            let shares = shares(&weights);
            for (share, weight) in shares.iter().zip(weights) {
                let ideal = if total == 0.0 { 0.0 } else { f64::from(weight) * SLOTS as f64 / total };
                prop_assert!((f64::from(*share) - ideal).abs() < 1.0);
                prop_assert!(weight > 0 || *share == 0);
            }
        }

        #[test]
        fn a_change_moves_the_least_possible(steps in prop::collection::vec(any_weights(), 1..5)) {
            let mut table = EMPTY;
            for weights in steps {
                let before = table;
                let had = count(&before);
                let moved = fill(&mut table, &weights);
                let target = shares(&weights);
                if target.iter().any(|&t| t > 0) {
                    prop_assert_eq!(count(&table), target);
                    let optimum: usize = had.iter().zip(target).map(|(&h, t)| usize::from(t.saturating_sub(h))).sum();
                    prop_assert_eq!(moved, optimum);
                    prop_assert_eq!(before.iter().zip(&table).filter(|(b, a)| b != a).count(), optimum);
                }
            }
        }
    }
}
