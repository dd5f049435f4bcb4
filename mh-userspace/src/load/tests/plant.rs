//! Simulated traffic over uplinks, with the controller in the loop: what [`Meter`], [`spread`], [`Published`] and slot tables make of it.
//!
//! Flows arrive at random times (Poisson), take an uplink by a random slot, and share it equally (processor sharing) where they want more
//! than its capacity. The generator of random numbers is seeded, the clock is a counter.

use std::{cmp::Reverse, collections::BinaryHeap, fmt::Write, time::Duration};

use mh_common::{abi::MAX_UPLINKS, slots};

use super::super::{Meter, Published, Rates, Situation, Spread, spread};
use crate::config::{Capacity, Member, Share};

/// The step of the simulation in seconds.
const STEP: f64 = 0.1;
const STEPS_PER_SECOND: usize = 10;

/// Seconds over which the noise of single flows is averaged out.
const WINDOW: usize = 15;

/// How long flows live.
#[derive(Debug, Clone, Copy)]
pub enum Lifetime {
    /// All this long, in seconds.
    Fixed(f64),
    /// Exponentially distributed, with this mean.
    Exponential(f64),
    /// Pareto distributed with shape 1.5 up to a hundred times the least, with this mean: half of the flows are short, most of the load is long.
    HeavyTailed(f64),
}

impl Lifetime {
    pub fn mean(self) -> f64 {
        match self {
            Self::Fixed(mean) | Self::Exponential(mean) | Self::HeavyTailed(mean) => mean,
        }
    }

    fn draw(self, random: &mut Random) -> f64 {
        match self {
            Self::Fixed(mean) => mean,
            Self::Exponential(mean) => -mean * random.unit().ln(),
            Self::HeavyTailed(mean) => {
                // The mean of a Pareto distribution of shape 1.5 that is cut at 100 times the least: 2.8 times the least.
                let least = mean / 2.8;
                (least * random.unit().powf(-1.0 / 1.5)).min(100.0 * least)
            }
        }
    }
}

/// What flows want.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// What all of them together want from uplinks, in Mbit/s, as long as nothing is full.
    pub down: f64,
    /// To uplinks.
    pub up: f64,
    /// How many there are at a time, in the mean.
    pub flows: f64,
    pub lifetime: Lifetime,
    /// They transfer a given amount, so that they live longer where there is less room. Otherwise they end when their time has come.
    pub elastic: bool,
}

/// How shares are made of rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// As the controller does it.
    Real,
    /// With the rates of the last second, and without dead band.
    Undamped,
    /// Smoothed, but with a ramp between two tiers whose gain is not bounded.
    PlainRamp,
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

/// An uplink with its flows. All flows of an uplink get the same part of what they want, so that one clock tells when each ends.
#[derive(Default)]
struct Line {
    up: bool,
    capacity: Option<Capacity>,
    /// Flows by when they end, in ns of `service`.
    ends: BinaryHeap<Reverse<u64>>,
    /// Seconds of service that each flow could have had since the start.
    service: f64,
    tx_bytes: f64,
    rx_bytes: f64,
    /// Of traffic that the policy does not place, in Mbit/s.
    background: f64,
    /// Counters as of the last second, for rates of one second.
    before: (f64, f64),
}

/// What was seen in one second.
#[derive(Clone)]
pub struct Second {
    /// How full each uplink was in its fuller direction.
    pub fill: Vec<f64>,
    /// The share of new flows of each uplink in force.
    pub share: Vec<f64>,
    /// Flows that were placed on each.
    pub placed: Vec<u64>,
    /// The slot table was rewritten.
    pub rewritten: bool,
}

pub struct Plant {
    pub traffic: Traffic,
    pub control: Control,
    tiers: Vec<Vec<Member>>,
    spill: Option<Share>,
    lines: Vec<Line>,
    meter: Meter,
    published: Published,
    table: slots::SlotTable,
    random: Random,
    /// Until the next flow, in seconds.
    next: f64,
    /// Flows that lost their uplink and come again.
    again: usize,
    pub history: Vec<Second>,
    clock: Duration,
}

