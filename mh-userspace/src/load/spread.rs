//! How one policy's new flows are spread over uplinks: between tiers, and within each.

use super::Rates;
use crate::config::{Capacity, Member, Share, Weight};

/// By how many percent an uplink's weight within its tier falls at most when its load grows by one percent; see the [module](super) for why.
pub const WITHIN_TIER_GAIN: i32 = 2;

/// The fill from which the remaining capacity is understated, so that the gain stays bounded: two thirds.
const KNEE: f64 = WITHIN_TIER_GAIN as f64 / (1.0 + WITHIN_TIER_GAIN as f64);

/// The part of the summed capacities that is added to the traffic of a tier to know its mix of directions when there is little.
pub const MIX_PRIOR: f64 = 0.01;

/// A spill threshold leaves at least this much below full to decide in (5%): thresholds above 95% count as 95%. Higher ones could not
/// be told from an uplink that is just full.
pub const LEAST_RAMP: f64 = 0.05;

/// What the weights of [`Spread::weights`] add up to, about, where they are not numbers of the config.
pub const WEIGHT_SCALE: u32 = 1_000_000;

const BITS_PER_MEGABIT: f64 = 1e6;

/// How an uplink stands when new flows are spread.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Situation {
    /// It is up and not drained. Whether its weight is zero is seen here.
    pub takes: bool,
    /// Its weight by hand.
    pub by_hand: Option<u16>,
    /// Its capacity.
    pub capacity: Option<Capacity>,
    /// What it carries.
    pub rates: Rates,
}

/// How new flows of a policy are spread.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spread {
    /// The tiers in order.
    pub tiers: Vec<TierSpread>,
    /// All members of all tiers in order. Their shares add up to 1, or to 0 if none takes flows.
    pub members: Vec<MemberSpread>,
}

/// What becomes of new flows in a tier.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TierSpread {
    /// Its share of the policy's new flows, 0 to 1.
    pub share: f64,
    /// How full its uplinks that take flows are together, in the fuller direction; 1 is full. `None`: none takes any, or a capacity is not known.
    pub fill: Option<f64>,
}

/// An uplink in its tier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemberSpread {
    /// The index of the uplink.
    pub uplink: usize,
    /// The index of its tier.
    pub tier: usize,
    /// It takes new flows if its tier is used.
    pub takes: bool,
    /// Its share of the policy's new flows, 0 to 1.
    pub share: f64,
    /// Its weight if that is a number, configured or by hand; `None`: it goes by capacity.
    pub number: Option<u16>,
    /// Its weight among those of its tier, for people: [number](Self::number), or in Mbit/s how much more traffic of the tier's present mix has
    /// room, counted in the direction with more traffic, at least 1. 0: it gets no new flows.
    pub effective: u16,
}

impl Spread {
    /// Weights for a slot table: (uplink, weight), in proportion to shares. Where one tier with numbers gets all, they are the numbers.
    pub fn weights(&self) -> impl Iterator<Item = (usize, u32)> {
        let is_single = self.tiers.iter().filter(|tier| tier.share > 0.0).count() == 1;
        self.members.iter().map(move |member| {
            let weight = match member.number {
                _ if member.share <= 0.0 => 0,
                Some(number) if is_single => u32::from(number),
                _ => rounded(member.share * f64::from(WEIGHT_SCALE), WEIGHT_SCALE),
            };
            (member.uplink, weight)
        })
    }

    /// An uplink's place; `None`: it is no member.
    #[must_use]
    pub fn member(&self, uplink: usize) -> Option<&MemberSpread> {
        self.members.iter().find(|member| member.uplink == uplink)
    }
}

