//! `prefix` by `prefixquant`: the outlier tokens of `down_in`, most frequent first, and BOS last.
//!
//! # Equation
//! With the token scale M_t = max_c |X_{t,c}| at a block's `down_in`, token t of a sequence is an outlier where
//! M_t / median_t M_t > η. The prefix has
//!
//! o = ⌈ max over blocks of the mean over sequences of the number of outliers ⌉
//!
//! tokens at most: the most frequent outlier tokens over all blocks and sequences, position 0 excluded, then BOS. Where
//! position 0 is an outlier in most sequences of that block it is one of the o, and BOS stands for it. A single token
//! that is an outlier in fewer than a tenth of the sequences is left out. Equal frequencies: the smaller id first.
//!
//! # Parameters
//! `eta` default 64 · `bos` default true; false leaves BOS out.
//!
//! # Reference
//! PrefixQuant (arXiv:2410.05265), search of prefixed tokens, read in notes on its code: threshold 64 at `down_proj`
//! inputs, ⌈max mean count⌉, position 0 excluded, BOS last, the rule for a lone rare token. That position 0 counts as
//! one of the o is our reading of its table (three tokens ". \n BOS" for Llama-2-7B).

use std::collections::BTreeMap;

use models::Port;
use models::architecture::Architecture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::calibrate::statistics::{MOST_TOKENS, OUTLIER_RATIO, SequenceScales, Statistics};
use crate::quantize::steps::{Stage, prefix};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StatisticsNeed, StepError};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Prefixquant {
    /// From which multiple of the median on a token is an outlier. Default: 64.
    #[serde(default = "sixty_four")]
    pub eta: f64,
    /// Whether the prefix ends with BOS. Default: true.
    #[serde(default = "yes")]
    pub bos: bool,
}

fn sixty_four() -> f64 {
    64.0
}
fn yes() -> bool {
    true
}

impl Prefixquant {
    /// Defaults are written out as they are read.
    pub fn resolved(self) -> Self {
        self
    }
}

/// The outliers of one block: per sequence, the outlying (position, token).
pub type Outliers = Vec<Vec<(usize, u32)>>;

/// What the search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Tokens without BOS, most frequent first, each with its number of sequences.
    pub tokens: Vec<(u32, usize)>,
    /// o, the number of outliers that the worst block has per sequence, rounded up.
    pub outliers: usize,
    /// Mean number of outliers per sequence, by block.
    pub mean_counts: Vec<f64>,
}

/// The search, on the outliers of every block.
pub fn search(blocks: &[Outliers]) -> Found {
    let sequences = blocks.first().map_or(0, Vec::len).max(1);
    let mean = |block: &Outliers| block.iter().map(Vec::len).sum::<usize>() as f64 / sequences as f64;
    let mean_counts: Vec<f64> = blocks.iter().map(mean).collect();
    let worst = (0..blocks.len()).max_by(|&a, &b| mean_counts[a].total_cmp(&mean_counts[b]).then(b.cmp(&a)));
    let Some(worst) = worst else {
        return Found { tokens: Vec::new(), outliers: 0, mean_counts };
    };
    let outliers = mean_counts[worst].ceil() as usize;
    let at_start = blocks[worst].iter().filter(|s| s.iter().any(|(position, _)| *position == 0)).count();
    let places = outliers - usize::from(2 * at_start > sequences).min(outliers);

    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for (_, token) in blocks.iter().flatten().flatten().filter(|(position, _)| *position > 0) {
        *counts.entry(*token).or_default() += 1;
    }
    let mut tokens: Vec<(u32, usize)> = counts.into_iter().collect();
    tokens.sort_by_key(|&(token, n)| (std::cmp::Reverse(n), token));
    tokens.truncate(places);
    if let [(_, n)] = tokens[..]
        && 10 * n < sequences
    {
        tokens.clear();
    }
    Found { tokens, outliers, mean_counts }
}