impl Plant {
    pub fn new(
        capacities: &[Option<Capacity>],
        tiers: Vec<Vec<Member>>,
        spill: Option<Share>,
        traffic: Traffic,
    ) -> Self {
        let line = |capacity: &Option<Capacity>| Line { up: true, capacity: *capacity, ..Line::default() };
        let mut plant = Self {
            traffic,
            control: Control::Real,
            tiers,
            spill,
            lines: capacities.iter().map(line).collect(),
            meter: Meter::default(),
            published: Published::default(),
            table: slots::EMPTY,
            random: Random(1),
            next: 0.0,
            again: 0,
            history: Vec::new(),
            clock: Duration::ZERO,
        };
        plant.sample();
        plant
    }

    /// Puts `count` flows on an uplink that end after `seconds`.
    pub fn put(&mut self, uplink: usize, count: usize, seconds: f64) {
        let line = &mut self.lines[uplink];
        let end = Reverse(((line.service + seconds) * 1e9) as u64);
        line.ends.extend(std::iter::repeat_n(end, count));
    }

    /// Traffic from this uplink that is not the policy's, in Mbit/s.
    pub fn set_background(&mut self, uplink: usize, megabits: f64) {
        self.lines[uplink].background = megabits;
    }

    /// An uplink dies, and its flows come again elsewhere, or it comes back.
    pub fn set_up(&mut self, uplink: usize, up: bool) {
        let line = &mut self.lines[uplink];
        line.up = up;
        self.again += line.ends.len();
        line.ends.clear();
        self.control();
    }

    pub fn run(&mut self, seconds: usize) -> &mut Self {
        for _ in 0..seconds {
            let mut placed = vec![0; self.lines.len()];
            for _ in 0..STEPS_PER_SECOND {
                self.step(&mut placed);
            }
            self.clock += Duration::from_secs(1);
            let rewritten = self.sample();

            let fill = self.lines.iter_mut().map(|line| line.fill_of_the_second()).collect();
            let share = (0..self.lines.len()).map(|uplink| self.share(uplink)).collect();
            self.history.push(Second { fill, share, placed, rewritten });
        }
        self
    }

    fn step(&mut self, placed: &mut [u64]) {
        let interval = self.traffic.lifetime.mean() / self.traffic.flows;
        let mut arrivals = std::mem::take(&mut self.again);
        self.next -= STEP;
        while self.next < 0.0 && interval.is_finite() {
            arrivals += 1;
            self.next -= interval * self.random.unit().ln();
        }
        for _ in 0..arrivals {
            let owner = self.table[slots::slot(self.random.next())];
            // Lifetimes become whole steps, rounded at random so that the mean stays.
            let seconds = self.traffic.lifetime.draw(&mut self.random) + (self.random.unit() - 1.0) * STEP;
            if owner != slots::NO_UPLINK {
                self.put(usize::from(owner), usize::from(seconds > 0.0), seconds);
                placed[usize::from(owner)] += 1;
            }
        }
        for line in &mut self.lines {
            line.step(&self.traffic);
        }
    }

    /// What happens once a second.
    fn sample(&mut self) -> bool {
        for (index, line) in self.lines.iter().enumerate() {
            self.meter.count(&index.to_string(), self.clock, line.tx_bytes as u64, line.rx_bytes as u64);
        }
        self.control()
    }

    fn control(&mut self) -> bool {
        let situation = |(index, line): (usize, &Line)| {
            let rates = match self.control {
                Control::Undamped => {
                    Rates { up: (line.tx_bytes - line.before.0) * 8.0, down: (line.rx_bytes - line.before.1) * 8.0 }
                }
                _ => self.meter.rates(&index.to_string()),
            };
            Situation { takes: line.up, by_hand: None, capacity: line.capacity, rates }
        };
        let situations: Vec<Situation> = self.lines.iter().enumerate().map(situation).collect();
        let mut new = spread(&self.tiers, self.spill, &situations);
        if self.control == Control::PlainRamp {
            plain_ramp(&mut new, self.spill.unwrap());
        }
        if self.control == Control::Undamped {
            self.published = Published::default();
        }
        let rewritten = self.published.offer(new);
        let mut weights = [0; MAX_UPLINKS];
        for (uplink, weight) in self.published.spread().unwrap().weights() {
            weights[uplink] = weight;
        }
        slots::fill(&mut self.table, &weights);
        rewritten
    }

    fn share(&self, uplink: usize) -> f64 {
        self.published.spread().unwrap().member(uplink).map_or(0.0, |member| member.share)
    }

    /// How full an uplink was in the mean of the last `seconds`.
    pub fn fill(&self, uplink: usize, seconds: usize) -> f64 {
        self.last(seconds).iter().map(|second| second.fill[uplink]).sum::<f64>() / seconds as f64
    }

