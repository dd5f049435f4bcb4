//! Axes: where a figure is drawn, and which are named.

use super::super::as_f64;
use crate::names;

/// A linear axis from zero.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// The figure at the axis' end.
    pub most: f64,
    /// Where zero is, in pixels.
    pub zero: f64,
    /// Where `most` is.
    pub end: f64,
}

impl Linear {
    /// Where a figure is.
    #[must_use]
    pub fn at(&self, value: f64) -> f64 {
        let share = if self.most > 0.0 { value / self.most } else { 0.0 };
        self.zero + share * (self.end - self.zero)
    }
}

/// Round figures from zero to at least `most`, in steps of 1, 2 or 5 times a power of ten: four to nine of them.
#[must_use]
pub fn ticks(most: f64) -> Vec<f64> {
    if !most.is_finite() || most <= 0.0 {
        return vec![0.0, 1.0];
    }
    let rough = most / 7.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| rough <= *step * 1.0001);
    let step = step.unwrap_or(10.0 * power);
    let mut ticks = vec![0.0];
    let mut number = 0;
    // Rounding may leave the last one below by less than nothing.
    while ticks.last().is_some_and(|last| *last < most * 0.9999) {
        number += 1;
        ticks.push(as_f64(number) * step);
    }
    ticks
}

/// The numbers of flows that an axis names, of those measured: powers of two, at most `most` of them, evenly spaced.
#[must_use]
pub fn flow_ticks(counts: &[u64], most: u32) -> Vec<(u64, String)> {
    let (Some(first), Some(last)) = (counts.first(), counts.last()) else { return Vec::new() };
    let (low, high) = (first.max(&1).ilog2(), last.max(&1).ilog2());
    let step = [1, 2, 4, 5, 10].into_iter().find(|step| (high - low) / step < most).unwrap_or(20);
    // Round ones: 1, 1 Ki and 1 Mi are among them if the step divides ten.
    let powers = (low..=high).filter(|power| power % step == 0);
    powers
        .map(|power| {
            let count = 1 << power;
            let text = names::flows(count);
            (count, text.split(" flow").next().unwrap_or_default().to_owned())
        })
        .collect()
}

/// Moves labels apart that would overlap: `wanted` are their places, none closer than `distance` to the next afterwards, within bounds if
/// they fit. In the order given.
#[must_use]
pub fn spread_out(wanted: &[f64], distance: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut places = wanted.to_vec();
    let mut least = low;
    for index in &order {
        places[*index] = places[*index].max(least);
        least = places[*index] + distance;
    }
    // Back from the lower edge, so that none is pushed out.
    let mut greatest = high;
    for index in order.iter().rev() {
        places[*index] = places[*index].min(greatest);
        greatest = places[*index] - distance;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_end() {
        assert_eq!(ticks(10.7), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        assert_eq!(ticks(8.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks(0.0), [0.0, 1.0]);
        assert_eq!(ticks(f64::NAN), [0.0, 1.0]);
        for most in [0.003, 0.7, 1.0, 3.0, 41.0, 99.0, 12_345.0, 5e6] {
            let ticks = ticks(most);
            assert!((4..=9).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(ticks.last().is_some_and(|last| *last >= most * 0.9999), "{most}: {ticks:?}");
        }
    }

    #[test]
    fn flows_are_named_at_powers_of_two() {
        let counts: Vec<u64> = (0..=22).map(|power| 1 << power).collect();
        let texts = |most| flow_ticks(&counts, most).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(7), ["1", "16", "256", "4 Ki", "64 Ki", "1 Mi"]);
        assert_eq!(texts(3), ["1", "1 Ki", "1 Mi"]);
        assert_eq!(flow_ticks(&[], 5), []);
    }

    #[test]
    fn labels_are_moved_apart() {
        assert_eq!(spread_out(&[10.0, 50.0], 15.0, 0.0, 100.0), [10.0, 50.0]);
        assert_eq!(spread_out(&[12.0, 10.0, 11.0], 15.0, 0.0, 100.0), [40.0, 10.0, 25.0]);
        assert_eq!(spread_out(&[99.0, 98.0], 15.0, 0.0, 100.0), [100.0, 85.0]);
    }

    #[test]
    fn an_axis_begins_at_zero() {
        let axis = Linear { most: 10.0, zero: 100.0, end: 0.0 };
        assert_eq!((axis.at(0.0), axis.at(10.0), axis.at(5.0)), (100.0, 0.0, 50.0));
    }
}
