//! KL divergence of a reading from the original, token by token.
//!
//! It measures how much two readings disagree, not who is right: among recipes close to the original it does not rank
//! accuracies (arXiv:2606.19558), and its mean is made by the few tokens where the original itself is undecided. So it
//! stands beside its median and percentiles, by confidence of the original, and beside a [noise floor](super::floor).

use serde::{Deserialize, Serialize};

use super::clustered::{self, Cluster};
use super::{Estimate, PairedError, same_items, sorted_quantile};

/// Edges of the buckets of the original's top probability, as exllamav3 has them. A bucket holds its lower edge, the last
/// one both.
pub const CONFIDENCE_EDGES: [f64; 6] = [0.0, 0.25, 0.5, 0.75, 0.95, 1.0];

/// Two next-token distributions compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenDivergence {
    /// KL(original ‖ reading), nats. Infinite where the reading excludes a token that the original allows, NaN where a
    /// row is no distribution.
    pub kl: f64,
    /// Probability of the original's most likely token.
    pub confidence: f64,
    /// Whether both have the same most likely token; of equal logits the first.
    pub same_top: bool,
}

/// Compares two rows of logits over the same vocabulary:
///
/// ```text
/// KL(p ‖ q) = Σ p (ln p − ln q) = Σ e^a (a − b) / Σ e^a + ln(Σ e^b / Σ e^a)
/// ```
///
/// with a and b the logits less their row's largest. In f64 from f32 logits; the shift keeps exp from overflowing. Equal
/// rows give exactly 0, and so do rows that differ by a constant which the subtraction takes off without rounding; what
/// rounding makes negative is 0. A token that the original excludes (−∞) adds nothing. A row with NaN, with +∞, or
/// without a finite logit is no distribution: the KL is NaN, to be counted and not averaged.
///
/// # Errors
/// Rows of different length, or empty ones.
pub fn token_divergence(original: &[f32], reading: &[f32]) -> Result<TokenDivergence, PairedError> {
    token_divergence_by(masses, original, reading)
}

/// Sums of a row's exponentials, before they are divided by each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masses {
    /// Σ e^a
    pub original: f64,
    /// Σ e^b
    pub reading: f64,
    /// Σ e^a (a − b); where e^a is 0, nothing.
    pub moved: f64,
}

/// The sums of two rows and their largest logits, one after the other.
pub fn masses(original: &[f32], reading: &[f32], peaks: [f64; 2]) -> Masses {
    let mut sums = Masses { original: 0.0, reading: 0.0, moved: 0.0 };
    for (&x, &y) in original.iter().zip(reading) {
        let (a, b) = (f64::from(x) - peaks[0], f64::from(y) - peaks[1]);
        let weight = a.exp();
        sums.original += weight;
        sums.reading += b.exp();
        // 0 · ∞ where the original excludes the token.
        if weight > 0.0 {
            sums.moved += weight * (a - b);
        }
    }
    sums
}

/// As [`token_divergence`], by somebody's [`masses`]: the vocabulary is where the time goes.
///
/// # Errors
/// As [`token_divergence`].
pub fn token_divergence_by(
    masses: impl Fn(&[f32], &[f32], [f64; 2]) -> Masses,
    original: &[f32],
    reading: &[f32],
) -> Result<TokenDivergence, PairedError> {
    same_items("logits", original.len(), reading.len())?;
    let (Some((top, peak)), Some((reading_top, reading_peak))) = (largest(original), largest(reading)) else {
        return Ok(TokenDivergence { kl: f64::NAN, confidence: f64::NAN, same_top: false });
    };
    let sums = masses(original, reading, [peak, reading_peak]);
    let kl = sums.moved / sums.original + (sums.reading / sums.original).ln();
    // Not `max`, which would turn NaN into 0.
    let kl = if kl < 0.0 { 0.0 } else { kl };
    Ok(TokenDivergence { kl, confidence: 1.0 / sums.original, same_top: top == reading_top })
}

/// Place and value of the largest logit, the first of equal ones; none where the row is no distribution.
fn largest(row: &[f32]) -> Option<(usize, f64)> {
    // Lane by lane and without a branch, so that the loop becomes vector code.
    let mut highest = [f32::NEG_INFINITY; LANES];
    let mut bounded = true;
    for chunk in row.chunks(LANES) {
        for (highest, &logit) in highest.iter_mut().zip(chunk) {
            bounded &= logit < f32::INFINITY;
            *highest = if logit > *highest { logit } else { *highest };
        }
    }
    let highest = highest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let place = row.iter().position(|&logit| logit == highest)?;
    (bounded && highest > f32::NEG_INFINITY).then_some((place, f64::from(highest)))
}

