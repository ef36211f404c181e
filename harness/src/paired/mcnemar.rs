//! Changed decisions: flips, and McNemar's test of their direction.
//!
//! Of a pair of readings each item falls in one of four fields, and only two of them tell the readings apart:
//!
//! | | reading correct | reading wrong |
//! |---|---|---|
//! | **original correct** | both correct | lost, b |
//! | **original wrong** | gained, c | both wrong |
//!
//! Flips: A. Dutta, S. Krishnan, N. Kwatra, R. Ramjee, "Accuracy is Not All You Need", arXiv:2407.09141. Equal
//! accuracies can hide many of them.

use std::cmp::Ordering;
use std::ops::Add;

use serde::{Deserialize, Serialize};

use super::{PairedError, same_items};

/// What a reading decided on one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outcome {
    /// Index of the chosen answer; for a task without choices (LAMBADA) 1 where the target is the greedy one, else 0.
    pub decision: u32,
    /// Whether it is right.
    pub correct: bool,
}

/// Counts of the paired items of one task. Those of parts of a task add up to those of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Both readings are right.
    pub both_correct: u64,
    /// b: the original is right and the reading wrong.
    pub lost: u64,
    /// c: the original is wrong and the reading right.
    pub gained: u64,
    /// Both readings are wrong, by the same answer or not.
    pub both_wrong: u64,
    /// Items with another decision or another correctness: `lost`, `gained`, and one wrong answer for another.
    pub changed: u64,
}

impl Changes {
    /// Number of items.
    pub fn items(&self) -> u64 {
        self.both_correct + self.lost + self.gained + self.both_wrong
    }

    /// Items that only one reading has right, b + c.
    pub fn discordant(&self) -> u64 {
        self.lost + self.gained
    }

    /// Flips, (b + c) / n: the share of items whose correctness changed. It is also the discordance rate that
    /// [`power`](super::power) asks for. NaN without items.
    pub fn flips(&self) -> f64 {
        self.discordant() as f64 / self.items() as f64
    }

    /// All-flips: the share of items whose decision or correctness changed, so that one wrong answer for another counts,
    /// too. NaN without items.
    pub fn all_flips(&self) -> f64 {
        self.changed as f64 / self.items() as f64
    }
}

impl Add for Changes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            both_correct: self.both_correct + other.both_correct,
            lost: self.lost + other.lost,
            gained: self.gained + other.gained,
            both_wrong: self.both_wrong + other.both_wrong,
            changed: self.changed + other.changed,
        }
    }
}

/// Counts what changed between two readings of the same items in the same order.
///
/// # Errors
/// No items, or not equally many.
pub fn changes(original: &[Outcome], reading: &[Outcome]) -> Result<Changes, PairedError> {
    same_items("items", original.len(), reading.len())?;
    let mut counts = Changes::default();
    for (a, b) in original.iter().zip(reading) {
        match (a.correct, b.correct) {
            (true, true) => counts.both_correct += 1,
            (true, false) => counts.lost += 1,
            (false, true) => counts.gained += 1,
            (false, false) => counts.both_wrong += 1,
        }
        counts.changed += u64::from(a != b);
    }
    Ok(counts)
}

/// Places of the items that [`Changes::all_flips`] counts, in ascending order.
///
/// # Errors
/// No items, or not equally many.
pub fn changed_items(original: &[Outcome], reading: &[Outcome]) -> Result<Vec<usize>, PairedError> {
    same_items("items", original.len(), reading.len())?;
    let pairs = original.iter().zip(reading).enumerate();
    Ok(pairs.filter(|(_, (a, b))| a != b).map(|(index, _)| index).collect())
}

/// The margin of a decision: the best score less the second best, in the scores' unit. A flip of an item with a small
/// margin says little. None with fewer than two scores; NaN if a score is.
pub fn margin(scores: &[f64]) -> Option<f64> {
    if scores.len() < 2 {
        return None;
    }
    if scores.iter().any(|score| score.is_nan()) {
        return Some(f64::NAN);
    }
    let (mut best, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    for &score in scores {
        if score > best {
            (best, second) = (score, best);
        } else if score > second {
            second = score;
        }
    }
    Some(if best == second { 0.0 } else { best - second })
}

/// Exact McNemar test: the two-sided p-value of b against c under a binomial of b + c tosses of a fair coin,
///
/// ```text
/// p = min(1, 2 P(X ≤ min(b, c))),  X ~ Binomial(b + c, ½)
/// ```
///
/// 1 for b = c, and so for b + c = 0. Valid at every size, and conservative at small ones, where few p-values are
/// possible: with fewer than 6 discordant items none is below 0.05. Q. McNemar (1947), doi:10.1007/BF02295996. Items must
/// be independent; for clusters see [`clustered::difference`](super::clustered::difference).
pub fn exact(lost: u64, gained: u64) -> f64 {
    match lost.cmp(&gained) {
        Ordering::Equal => 1.0,
        _ => (2.0 * half_binomial(lost.min(gained), lost + gained).below_or_at).min(1.0),
    }
}

/// Mid-p variant of [`exact`]: the probability of the observed count enters by half, p = 2 P(X ≤ min(b, c)) − P(X =
/// min(b, c)), 1 for b = c. Less conservative; it may exceed its level, seldom and by little. Fagerland, Lydersen, Laake
/// (2013), doi:10.1186/1471-2288-13-91.
pub fn mid_p(lost: u64, gained: u64) -> f64 {
    match lost.cmp(&gained) {
        Ordering::Equal => 1.0,
        _ => {
            let Tail { at, below_or_at } = half_binomial(lost.min(gained), lost + gained);
            2.0 * below_or_at - at
        }
    }
}

struct Tail {
    at: f64,
    below_or_at: f64,
}

/// P(X = k) and P(X ≤ k) of n tosses of a fair coin, for k ≤ n / 2. O(n), relative error about n · 10⁻¹⁶; 0 below the
/// smallest float.
fn half_binomial(k: u64, n: u64) -> Tail {
    // C(n, k) 2⁻ⁿ, halving whenever the product has grown, so that nothing overflows.
    let (mut at, mut halvings) = (1.0f64, n);
    for i in 1..=k {
        at *= (n - k + i) as f64 / i as f64;
        while at > 1.0 && halvings > 0 {
            at *= 0.5;
            halvings -= 1;
        }
    }
    at *= 0.5f64.powi(i32::try_from(halvings).unwrap_or(i32::MAX));
    // P(X = i − 1) = P(X = i) · i / (n − i + 1): from k down, until nothing is added.
    let (mut sum, mut term) = (1.0, 1.0);
    for i in (1..=k).rev() {
        term *= i as f64 / (n - i + 1) as f64;
        let next = sum + term;
        if next == sum {
            break;
        }
        sum = next;
    }
    Tail { at, below_or_at: at * sum }
}
