//! `prefix` by `qfep`: three tokens, searched so that the activation spikes happen in them and nowhere else.
//!
//! # Equation
//! A spike happens at the first occurrence of its token. The prefix is [BOS, C, T], where
//!
//! 1. m* is the group with the largest ratio r (`quantscope explain qfem`) of the original model;
//! 2. candidates for T: the three tokens with the largest scales at m* of every calibration sequence, BOS left out; per
//!    token the largest scale seen; of these the `candidates` largest;
//! 3. contexts C: the `contexts` most frequent tokens of the calibration set, BOS left out;
//! 4. for every T and C the floating-point model reads [BOS, C, T, C, T], and rate(T, C) = s₂ / s₄, the token scale at
//!    m* of T's first occurrence over that of its second. The largest rate wins; of equal ones the first.
//!
//! # Parameters
//! `candidates` default 3 · `contexts` default 200 · `bos` default true; false leaves BOS out of the found prefix (the
//! paper's ablation).
//!
//! # Reference
//! arXiv:2405.14428, section "QFeP"; the search as in its released code (candidates, contexts, the five-token test).
//! For Mixtral the released code reads another statistic, the layer's output; this step does not.

use burn::tensor::Tensor;
use models::{Group, Site, Tap, token_tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use std::collections::BTreeMap;

use crate::quantize::steps::keep::{Ratio, ranked_groups};
use crate::quantize::steps::{Stage, prefix};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StatisticsNeed, StepError};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qfep {
    /// Spiking tokens to try. Default: 3.
    #[serde(default = "three")]
    pub candidates: usize,
    /// Frequent tokens to try before them. Default: 200.
    #[serde(default = "two_hundred")]
    pub contexts: usize,
    /// Whether the prefix begins with BOS. Default: true.
    #[serde(default = "yes")]
    pub bos: bool,
}

fn three() -> usize {
    3
}
fn two_hundred() -> usize {
    200
}
fn yes() -> bool {
    true
}

/// Largest tokens of a sequence that can become candidates.
const PER_SEQUENCE: usize = 3;

/// Test sequences that run through the model together.
const BATCH: usize = 100;

impl Qfep {
    /// Defaults are written out as they are read.
    pub fn resolved(self) -> Self {
        self
    }
}

/// The `count` most frequent tokens of the samples without `start`, most frequent first, equal ones by id.
pub fn frequent(samples: &[Vec<u32>], start: Option<u32>, count: usize) -> Vec<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for sample in samples {
        let skipped = usize::from(start.is_some() && sample.first().copied() == start);
        for &token in &sample[skipped..] {
            *counts.entry(token).or_default() += 1;
        }
    }
    let mut ranked: Vec<(u32, usize)> = counts.into_iter().collect();
    ranked.sort_by_key(|&(token, n)| (std::cmp::Reverse(n), token));
    ranked.into_iter().take(count).map(|(token, _)| token).collect()
}

/// The `count` tokens with the largest scales of `(token, scale)`, each with its largest, equal ones by id.
pub fn largest(scales: impl Iterator<Item = (u32, f32)>, count: usize) -> Vec<(u32, f32)> {
    let mut by_token: BTreeMap<u32, f32> = BTreeMap::new();
    for (token, scale) in scales {
        let known = by_token.entry(token).or_insert(scale);
        *known = known.max(scale);
    }
    let mut ranked: Vec<(u32, f32)> = by_token.into_iter().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(count);
    ranked
}

/// Remembers the token scales of one site.
struct Scales {
    site: Site,
    /// One per sequence and token.
    found: Vec<f32>,
}

impl Scales {
    fn keep(&mut self, x: &Tensor<3>) {
        let scales = x.clone().abs().max_dim(2);
        let data = scales.try_into_data().expect("activations can be read from their device");
        self.found.extend(data.as_slice::<f32>().expect("activations are f32"));
    }
}

impl Tap for Scales {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if site == self.site && site.expert.is_none() {
            self.keep(&x);
        }
        group.forward(x)
    }

    /// An expert sees other tokens in every sequence; the stream behind its block stands for it, as in the released code.
    fn residual(&mut self, layer: usize, x: &Tensor<3>) {
        if self.site.expert.is_some() && self.site.layer == Some(layer) {
            self.keep(x);
        }
    }
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    site: String,
    ratio: f64,
    context: u32,
    trigger: u32,
    rate: f64,
    /// The best context of every candidate.
    tried: Vec<Value>,
    contexts: usize,
}

