//! `keep` by `ranked`: quantize only a few groups, chosen by the rank of their ratio; everything else stays as it is.
//!
//! # Equation
//! r as in QFeM (`quantscope explain qfem`). Of the groups in descending order of r, `top` quantizes the first
//! `groups`, `bottom` the last, `middle` those around the middle; all other groups keep activations and weights.
//!
//! # Parameters
//! `quantize` top, middle or bottom · `groups` how many.
//!
//! # Reference
//! arXiv:2405.14428, its table of partial quantization (four groups each): the largest ratios cause the whole loss.
//! That the middle ones stand around the middle of the order is our reading.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::quantize::fake_quant::Kept;
use crate::quantize::steps::Stage;
use crate::quantize::steps::keep::{Ratio, ranked_groups};
use crate::quantize::{Method, ModelInFlight, StatisticsNeed, StepError};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ranked {
    /// Which groups are quantized.
    pub quantize: Part,
    /// How many.
    pub groups: usize,
}

/// A part of the ranking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The largest ratios.
    Top,
    /// Around the middle.
    Middle,
    /// The smallest ratios.
    Bottom,
}

impl Ranked {
    /// Nothing is left to a default.
    pub fn resolved(self) -> Self {
        self
    }

    /// The places of the ranking that are quantized.
    fn places(&self, of: usize) -> std::ops::Range<usize> {
        let n = self.groups.min(of);
        match self.quantize {
            Part::Top => 0..n,
            Part::Middle => (of - n) / 2..(of - n) / 2 + n,
            Part::Bottom => of - n..of,
        }
    }
}

impl Method for Ranked {
    fn stage(&self) -> Stage {
        Stage::Keep
    }

    fn check(&self) -> Result<(), String> {
        if self.groups == 0 { Err("`groups` must be at least 1".into()) } else { Ok(()) }
    }

    fn claims(&self) -> Vec<String> {
        vec!["what stays in floating point".into()]
    }

    fn statistics(&self) -> StatisticsNeed {
        StatisticsNeed::Original
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        Some("it ranks the groups of all blocks")
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let statistics = model.original.clone().expect("a ranking asks for statistics");
        let ranked = ranked_groups(model.decoder, &statistics, Ratio::Sequences)?;
        let places = self.places(ranked.len());
        let quantized: Vec<Value> = ranked[places.clone()]
            .iter()
            .map(|(site, ratio)| json!({ "site": site.to_string(), "ratio": ratio }))
            .collect();
        for (place, (site, _)) in ranked.iter().enumerate() {
            if !places.contains(&place) {
                model.tap.kept.insert(*site, Kept::ActivationAndWeights);
            }
        }
        let mut report = Map::new();
        report.insert("groups".into(), ranked.len().into());
        report.insert("quantized".into(), quantized.into());
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_ranking() {
        let places = |quantize, groups| Ranked { quantize, groups }.places(10);
        assert_eq!(places(Part::Top, 4), 0..4);
        assert_eq!(places(Part::Middle, 4), 3..7);
        assert_eq!(places(Part::Bottom, 4), 6..10);
        assert_eq!(places(Part::Middle, 40), 0..10);
    }
}
