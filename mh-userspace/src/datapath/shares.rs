//! How the flow cache is shared out among the CPUs.
//!
//! Every CPU has as much of it as the flows that it carries need and no more: the fewer pages a part has, the less often its places are
//! missing in the processor's address cache, which costs more than the line itself. So parts begin small, grow while halves find no room
//! there, and shrink when most of what they hold is over. When all of the cache is in use, parts that ask for more get it in proportion.
//!
//! A pure function of what was observed; nothing here knows of maps or threads.

use mh_common::cache::{COPIES_PER_SET, Copied, Extent};

/// The fewest sets of a part: 8192 copies.
pub const LEAST_SETS: u32 = 4096;
/// Of so many packets one may find no room without need for more.
const TOLERATED: u64 = 64;
/// By what a part grows, if more than so many percent of packets find no room: to twice what would do.
const GROWTH: [(u64, u32); 3] = [(75, 8), (33, 4), (0, 2)];
/// A part shrinks if less than one in so many of its places is in use.
const SPARSE: u64 = 16;
/// Parts are made of whole pages of copies, which go with so many sets.
const PAGE: u32 = 32;
const _: () = assert!((PAGE * COPIES_PER_SET) as usize * size_of::<Copied>() == 4096);
/// Changes of less than one in so many sets are not worth making all copies anew.
const WORTH: u32 = 4;

/// What was seen of one CPU's part since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Its sets; zero: it has no part yet.
    pub sets: u32,
    /// Packets that it sent on.
    pub packets: u64,
    /// Those of them of which the half found no room.
    pub refused: u64,
    /// Copies that are good, if they were counted.
    pub good: Option<u64>,
}

impl Load {
    /// How many sets it should have.
    fn wanted(&self) -> u32 {
        if self.refused * TOLERATED > self.packets {
            let growth = GROWTH.iter().find(|(percent, _)| self.refused * 100 > self.packets * percent);
            return self.sets.saturating_mul(growth.map_or(1, |(_, factor)| *factor)).max(LEAST_SETS);
        }
        let copies = u64::from(COPIES_PER_SET);
        match self.good {
            Some(good) if good * SPARSE < u64::from(self.sets) * copies => {
                // Twice the room that they take.
                u32::try_from(good * 2 / copies)
                    .unwrap_or(u32::MAX)
                    .next_power_of_two()
                    .clamp(LEAST_SETS, self.sets.max(LEAST_SETS))
            }
            _ => self.sets.max(LEAST_SETS),
        }
    }
}

/// How many sets each CPU gets of `total`. As it is, if nothing is worth changing.
pub fn share_out(total: u32, loads: &[Load]) -> Vec<u32> {
    let found: Vec<u32> = loads.iter().map(|load| load.sets).collect();
    let mut shares: Vec<u32> = loads.iter().map(|load| load.wanted()).collect();
    let sum: u64 = shares.iter().copied().map(u64::from).sum();
    if sum > u64::from(total) {
        // What all of them have for sure, and the rest in proportion to what they want beyond it.
        let least = LEAST_SETS.min(total / u32::try_from(loads.len()).unwrap_or(u32::MAX).max(1));
        let given = u64::from(least) * loads.len() as u64;
        let (rest, wanted) = (u64::from(total).saturating_sub(given), sum.saturating_sub(given).max(1));
        for share in &mut shares {
            let beyond = u64::from(share.saturating_sub(least));
            *share = least + u32::try_from(rest * beyond / wanted).unwrap_or(0);
        }
    }
    shares.iter_mut().for_each(|share| *share -= *share % PAGE);
    let differs = |(share, found): (&u32, &u32)| share.abs_diff(*found) > found / WORTH;
    if shares.iter().zip(&found).any(differs) { shares } else { found }
}

/// How many sets each CPU gets if that can't be changed later: the same for all that have none, and all have none at first.
pub fn for_good(total: u32, loads: &[Load]) -> Vec<u32> {
    if loads.iter().any(|load| load.sets != 0) {
        return loads.iter().map(|load| load.sets).collect();
    }
    let share = total / u32::try_from(loads.len()).unwrap_or(u32::MAX).max(1);
    vec![share - share % PAGE; loads.len()]
}

/// What is between these extents, of `total` sets.
pub fn gaps(total: u32, taken: &[Extent]) -> Vec<Extent> {
    let mut taken: Vec<Extent> = taken.iter().copied().filter(|extent| extent.sets != 0).collect();
    taken.sort_unstable_by_key(|extent| extent.first);
    let begins = std::iter::once(0).chain(taken.iter().map(|extent| extent.end()));
    let ends = taken.iter().map(|extent| extent.first).chain(std::iter::once(total));
    let gap = |(first, end): (u32, u32)| Extent { first, sets: end.saturating_sub(first) };
    begins.zip(ends).map(gap).filter(|gap| gap.sets != 0).collect()
}