impl Qfep {
    fn search(&self, model: &mut ModelInFlight, start: u32) -> Result<Found, StepError> {
        let statistics = model.original.clone().expect("QFeP asks for statistics");
        let ranked = ranked_groups(model.decoder, &statistics, Ratio::Sequences)?;
        let Some(&(site, ratio)) = ranked.first() else {
            return Err(StepError::TooLittle("the model has no groups to look for spikes in".into()));
        };
        let seen = statistics.sites.get(&site).expect("a ranked site was seen");
        let spiking = seen.sequences.values().flat_map(|sequence| sequence.top.iter().take(PER_SEQUENCE));
        let spiking = spiking.map(|t| (t.token, t.scale)).filter(|(token, _)| *token != start);
        let candidates = largest(spiking, self.candidates);
        let contexts = frequent(model.calibrator.samples(), Some(start), self.contexts);
        if candidates.is_empty() || contexts.is_empty() {
            let text = "the calibration set has no token besides BOS to build a prefix of: use a longer set";
            return Err(StepError::TooLittle(text.into()));
        }

        let mut best: Option<(f32, u32, u32)> = None;
        let mut tried = Vec::new();
        let total = candidates.len() * contexts.len();
        let mut done = 0;
        for &(candidate, scale) in &candidates {
            let mut own: Option<(f32, u32)> = None;
            for batch in contexts.chunks(BATCH) {
                if !model.calibrator.progress(done, total) {
                    return Err(StepError::Interrupted);
                }
                let tests: Vec<[u32; 5]> =
                    batch.iter().map(|&context| [start, context, candidate, context, candidate]).collect();
                let mut scales = Scales { site, found: Vec::new() };
                let device = model.decoder.device();
                model.decoder.hidden(token_tensor(&tests, &device), &mut scales);
                for (&context, s) in batch.iter().zip(scales.found.chunks_exact(5)) {
                    let rate = s[2] / s[4];
                    if rate.is_finite() && own.is_none_or(|(most, _)| rate > most) {
                        own = Some((rate, context));
                    }
                }
                done += batch.len();
            }
            if let Some((rate, context)) = own {
                tried.push(json!({
                    "token": candidate, "text": model.calibrator.text(candidate), "scale": scale,
                    "context": context, "rate": rate,
                }));
                if best.is_none_or(|(most, ..)| rate > most) {
                    best = Some((rate, context, candidate));
                }
            }
        }
        let Some((rate, context, trigger)) = best else {
            let text =
                format!("{site}: no test sequence gives a finite rate of spikes; the model is broken here");
            return Err(StepError::Statistics(text));
        };
        let rate = f64::from(rate);
        Ok(Found { site: site.to_string(), ratio, context, trigger, rate, tried, contexts: contexts.len() })
    }
}

impl Method for Qfep {
    fn stage(&self) -> Stage {
        Stage::Prefix
    }

    fn check(&self) -> Result<(), String> {
        match (self.candidates, self.contexts) {
            (0, _) => Err("`candidates` must be at least 1".into()),
            (_, 0) => Err("`contexts` must be at least 1".into()),
            _ => Ok(()),
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
        prefix::check_room(2 + usize::from(self.bos), facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        Some("its search runs the whole model for every candidate")
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let start = model.calibrator.start().ok_or(StepError::NoStart)?;
        // Recipes that go on differently behind the prefix share its search.
        let key = json!({ "qfep": [self.candidates, self.contexts] }).to_string();
        let found = match model.calibrator.recall(&key) {
            Some(known) => serde_json::from_value(known).expect("what was remembered is what it was"),
            None => {
                let found = self.search(model, start)?;
                model.calibrator.remember(key, json!(found));
                found
            }
        };
        let tokens: Vec<u32> =
            self.bos.then_some(start).into_iter().chain([found.context, found.trigger]).collect();
        let mut report = prefix::set(model, &tokens)?;
        report.insert("site".into(), found.site.into());
        report.insert("ratio".into(), found.ratio.into());
        report.insert("rate".into(), found.rate.into());
        report.insert("candidates".into(), found.tried.into());
        report.insert("contexts".into(), found.contexts.into());
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_the_most_frequent_tokens_without_bos() {
        let samples = [vec![0, 5, 5, 7], vec![0, 7, 5, 9, 0]];
        assert_eq!(frequent(&samples, Some(0), 3), [5, 7, 0]);
        assert_eq!(frequent(&samples, None, 2), [0, 5]);
    }

    #[test]
    fn candidates_are_the_largest_scales_per_token() {
        let scales = [(4, 1.0), (9, 3.0), (4, 5.0), (2, 3.0)];
        assert_eq!(largest(scales.into_iter(), 3), [(4, 5.0), (2, 3.0), (9, 3.0)]);
    }
}