    /// By how much the share of an uplink varied within the last `seconds`, from the least to the greatest.
    pub fn swing(&self, uplink: usize, seconds: usize) -> f64 {
        let shares = || self.last(seconds).iter().map(|second| second.share[uplink]);
        shares().fold(f64::MIN, f64::max) - shares().fold(f64::MAX, f64::min)
    }

    /// The part of the flows of the last `seconds` that was placed on an uplink.
    pub fn placed(&self, uplink: usize, seconds: usize) -> f64 {
        let all: u64 = self.last(seconds).iter().flat_map(|second| &second.placed).sum();
        self.last(seconds).iter().map(|second| second.placed[uplink]).sum::<u64>() as f64 / (all as f64).max(1.0)
    }

    /// How often the slot table was rewritten within the last `seconds`.
    pub fn rewrites(&self, seconds: usize) -> usize {
        self.last(seconds).iter().filter(|second| second.rewritten).count()
    }

    /// How many seconds from second `from` on it took until `holds` held for good of how full uplinks are in the mean of [`WINDOW`].
    pub fn settled(&self, from: usize, holds: impl Fn(&[f64]) -> bool) -> usize {
        let holds_at = |windows: &[Second]| {
            let fill = |uplink| windows.iter().map(|second: &Second| second.fill[uplink]).sum::<f64>() / WINDOW as f64;
            holds(&(0..self.lines.len()).map(fill).collect::<Vec<f64>>())
        };
        let failed = self.history[from..].windows(WINDOW).rposition(|window| !holds_at(window));
        failed.map_or(0, |index| index + WINDOW)
    }

    fn last(&self, seconds: usize) -> &[Second] {
        &self.history[self.history.len() - seconds..]
    }

    /// Some of the seconds so far, for whoever looks into a failure.
    pub fn told(&self) -> String {
        let mut told = format!("{:?} {:?}\n", self.traffic, self.control);
        for (index, second) in self.history.iter().enumerate().step_by(self.history.len() / 40 + 1) {
            let _ = writeln!(told, "{index:5} s  fill {:.2?}  share {:.3?}", second.fill, second.share);
        }
        told
    }
}

impl Line {
    fn step(&mut self, traffic: &Traffic) {
        let count = self.ends.len() as f64;
        let rate = |all: f64| 1e6 * all / traffic.flows.max(1.0);
        let (down, up) = (rate(traffic.down), rate(traffic.up));
        let room = |capacity: u64, wanted: f64| (capacity as f64 / wanted.max(1.0)).min(1.0);
        let background = self.background * 1e6;
        let (part_down, part_up) = match self.capacity {
            _ if !self.up => (0.0, 0.0),
            Some(capacity) => (room(capacity.down, count * down + background), room(capacity.up, count * up)),
            None => (1.0, 1.0),
        };
        let (part_down, part_up) =
            if traffic.elastic { (part_down.min(part_up), part_down.min(part_up)) } else { (part_down, part_up) };
        self.rx_bytes += (count * down + background) * part_down * STEP / 8.0;
        self.tx_bytes += count * up * part_up * STEP / 8.0;
        self.service += STEP * if traffic.elastic { part_down } else { 1.0 };
        let now = (self.service * 1e9) as u64;
        while self.ends.peek().is_some_and(|end| end.0 <= now) {
            self.ends.pop();
        }
    }

    fn fill_of_the_second(&mut self) -> f64 {
        let (tx, rx) = (self.tx_bytes - self.before.0, self.rx_bytes - self.before.1);
        self.before = (self.tx_bytes, self.rx_bytes);
        let capacity = self.capacity.unwrap_or(Capacity { down: 1_000_000, up: 1_000_000 });
        (rx * 8.0 / capacity.down as f64).max(tx * 8.0 / capacity.up as f64)
    }
}

/// Two tiers of one uplink each: the second gets a part that rises from 0 at the threshold to 1 when the first is full.
fn plain_ramp(spread: &mut Spread, threshold: Share) {
    let threshold = f64::from(threshold.basis_points()) / f64::from(Share::WHOLE);
    let fill = spread.tiers[0].fill.unwrap();
    let passed_on = ((fill - threshold) / (1.0 - threshold)).clamp(0.0, 1.0);
    for (index, share) in [1.0 - passed_on, passed_on].into_iter().enumerate() {
        spread.tiers[index].share = share;
        spread.members[index].share = share;
    }
}
