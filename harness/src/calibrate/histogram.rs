//! Counts of magnitudes in bins that grow with them: every octave has the same number of bins.
//!
//! A bin is what the leading bits of a float say: its exponent and the first bits of its fraction. So a value finds its
//! bin by a shift, octaves are cut into equal parts (1, 1¼, 1½, 1¾ times a power of two for two bits), and counts are
//! exact integers.

use models::per_processor;

/// Magnitudes below 2^LOWEST share one bin.
pub const LOWEST: i32 = -24;

/// Magnitudes from 2^HIGHEST on share one bin.
pub const HIGHEST: i32 = 24;

const EXPONENT_BIAS: i32 = 127;
const FRACTION: u32 = 23;

/// Bits of the fraction by which [`Tally`] sorts: 16 bins per octave.
pub const TALLY_BITS: u32 = 4;
const TALLY_KEYS: usize = 1 << (8 + TALLY_BITS);

/// A log-binned histogram of magnitudes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    fraction_bits: u32,
    zero: u64,
    under: u64,
    over: u64,
    counts: Vec<u64>,
}

/// One bin: `lower ≤ |x| < upper`, but the bin of zero, whose edges are both 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// Lower edge.
    pub lower: f64,
    /// Upper edge; infinite for the last bin.
    pub upper: f64,
    /// Values in it.
    pub count: u64,
}

impl Histogram {
    /// An empty histogram with `2^fraction_bits` bins per octave.
    ///
    /// # Panics
    /// If `fraction_bits` is more than 8.
    pub fn new(fraction_bits: u32) -> Self {
        assert!(fraction_bits <= 8, "more than 256 bins per octave");
        let bins = ((HIGHEST - LOWEST) as usize) << fraction_bits;
        Self { fraction_bits, zero: 0, under: 0, over: 0, counts: vec![0; bins] }
    }

    /// Bins per octave.
    pub fn bins_per_octave(&self) -> usize {
        1 << self.fraction_bits
    }

    /// Counts one value. Infinities and NaN fall into the last bin.
    pub fn add(&mut self, value: f32) {
        self.add_key(
            ((value.to_bits() << 1) >> (FRACTION + 1 - self.fraction_bits)) as usize,
            1,
            value == 0.0,
        );
    }

    fn add_key(&mut self, key: usize, count: u64, zero: bool) {
        let first = ((EXPONENT_BIAS + LOWEST) as usize) << self.fraction_bits;
        if zero {
            self.zero += count;
        } else if key < first {
            self.under += count;
        } else {
            *self.counts.get_mut(key - first).unwrap_or(&mut self.over) += count;
        }
    }

    /// Counts what a tally counted.
    ///
    /// # Panics
    /// If this histogram does not have the tally's 16 bins per octave.
    pub fn add_tally(&mut self, tally: &Tally) {
        assert_eq!(self.fraction_bits, TALLY_BITS, "a tally has {} bins per octave", 1 << TALLY_BITS);
        let (even, odd) = tally.counts.split_at(TALLY_KEYS);
        for (key, (&a, &b)) in even.iter().zip(odd).enumerate() {
            if a + b > 0 {
                self.add_key(key, u64::from(a + b), key == 0);
            }
        }
    }

    /// Adds another histogram's counts.
    ///
    /// # Panics
    /// If the two have different bins.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.fraction_bits, other.fraction_bits, "histograms with different bins");
        self.zero += other.zero;
        self.under += other.under;
        self.over += other.over;
        for (count, &more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The same counts in wider bins.
    ///
    /// # Panics
    /// If `fraction_bits` is more than this histogram has.
    pub fn coarsened(&self, fraction_bits: u32) -> Self {
        let together = 1usize << self.fraction_bits.checked_sub(fraction_bits).expect("bins only get wider");
        let counts = self.counts.chunks(together).map(|bins| bins.iter().sum()).collect();
        Self { fraction_bits, counts, ..*self }
    }

    /// All values counted.
    pub fn total(&self) -> u64 {
        self.zero + self.under + self.over + self.counts.iter().sum::<u64>()
    }

    /// The bins that hold something, from small to large.
    pub fn bins(&self) -> Vec<Bin> {
        let edge = |index: usize| {
            let (octave, part) = (index >> self.fraction_bits, index % self.bins_per_octave());
            2f64.powi(LOWEST + octave as i32) * (1.0 + part as f64 / self.bins_per_octave() as f64)
        };
        let inner = self.counts.iter().enumerate();
        let inner = inner.map(|(i, &count)| Bin { lower: edge(i), upper: edge(i + 1), count });
        [
            Bin { lower: 0.0, upper: 0.0, count: self.zero },
            Bin { lower: 0.0, upper: edge(0), count: self.under },
        ]
        .into_iter()
        .chain(inner)
        .chain([Bin { lower: edge(self.counts.len()), upper: f64::INFINITY, count: self.over }])
        .filter(|bin| bin.count > 0)
        .collect()
    }

    /// The value of a rank (0 is the smallest), its bin's values taken as evenly spread: off by less than the width of
    /// the bin. A value in the last bin counts as that bin's lower edge. `None` where there are not as many values.
    pub fn ranked(&self, rank: u64) -> Option<f64> {
        let mut before = 0;
        for bin in self.bins() {
            if rank < before + bin.count {
                if bin.upper.is_infinite() {
                    return Some(bin.lower);
                }
                let share = ((rank - before) as f64 + 0.5) / bin.count as f64;
                return Some(bin.lower + share * (bin.upper - bin.lower));
            }
            before += bin.count;
        }
        None
    }
}

/// Counts of one block of values by their leading bits, before they go into a [`Histogram`].
///
/// Two tables, for values at even and odd places: neighbours often fall into one bin, and a count that waits for the one
/// before it is slow. Magnitudes below 2^−130 count as zero here.
#[derive(Clone, Debug)]
pub struct Tally {
    counts: Vec<u32>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { counts: vec![0; 2 * TALLY_KEYS] }
    }
}