/// Spreads the new flows of a policy. `situations`: by the index of the uplink; one that is missing takes none.
///
/// Without `spill` the first tier with an uplink that takes flows gets all. With it, tiers pass flows on to the next one that takes any. Let
/// `fill` be how full a tier's uplinks are together, and `demand` what they and those of the tiers behind carry, as a part of the tier's
/// capacity. Of what reaches it, the tier keeps `(threshold / demand) ^ ramp`, where the ramp rises from 0 at `fill = threshold` to 1 at
/// `fill = 1`. So nothing is passed on below the threshold; a full tier keeps what would fill it to the threshold; and as long as the demand is
/// more than both, they meet in between. A tier that is full hides what it refuses, but what is passed on shows in the next one, so that
/// the demand is known after a few lifetimes of flows.
///
/// Within a tier, shares are in proportion to numbers, or to what is left of capacities: `min(left_down / down, left_up / up)`, with the
/// tier's traffic in each direction. A number by hand makes the whole tier one with numbers, where other members count with their nominal
/// capacity from the uplink in Mbit/s, at least 1; zero by hand only takes the uplink out.
#[must_use]
pub fn spread(tiers: &[Vec<Member>], spill: Option<Share>, situations: &[Situation]) -> Spread {
    let tiers: Vec<Tier> = tiers.iter().map(|members| Tier::new(members, situations)).collect();
    let mut spread = Spread::default();
    let mut reaching = 1.0;
    for (index, tier) in tiers.iter().enumerate() {
        let later = tiers.get(index + 1..).unwrap_or_default();
        let kept = match spill {
            _ if !tier.takes() => 0.0,
            Some(threshold) if later.iter().any(Tier::takes) => tier.kept(threshold, later),
            _ => 1.0,
        };
        let share = reaching * kept;
        reaching -= share;
        spread.tiers.push(TierSpread { share, fill: tier.load().map(|load| load.fill) });
        tier.divide(index, share, &mut spread.members);
    }
    spread
}

/// A tier with how its members stand.
struct Tier {
    members: Vec<(usize, Situation)>,
    /// Numbers of all members, if it goes by numbers.
    numbers: Option<Vec<u16>>,
}

/// How full a tier is.
struct Load {
    fill: f64,
    /// In bits per second, in the fuller direction.
    capacity: f64,
    /// The fuller direction.
    direction: fn(&Rates) -> f64,
}

impl Tier {
    fn new(members: &[Member], situations: &[Situation]) -> Self {
        let by_number = members.iter().any(|member| {
            let situation = situations.get(member.uplink).copied().unwrap_or_default();
            matches!(member.weight, Weight::Fixed(_))
                || situation.capacity.is_none()
                || situation.by_hand.is_some_and(|weight| weight > 0)
        });
        let mut numbers = Vec::with_capacity(members.len());
        let mut placed = Vec::with_capacity(members.len());
        for member in members {
            let mut situation = situations.get(member.uplink).copied().unwrap_or_default();
            let number = match (situation.by_hand, member.weight) {
                (Some(number), _) | (None, Weight::Fixed(number)) => number,
                (None, Weight::Capacity) => {
                    let down = situation.capacity.map_or(0.0, |capacity| capacity.down as f64);
                    effective(down / BITS_PER_MEGABIT)
                }
            };
            situation.takes &= number > 0;
            numbers.push(number);
            placed.push((member.uplink, situation));
        }
        Self { members: placed, numbers: by_number.then_some(numbers) }
    }

    fn taking(&self) -> impl Iterator<Item = &Situation> {
        self.members.iter().map(|(_, situation)| situation).filter(|situation| situation.takes)
    }

    fn takes(&self) -> bool {
        self.taking().next().is_some()
    }

    fn load(&self) -> Option<Load> {
        let (mut down, mut up, mut rates) = (0.0, 0.0, Rates::default());
        for situation in self.taking() {
            let capacity = situation.capacity?;
            down += capacity.down as f64;
            up += capacity.up as f64;
            rates.down += situation.rates.down;
            rates.up += situation.rates.up;
        }
        if down < 1.0 || up < 1.0 {
            return None;
        }
        Some(if rates.down / down >= rates.up / up {
            Load { fill: rates.down / down, capacity: down, direction: |rates| rates.down }
        } else {
            Load { fill: rates.up / up, capacity: up, direction: |rates| rates.up }
        })
    }

