//! The dead band: what is in force changes only if it matters, so that slot tables are not rewritten every second.

use super::Spread;

/// A share has to move by more than this (2 points of 100) to be published.
pub const DEAD_BAND: f64 = 0.02;

/// The spread of a policy's new flows that is in force.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Published {
    spread: Option<Spread>,
}

impl Published {
    /// Puts `spread` in force, and returns true, if one of these holds: it is the first; other uplinks take flows; a number was changed; an
    /// uplink's share, or a tier's, moved by more than [`DEAD_BAND`]; a tier is not used any more. So a tier begins to be used when it is to
    /// get more than [`DEAD_BAND`] and is used until it is to get nothing.
    ///
    /// What is only shown is brought up to date in any case: how full tiers are, and how much has room.
    pub fn offer(&mut self, spread: Spread) -> bool {
        match &mut self.spread {
            Some(published) if !differs(published, &spread) => {
                show(published, &spread);
                false
            }
            published => {
                *published = Some(spread);
                true
            }
        }
    }

    /// What is in force.
    #[must_use]
    pub const fn spread(&self) -> Option<&Spread> {
        self.spread.as_ref()
    }
}

fn differs(old: &Spread, new: &Spread) -> bool {
    if old.members.len() != new.members.len() || old.tiers.len() != new.tiers.len() {
        return true;
    }
    let moved = |old: f64, new: f64| (old - new).abs() > DEAD_BAND;
    old.members.iter().zip(&new.members).any(|(old, new)| {
        (old.uplink, old.tier, old.takes, old.number) != (new.uplink, new.tier, new.takes, new.number)
            || moved(old.share, new.share)
    }) || old
        .tiers
        .iter()
        .zip(&new.tiers)
        .any(|(old, new)| moved(old.share, new.share) || (old.share > 0.0 && new.share == 0.0))
}

/// Takes over what decides nothing. `new`: of the same tiers and members.
fn show(published: &mut Spread, new: &Spread) {
    for (published, new) in published.tiers.iter_mut().zip(&new.tiers) {
        published.fill = new.fill;
    }
    let used = published.members.iter_mut().zip(&new.members).filter(|(published, _)| published.share > 0.0);
    for (published, new) in used {
        published.effective = new.effective;
    }
}