impl Tally {
    /// Counts values.
    pub fn add(&mut self, values: &[f32]) {
        let (even, odd) = self.counts.split_at_mut(TALLY_KEYS);
        let even = even.try_into().expect("the first half of the tables");
        let odd = odd.try_into().expect("the second half of the tables");
        tally(values, even, odd);
    }
}

per_processor! {
    fn tally(values: &[f32], even: &mut [u32; TALLY_KEYS], odd: &mut [u32; TALLY_KEYS]) {
        let key = |x: f32| ((x.to_bits() << 1) >> (FRACTION + 1 - TALLY_BITS)) as usize;
        let (pairs, rest) = values.as_chunks::<2>();
        for pair in pairs {
            even[key(pair[0])] += 1;
            odd[key(pair[1])] += 1;
        }
        for &x in rest {
            even[key(x)] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_fall_between_the_edges_of_their_bins() {
        let mut histogram = Histogram::new(2);
        for value in [0.0, -0.0, 1.0, -1.2, 1.25, 1.75, 3.0, 1e-9, 1e9] {
            histogram.add(value);
        }
        let found: Vec<_> = histogram.bins().iter().map(|b| (b.lower, b.upper, b.count)).collect();
        assert_eq!(
            found,
            [
                (0.0, 0.0, 2),
                (0.0, 2f64.powi(-24), 1),
                (1.0, 1.25, 2),
                (1.25, 1.5, 1),
                (1.75, 2.0, 1),
                (3.0, 3.5, 1),
                (2f64.powi(24), f64::INFINITY, 1),
            ]
        );
        assert_eq!(histogram.total(), 9);
    }

    #[test]
    fn ranks_of_a_ramp_are_the_ramp() {
        let mut histogram = Histogram::new(6);
        let values: Vec<f32> = (1..=4001).map(|i| i as f32 / 16.0).collect();
        values.iter().for_each(|&v| histogram.add(v));
        for rank in [0usize, 1000, 2000, 4000] {
            let (found, value) = (histogram.ranked(rank as u64).unwrap(), f64::from(values[rank]));
            assert!((found / value - 1.0).abs() < 1.0 / 64.0, "rank {rank}: {found}, not {value}");
        }
        assert_eq!(histogram.ranked(4001), None);
    }

    fn magnitudes() -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec((-30i32..30, -2f32..2f32).prop_map(|(e, m)| m * 2f32.powi(e)), 0..200)
    }

    proptest! {
        #[test]
        fn a_tally_counts_what_adding_one_by_one_counts(values in magnitudes(), cut in 0usize..200) {
            let mut one_by_one = Histogram::new(TALLY_BITS);
            values.iter().for_each(|&v| one_by_one.add(v));
            let (a, b) = values.split_at(cut.min(values.len()));
            let mut tally = Tally::default();
            tally.add(a);
            tally.add(b);
            let mut tallied = Histogram::new(TALLY_BITS);
            tallied.add_tally(&tally);
            prop_assert_eq!(&tallied, &one_by_one);
            prop_assert_eq!(tallied.total(), values.len() as u64);
            // A second count straight from the definition.
            for bin in tallied.coarsened(2).bins() {
                let inside = |v: &&f32| {
                    let v = f64::from(v.abs());
                    if bin.upper == 0.0 { v == 0.0 } else { v > 0.0 && bin.lower <= v && v < bin.upper }
                };
                prop_assert_eq!(bin.count, values.iter().filter(inside).count() as u64);
            }
        }
    }
}