    /// The part of what reaches this tier that does not spill over to the `later` ones.
    fn kept(&self, threshold: Share, later: &[Self]) -> f64 {
        let Some(load) = self.load() else { return 1.0 };
        let threshold = (f64::from(threshold.basis_points()) / f64::from(Share::WHOLE)).min(1.0 - LEAST_RAMP);
        if load.fill <= threshold {
            return 1.0;
        }
        let passed_on: f64 =
            later.iter().flat_map(Self::taking).map(|situation| (load.direction)(&situation.rates)).sum();
        let demand = load.fill + passed_on / load.capacity;
        // Steep at first and flat towards the end: that keeps the gain low where the demand is high.
        let short_of_full = ((1.0 - load.fill) / (1.0 - threshold)).max(0.0);
        let ramp = 1.0 - short_of_full.powi(2);
        (threshold / demand).powf(ramp)
    }

    /// Gives out the tier's share.
    fn divide(&self, tier: usize, share: f64, members: &mut Vec<MemberSpread>) {
        let weights = self.weights();
        let total: f64 = weights.iter().sum();
        for (position, (&(uplink, situation), weight)) in self.members.iter().zip(weights).enumerate() {
            let number = self.numbers.as_ref().and_then(|numbers| numbers.get(position).copied());
            // Zero by hand is a number also where the others of the tier go by capacity.
            let number = number.or(situation.by_hand.filter(|weight| *weight == 0));
            let part = if total > 0.0 { share * weight / total } else { 0.0 };
            members.push(MemberSpread {
                uplink,
                tier,
                takes: situation.takes,
                share: part,
                number,
                effective: if part > 0.0 { number.unwrap_or_else(|| effective(weight)) } else { 0 },
            });
        }
    }

    /// The members' weights: numbers, or what is left in Mbit/s in the direction with more traffic. Zero, and only then, for those that take no
    /// flows.
    fn weights(&self) -> Vec<f64> {
        if let Some(numbers) = &self.numbers {
            let weight = |(&(_, situation), &number): (&(usize, Situation), &u16)| {
                if situation.takes { f64::from(number) } else { 0.0 }
            };
            return self.members.iter().zip(numbers).map(weight).collect();
        }
        let mut mix = Rates::default();
        for situation in self.taking() {
            let capacity = situation.capacity.unwrap_or(Capacity { down: 0, up: 0 });
            mix.down += situation.rates.down + MIX_PRIOR * (capacity.down as f64).max(1.0);
            mix.up += situation.rates.up + MIX_PRIOR * (capacity.up as f64).max(1.0);
        }
        let scale = mix.down.max(mix.up) / BITS_PER_MEGABIT;
        let weight = |&(_, situation): &(usize, Situation)| match situation.capacity {
            Some(capacity) if situation.takes => {
                let down = left(capacity.down, situation.rates.down) / mix.down;
                down.min(left(capacity.up, situation.rates.up) / mix.up) * scale
            }
            _ => 0.0,
        };
        self.members.iter().map(weight).collect()
    }
}

/// What counts as left of a capacity, above zero, in bits per second.
fn left(capacity: u64, rate: f64) -> f64 {
    let capacity = (capacity as f64).max(1.0);
    let fill = rate / capacity;
    let part = if fill <= KNEE { 1.0 - fill } else { (1.0 - KNEE) * (KNEE / fill).powi(WITHIN_TIER_GAIN) };
    part * capacity
}

fn effective(weight: f64) -> u16 {
    u16::try_from(rounded(weight, u32::from(u16::MAX))).unwrap_or(u16::MAX)
}

/// The nearest integer from 1 to `most`.
fn rounded(value: f64, most: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped first")]
    let rounded = value.round().clamp(1.0, f64::from(most)) as u32;
    rounded
}