/// Independent maxima.
const LANES: usize = 8;

/// Collects tokens window by window. It keeps every token, so percentiles are exact: 24 bytes a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergences {
    tokens: Vec<TokenDivergence>,
    // One past the last token of each window.
    ends: Vec<usize>,
}

impl Divergences {
    /// Adds the scored tokens of one window.
    pub fn push_window(&mut self, tokens: impl IntoIterator<Item = TokenDivergence>) {
        self.tokens.extend(tokens);
        self.ends.push(self.tokens.len());
    }

    /// Adds the windows of another part of the text behind these.
    pub fn append(&mut self, other: &Self) {
        self.ends.extend(other.ends.iter().map(|end| self.tokens.len() + end));
        self.tokens.extend_from_slice(&other.tokens);
    }

    /// All tokens, in order.
    pub fn tokens(&self) -> &[TokenDivergence] {
        &self.tokens
    }

    /// Tokens of each window.
    pub fn windows(&self) -> impl Iterator<Item = &[TokenDivergence]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.tokens[start..end])
    }
}

/// What a text shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean KL, nats per token, with the standard error clustered by window.
    pub mean: Estimate,
    /// Median.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Greatest.
    pub max: f64,
    /// Share of tokens with the same most likely token, with the standard error clustered by window.
    pub same_top: Estimate,
    /// By confidence of the original, in the order of [`CONFIDENCE_EDGES`].
    pub buckets: Vec<Bucket>,
    /// Tokens whose KL is NaN or infinite. They are in no other number here.
    pub not_finite: u64,
}

/// Tokens of one range of confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Lower edge, inside.
    pub from: f64,
    /// Upper edge, outside but for 1.
    pub to: f64,
    /// Tokens in it.
    pub tokens: u64,
    /// Mean KL, nats; none without tokens.
    pub mean: Option<f64>,
    /// Median KL, nats; none without tokens.
    pub median: Option<f64>,
    /// Share with the same most likely token; none without tokens.
    pub same_top: Option<f64>,
}

/// Summarizes all windows. Percentiles are exact, interpolated as in [`sorted_quantile`].
///
/// # Errors
/// No token with a finite KL.
pub fn summary(all: &Divergences) -> Result<Summary, PairedError> {
    let finite = |token: &&TokenDivergence| token.kl.is_finite();
    let per_window = |value: fn(&TokenDivergence) -> f64| -> Result<Estimate, PairedError> {
        let clusters = all.windows().map(|window| {
            let tokens = window.iter().filter(finite);
            tokens.fold(Cluster::default(), |c, token| Cluster { sum: c.sum + value(token), n: c.n + 1 })
        });
        // A window none of whose tokens is finite has nothing to say about the mean.
        let clusters: Vec<Cluster> = clusters.filter(|cluster| cluster.n > 0).collect();
        if clusters.is_empty() {
            return Err(PairedError::Empty { what: "tokens with a finite KL divergence" });
        }
        clustered::mean(&clusters)
    };
    let (mean, same_top) = (per_window(|token| token.kl)?, per_window(|token| f64::from(token.same_top))?);

    let sorted = sorted_kl(all.tokens.iter().filter(finite));
    let buckets = CONFIDENCE_EDGES.windows(2).map(|edges| {
        let (from, to) = (edges[0], edges[1]);
        let inside = |token: &&TokenDivergence| {
            token.confidence >= from && (token.confidence < to || to == 1.0 && token.confidence <= 1.0)
        };
        let tokens = || all.tokens.iter().filter(finite).filter(inside);
        let kl = sorted_kl(tokens());
        let share = |sum: f64| (!kl.is_empty()).then(|| sum / kl.len() as f64);
        Bucket {
            from,
            to,
            tokens: kl.len() as u64,
            mean: share(kl.iter().sum()),
            median: (!kl.is_empty()).then(|| sorted_quantile(&kl, 0.5)),
            same_top: share(tokens().filter(|token| token.same_top).count() as f64),
        }
    });
    Ok(Summary {
        mean,
        median: sorted_quantile(&sorted, 0.5),
        p90: sorted_quantile(&sorted, 0.9),
        p99: sorted_quantile(&sorted, 0.99),
        max: sorted_quantile(&sorted, 1.0),
        same_top,
        buckets: buckets.collect(),
        not_finite: (all.tokens.len() - sorted.len()) as u64,
    })
}

fn sorted_kl<'a>(tokens: impl Iterator<Item = &'a TokenDivergence>) -> Vec<f64> {
    let mut kl: Vec<f64> = tokens.map(|token| token.kl).collect();
    kl.sort_unstable_by(f64::total_cmp);
    kl
}