/// Where parts of these sizes are to be, of `total` sets, and whether each that moves does so to where none has been: then all CPUs may go on
/// meanwhile. Parts that keep their size stay where they are, if that is possible.
pub fn lay_out(total: u32, found: &[Extent], sizes: &[u32]) -> (Vec<Extent>, bool) {
    let mut taken = found.to_vec();
    let mut place = |sets: u32| {
        let gap = gaps(total, &taken).into_iter().find(|gap| gap.sets >= sets)?;
        taken.push(Extent { sets, ..gap });
        taken.last().copied()
    };
    let apart = found.iter().zip(sizes).map(|(extent, sets)| match *sets {
        0 => Some(Extent::default()),
        sets if sets == extent.sets => Some(*extent),
        sets => place(sets),
    });
    if let Some(extents) = apart.collect() {
        return (extents, true);
    }
    let mut first = 0;
    let behind_each_other = sizes.iter().map(|sets| {
        let extent = Extent::within(u32::MAX, first, *sets);
        first += sets;
        extent
    });
    (behind_each_other.collect(), false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(sets: u32, packets: u64, refused: u64, good: Option<u64>) -> Load {
        Load { sets, packets, refused, good }
    }

    #[test]
    fn parts_begin_small() {
        assert_eq!(share_out(1 << 20, &[Load::default(); 2]), [LEAST_SETS; 2]);
        assert_eq!(share_out(100, &[Load::default(); 2]), [32; 2], "even if the cache is smaller than that");
    }

    #[test]
    fn a_part_without_room_grows_and_the_others_stay() {
        let idle = load(LEAST_SETS, 0, 0, None);
        let busy = |refused| load(LEAST_SETS, 1_000_000, refused, None);
        assert_eq!(share_out(1 << 20, &[busy(100_000), idle]), [2 * LEAST_SETS, LEAST_SETS]);
        assert_eq!(share_out(1 << 20, &[busy(400_000), idle]), [4 * LEAST_SETS, LEAST_SETS]);
        assert_eq!(share_out(1 << 20, &[busy(900_000), idle]), [8 * LEAST_SETS, LEAST_SETS]);
        assert_eq!(share_out(1 << 20, &[busy(1_000), idle]), [LEAST_SETS; 2]);
    }

    #[test]
    fn a_part_that_alone_is_busy_gets_nearly_all() {
        let mut sets = LEAST_SETS;
        for _ in 0..10 {
            sets = share_out(1 << 20, &[load(sets, 1_000, 900, None), load(LEAST_SETS, 0, 0, Some(0))])[0];
        }
        assert_eq!(sets, (1 << 20) - LEAST_SETS);
    }

    #[test]
    fn a_part_shrinks_to_twice_what_it_holds() {
        let part = |good| load(1 << 18, 1_000_000, 0, Some(good));
        assert_eq!(share_out(1 << 20, &[part(1 << 18)]), [1 << 18]);
        assert_eq!(share_out(1 << 20, &[part(1 << 14)]), [1 << 14]);
        assert_eq!(share_out(1 << 20, &[part(0)]), [LEAST_SETS]);
    }

    #[test]
    fn a_part_moves_to_where_none_has_been() {
        let extent = |first, sets| Extent { first, sets };
        let found = [extent(0, 100), extent(100, 100), Extent::default()];
        assert_eq!(lay_out(1000, &found, &[100, 100, 0]), (found.to_vec(), true));
        let grown = vec![found[0], extent(200, 400), Extent::default()];
        assert_eq!(lay_out(1000, &found, &[100, 400, 0]), (grown.clone(), true));
        assert_eq!(lay_out(1000, &grown, &[50, 400, 100]), (vec![extent(100, 50), grown[1], extent(600, 100)], true));
        // Too large to be beside what is there.
        let full = vec![extent(0, 100), extent(100, 900), Extent::default()];
        assert_eq!(lay_out(1000, &grown, &[100, 900, 0]), (full, false));
    }

    #[test]
    fn parts_that_can_not_move_are_equal_from_the_beginning() {
        assert_eq!(for_good(1000, &[Load::default(); 3]), [320; 3]);
        let given = [load(320, 1000, 900, None), load(0, 0, 0, None)];
        assert_eq!(for_good(1000, &given), [320, 0], "a CPU that came later has none");
    }

    #[test]
    fn gaps_are_what_nobody_has() {
        let extent = |first, sets| Extent { first, sets };
        assert_eq!(gaps(100, &[extent(60, 10), Extent::default(), extent(0, 20)]), [extent(20, 40), extent(70, 30)]);
        assert_eq!(gaps(100, &[extent(0, 100)]), []);
        assert_eq!(Extent::within(100, 90, 11), Extent::default(), "of a larger cache");
    }

    proptest! {
        #[test]
        fn parts_lie_beside_each_other(
            found in prop::collection::vec(0u32..1 << 10, 1..16),
            sizes in prop::collection::vec(0u32..1 << 10, 1..16),
        ) {
            let (none, total) = (vec![Extent::default(); found.len()], found.iter().sum::<u32>() + (1 << 12));
            let (found, _) = lay_out(total, &none, &found);
            prop_assume!(sizes.iter().sum::<u32>() <= total);
            let sizes: Vec<u32> = sizes.into_iter().chain(std::iter::repeat(0)).take(found.len()).collect();
            let (extents, apart) = lay_out(total, &found, &sizes);
            prop_assert_eq!(extents.iter().map(|extent| extent.sets).collect::<Vec<_>>(), sizes);
            let overlap = |a: &Extent, b: &Extent| a.sets != 0 && b.sets != 0 && a.first < b.end() && b.first < a.end();
            for (n, extent) in extents.iter().enumerate() {
                prop_assert!(extent.end() <= total);
                prop_assert!(!extents[..n].iter().any(|other| overlap(extent, other)));
                let moved = *extent != found[n];
                prop_assert!(!(apart && moved && found.iter().any(|other| overlap(extent, other))));
            }
        }

        #[test]
        fn there_is_never_more_than_there_is(
            total in 1u32..1 << 24,
            loads in prop::collection::vec((0u32..1 << 24, 0u64..1 << 30, 0u64..1 << 30, prop::option::of(0u64..1 << 24)), 1..64),
        ) {
            let loads: Vec<Load> = loads.iter().map(|l| load(l.0, l.1, l.2, l.3)).collect();
            let shares = share_out(total, &loads);
            let unchanged = shares.iter().zip(&loads).all(|(share, load)| *share == load.sets);
            prop_assert!(unchanged || shares.iter().copied().map(u64::from).sum::<u64>() <= u64::from(total));
        }
    }
}