/// The outliers of every block's `down_in`.
///
/// # Errors
/// Statistics that do not hold all of them.
fn outliers(statistics: &Statistics, layers: usize, eta: f64) -> Result<Vec<Outliers>, StepError> {
    let block = |layer| {
        let site = models::Site::block(layer, Port::DownIn);
        let seen = statistics.sites.get(&site).ok_or_else(|| {
            StepError::Statistics(format!("{site}: the calibration pass did not look here"))
        })?;
        let of_sequence = |(sample, scales): (&usize, &SequenceScales)| {
            let found = scales.outliers(eta as f32);
            if found.capped {
                let text = format!(
                    "{site}: calibration sample {sample} has more than {MOST_TOKENS} tokens above {eta} medians; raise `eta`"
                );
                return Err(StepError::Statistics(text));
            }
            Ok(found.tokens.iter().map(|t| (t.position as usize, t.token)).collect())
        };
        seen.sequences.iter().map(of_sequence).collect()
    };
    (0..layers).map(block).collect()
}

/// Refuses a model that has no `down_in` for every token.
fn check_sites(architecture: &Architecture) -> Result<(), StepError> {
    match architecture.has_experts() {
        true => Err(StepError::Host(
            "PrefixQuant counts outliers in what down reads of every token, and an expert reads some of them: use method = \
             \"qfep\", \"bos\" or \"tokens\""
                .into(),
        )),
        false => Ok(()),
    }
}

impl Method for Prefixquant {
    fn stage(&self) -> Stage {
        Stage::Prefix
    }

    fn check(&self) -> Result<(), String> {
        let least = f64::from(OUTLIER_RATIO);
        match self.eta >= least && self.eta.is_finite() {
            true => Ok(()),
            false => Err(format!("`eta` is a multiple of the median, at least {least}, not {}", self.eta)),
        }
    }

    fn claims(&self) -> Vec<String> {
        prefix::claims()
    }

    fn statistics(&self) -> StatisticsNeed {
        StatisticsNeed::Original
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        facts.start.ok_or(StepError::NoStart)?;
        check_sites(facts.architecture)?;
        prefix::check_room(1, facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        Some("its tokens are found in all blocks")
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let start = model.calibrator.start().ok_or(StepError::NoStart)?;
        check_sites(&model.decoder.architecture)?;
        let statistics = model.original.clone().expect("PrefixQuant asks for statistics");
        let blocks = outliers(&statistics, model.decoder.architecture.layers, self.eta)?;
        let found = search(&blocks);
        let tokens = found.tokens.iter().map(|(token, _)| *token).filter(|token| *token != start);
        let tokens: Vec<u32> = tokens.chain(self.bos.then_some(start)).collect();
        let context = model.decoder.architecture.context;
        if tokens.len() + 2 > context {
            return Err(StepError::NoRoom { prefix: tokens.len(), longest: 2, context });
        }
        let mut report = prefix::set(model, &tokens)?;
        report.insert("outliers-per-sequence".into(), found.outliers.into());
        report.insert("mean-counts".into(), json!(found.mean_counts));
        let frequency = |(token, n): &(u32, usize)| json!({ "token": token, "outliers": n });
        report.insert("frequencies".into(), found.tokens.iter().map(frequency).collect());
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten sequences: BOS always, `13` in seven, `29` in four.
    fn block() -> Outliers {
        (0..10)
            .map(|n| {
                let mut found = vec![(0, 1)];
                found.extend((n < 7).then_some((5, 13)));
                found.extend((n < 4).then_some((9, 29)));
                found
            })
            .collect()
    }

    #[test]
    fn the_prefix_holds_as_many_tokens_as_the_worst_block_has_outliers() {
        let quiet = vec![vec![]; 10];
        let found = search(&[quiet, block()]);
        // 2.1 outliers per sequence: three places, of which BOS takes one.
        assert_eq!(found.outliers, 3);
        assert_eq!(found.tokens, [(13, 7), (29, 4)]);
        assert!((found.mean_counts[1] - 2.1).abs() < 1e-12);
    }

    #[test]
    fn a_lone_rare_token_is_dropped_and_no_outliers_leave_nothing() {
        let mut rare: Outliers = vec![vec![(0, 1)]; 20];
        rare[3].push((7, 40));
        assert_eq!(search(&[rare]).tokens, []);
        assert_eq!(search(&[vec![vec![]; 5]]).tokens, []);
        assert_eq!(search(&[]).outliers, 0);
    }
}
