//! Load: what uplinks carry, and how new flows are spread by what is left of their capacity.
//!
//! Sans-IO. [`Meter`] turns byte counters into smoothed rates, [`spread`] is a pure function from rates to each uplink's share of new
//! flows, and [`Published`] holds a result back while it hardly differs from the one in force. Nothing in here fails, and memory is bounded by
//! the number of uplinks.
//!
//! # Why it does not swing
//! Shares decide about load, and load about shares: a loop, sampled once a second. Let `K` be its gain, that is by how many percent the share of
//! an uplink changes when its load changes by one percent. The load follows the shares with the lifetime of flows, `L`, in between:
//! - Flows much shorter than a second: the load of one sample is what the shares of the one before say. With `alpha` the weight of a new
//!   sample, an error is multiplied by `1 - alpha (1 + K)` each time: it dies out without a swing if `alpha (1 + K) < 1`.
//! - Flows of one lifetime each: the load is the mean of the shares over the last `L`. Together with smoothing over the time `T` that swings if `K`
//!   is above 4.5, worst where `L` is about `4 T`, *for every* `T`: more smoothing only moves the swing to longer flows. (Without smoothing
//!   it would not, but that takes `L` much longer than a second.) Mixed lifetimes are milder.
//!
//! So the gain has to be bounded by the law that makes shares of rates, and it is, both within a tier and between tiers:
//! - Within a tier, weights are what is left of capacities. That alone has the gain `fill / (1 - fill)`, which is too much of a full uplink; so
//!   above the fill where it reaches [`WITHIN_TIER_GAIN`], what counts as left falls by that power of the fill, and never to nothing.
//! - A ramp in the fill that passes on nothing at the threshold and everything when full has the gain `demand / (1 - threshold)`, 5 and more: at
//!   a demand of one and a half times the capacity, shares swing by 90 points for good where flows live for half a minute.
//!   So what is passed on is reckoned from what all tiers together carry, and the ramp decides how much of the excess it is; see [`spread`].
//!   At a threshold of 80%, the gain is 1.2 where the demand equals the capacity, 2.6 where it is half as much again, and 4.2 where it is three
//!   times that. Other traffic of the later tiers looks like demand: where it is as much as the first tier's capacity, the gain can reach 7,
//!   and flows that all live for half a minute make what spills over waver: from nothing to three tenths of the flows in the simulation.
//!
//! [`TIME_CONSTANT`] then satisfies the first condition for gains up to 7, and the simulations in the tests confirm both.

mod meter;
mod published;
mod spread;
#[cfg(test)]
mod tests;

pub use meter::{Meter, Rates, TIME_CONSTANT};
pub use published::{DEAD_BAND, Published};
pub use spread::{
    LEAST_RAMP, MIX_PRIOR, MemberSpread, Situation, Spread, TierSpread, WEIGHT_SCALE, WITHIN_TIER_GAIN, spread,
};
