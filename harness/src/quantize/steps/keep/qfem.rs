//! `keep` by `qfem`: groups whose activations have spikes keep them in floating point; their weights are rounded.
//!
//! # Equation
//! With the token scale s_{n,t} = max_c |X_{n,t,c}| of a group's input in sequence n, the group's ratio is
//!
//! r = mean_n ( max_t s_{n,t} / median_t s_{n,t} ), median = the lower middle value.
//!
//! Excepted are the groups with r ≥ α, or the `top` largest. Groups are whole: q, k and v stand or fall together, gate
//! and up too. An excepted group keeps its activation; its weights stay on their grid ("W8A16" for that group), so
//! α = 0 is the recipe without activation rounding and α = inf the recipe without this step.
//!
//! `alpha = "auto"`: with the groups in descending order of r, the recipe's remaining steps are carried out with the k
//! largest excepted, k = 0, 1, 2, 4, … up to a tenth of all groups, and the perplexity of the last eighth of the
//! calibration samples is measured each time; then bisection finds the smallest k whose perplexity is at most
//! (1 + `epsilon`) times the smallest seen. α is then the k-th ratio. The ratios come from all samples.
//!
//! # Parameters
//! `alpha` a number ≥ 0, inf, or auto — or `top` a number of groups · `epsilon` of auto, default 0.005 · `ratio`
//! sequences (default) or pooled · `of` original (default: ratios of the checkpoint as it came, as the released code
//! reuses them after smoothing and behind a prefix) or present (after the earlier steps, behind the prefix).
//!
//! # Reference
//! arXiv:2405.14428, section "QFeM"; ratio and expansion to siblings as in its released code, which takes the mean of
//! per-sequence ratios where a reading of the formula would pool; r ≥ α selects its eight published lists, r > α seven
//! of them. The search for α is not released: `auto` is our own deterministic rule.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value, json};

use crate::quantize::fake_quant::{FakeQuant, Kept};
use crate::quantize::steps::Stage;
use crate::quantize::steps::keep::{Ratio, ranked_groups};
use crate::quantize::{Method, ModelInFlight, StatisticsNeed, StepError, apply_after, likelihood};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qfem {
    /// The smallest excepted ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<Alpha>,
    /// Or the number of excepted groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<usize>,
    /// Of `alpha = "auto"`. Default: 0.005.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// Default: `sequences`.
    #[serde(default)]
    pub ratio: Ratio,
    /// Default: `original`.
    #[serde(default)]
    pub of: Of,
}

/// Whose ratios are compared with α.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// The checkpoint as it came.
    #[default]
    Original,
    /// The model after the earlier steps.
    Present,
}

/// The smallest excepted ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Alpha {
    /// Searched.
    Auto,
    /// Given.
    Fixed(f64),
}

/// The share by which the found perplexity may exceed the best when the recipe does not say.
const EPSILON: f64 = 0.005;

impl Qfem {
    /// The same step with its defaults written out.
    pub fn resolved(mut self) -> Self {
        if self.alpha == Some(Alpha::Auto) {
            self.epsilon = Some(self.epsilon.unwrap_or(EPSILON));
        }
        self
    }
}

/// How many of `ratios`, in descending order, are at least α.
pub fn count_at_least(ratios: &[f64], alpha: f64) -> usize {
    ratios.iter().take_while(|ratio| **ratio >= alpha).count()
}

/// The smallest k whose perplexity is within (1 + ε) of the best that was seen, and all that was seen, by k.
///
/// Measures k = 0, 1, 2, 4, …, `most`, then bisects between the last that is too high and the first that is not.
///
/// # Errors
/// Of `perplexity`.
pub fn smallest_sufficient<E>(
    most: usize,
    epsilon: f64,
    mut perplexity: impl FnMut(usize) -> Result<f64, E>,
) -> Result<(usize, Vec<(usize, f64)>), E> {
    let mut seen: Vec<(usize, f64)> = Vec::new();
    let mut k = 0;
    loop {
        seen.push((k, perplexity(k)?));
        if k >= most {
            break;
        }
        k = (2 * k).clamp(1, most);
    }
    loop {
        let best = seen.iter().map(|(_, p)| *p).fold(f64::INFINITY, f64::min);
        let enough = |p: f64| p <= (1.0 + epsilon) * best;
        let chosen = seen.iter().find(|(_, p)| enough(*p)).map_or(most, |(k, _)| *k);
        let below = seen.iter().map(|(k, _)| *k).filter(|k| *k < chosen).max();
        match below {
            Some(below) if chosen - below > 1 => {
                let middle = below + (chosen - below) / 2;
                seen.push((middle, perplexity(middle)?));
                seen.sort_by_key(|(k, _)| *k);
            }
            _ => return Ok((chosen, seen)),
        }
    }
}

impl Method for Qfem {
    fn stage(&self) -> Stage {
        Stage::Keep
    }

    fn check(&self) -> Result<(), String> {
        match (self.alpha, self.top) {
            (None, None) => return Err("`alpha` or `top` must say which groups are excepted".into()),
            (Some(_), Some(_)) => return Err("`top` and `alpha` are two ways to say it: give one".into()),
            (Some(Alpha::Fixed(alpha)), _) if alpha.is_nan() || alpha < 0.0 => {
                return Err(format!("`alpha` is compared with ratios of at least 1: 0 or more, not {alpha}"));
            }
            _ => {}
        }
        match self.epsilon {
            Some(_) if self.alpha != Some(Alpha::Auto) => Err("`epsilon` belongs to alpha = \"auto\"".into()),
            Some(e) if !(0.0..1.0).contains(&e) => {
                Err(format!("`epsilon` must be at least 0 and below 1, not {e}"))
            }
            _ => Ok(()),
        }
    }

    fn claims(&self) -> Vec<String> {
        vec!["what stays in floating point".into()]
    }

    fn statistics(&self) -> StatisticsNeed {
        match self.of {
            Of::Original => StatisticsNeed::Original,
            Of::Present => StatisticsNeed::Present,
        }
    }

    fn tries_on_a_copy(&self) -> bool {
        self.alpha == Some(Alpha::Auto)
    }

    fn exempts(&self) -> Option<Kept> {
        Some(Kept::Activation)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        Some("it ranks the groups of all blocks")
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let statistics = match self.of {
            Of::Original => model.original.clone(),
            Of::Present => model.present.clone(),
        };
        let statistics = statistics.expect("QFeM asks for statistics");
        let ranked = ranked_groups(model.decoder, &statistics, self.ratio)?;
        let ratios: Vec<f64> = ranked.iter().map(|(_, ratio)| *ratio).collect();
        let mut report = Map::new();
        let excepted = match (self.alpha, self.top) {
            (Some(Alpha::Fixed(alpha)), _) => count_at_least(&ratios, alpha),
            (Some(Alpha::Auto), _) => {
                let most = (ranked.len() / 10).max(1);
                let mut trial = Trial::new(model)?;
                let found = smallest_sufficient(most, self.epsilon.unwrap_or(EPSILON), |k| {
                    trial.perplexity(model, ranked[..k].iter().map(|(site, _)| site))
                });
                let (k, seen) = found?;
                let seen: Vec<Value> =
                    seen.iter().map(|(k, p)| json!({ "excepted": k, "perplexity": p })).collect();
                report.insert("tried".into(), seen.into());
                k
            }
            (None, top) => top.unwrap_or(0).min(ranked.len()),
        };
        for (site, _) in &ranked[..excepted] {
            model.tap.kept.insert(*site, Kept::Activation);
        }
        let listed =
            |(site, ratio): &(models::Site, f64)| json!({ "site": site.to_string(), "ratio": ratio });
        report.insert("groups".into(), ranked.len().into());
        // Between the last excepted ratio and the next: what a fixed α would have to be.
        report.insert("alpha".into(), json!(excepted.checked_sub(1).map(|last| ratios[last])));
        report.insert("excepted".into(), ranked[..excepted].iter().map(listed).collect());
        report.insert("next".into(), json!(ranked.get(excepted).map(listed)));
        Ok(report)
    }
}

/// The recipe's remaining steps, carried out on a copy of the model, to be measured with some groups excepted.
struct Trial {
    decoder: models::Decoder,
    tap: FakeQuant,
    samples: Vec<Vec<u32>>,
}

impl Trial {
    fn new(model: &mut ModelInFlight) -> Result<Self, StepError> {
        let samples = model.calibrator.samples();
        let held_out = samples.len().div_ceil(8);
        let samples = samples[samples.len() - held_out..].to_vec();
        let (mut decoder, mut tap) = (model.decoder.clone(), model.tap.clone());
        let original = model.original.clone();
        apply_after(model.state, original, model.after, &mut decoder, &mut tap, model.calibrator)
            .map_err(|(_, error)| error)?;
        Ok(Self { decoder, tap, samples })
    }

    fn perplexity<'a>(
        &mut self,
        model: &mut ModelInFlight,
        excepted: impl Iterator<Item = &'a models::Site>,
    ) -> Result<f64, StepError> {
        let mut tap = self.tap.clone();
        for site in excepted {
            tap.rules.remove(site);
        }
        let start = model.calibrator.start();
        let (mut loss, mut tokens) = (0.0, 0usize);
        for (index, sample) in self.samples.iter().enumerate() {
            if !model.calibrator.progress(index, self.samples.len()) {
                return Err(StepError::Interrupted);
            }
            let fed = &sample[usize::from(self.decoder.stands_for_first(start, sample))..];
            loss += likelihood::loss(&mut self.decoder, &mut tap, fed);
            tokens += fed.len() - 1;
        }
        Ok((loss / tokens as f64).exp())
    }
}

impl Serialize for Alpha {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Alpha::Auto => serializer.serialize_str("auto"),
            // JSON has no infinity, and an id must not take it for nothing.
            Alpha::Fixed(alpha) if alpha.is_infinite() => serializer.serialize_str("inf"),
            Alpha::Fixed(alpha) => serializer.serialize_f64(*alpha),
        }
    }
}

impl<'de> Deserialize<'de> for Alpha {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrAuto;
        impl de::Visitor<'_> for NumberOrAuto {
            type Value = Alpha;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, inf or \"auto\"")
            }
            fn visit_f64<E: de::Error>(self, alpha: f64) -> Result<Alpha, E> {
                Ok(Alpha::Fixed(alpha))
            }
            fn visit_i64<E: de::Error>(self, alpha: i64) -> Result<Alpha, E> {
                Ok(Alpha::Fixed(alpha as f64))
            }
            fn visit_u64<E: de::Error>(self, alpha: u64) -> Result<Alpha, E> {
                Ok(Alpha::Fixed(alpha as f64))
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Alpha, E> {
                match word {
                    "auto" => Ok(Alpha::Auto),
                    "inf" => Ok(Alpha::Fixed(f64::INFINITY)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(NumberOrAuto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_published_ratios_of_llama_2_7b_are_selected_by_a_rounded_alpha() {
        // Seventeen groups, as rounded in the literature; the paper's α is 6.68, the smallest ratio 6.6836.
        let ratios = [
            4136.0, 138.75, 17.8, 14.8, 13.75, 11.7, 11.2, 9.06, 8.34, 7.97, 7.59, 7.27, 7.13, 7.0, 6.73,
            6.71, 6.68,
        ];
        assert_eq!(count_at_least(&ratios, 6.675), 17);
        // Mistral's smallest listed ratio is its α: the bound belongs to the selection.
        assert_eq!(count_at_least(&[3866.0, 100.0, 49.0], 49.0), 3);
        assert_eq!(count_at_least(&ratios, f64::INFINITY), 0);
        assert_eq!(count_at_least(&ratios, 0.0), 17);
    }

    proptest! {
        #[test]
        fn the_automatic_rule_finds_what_a_full_search_finds(most in 0usize..40, cut in 0usize..45) {
            // Perplexity falls in one step: bisection and exhaustion must agree.
            let perplexity = |k: usize| if k < cut { 20.0 } else { 10.0 };
            let (found, seen) = smallest_sufficient::<()>(most, 0.005, |k| Ok(perplexity(k))).unwrap();
            let expected = if cut <= most { cut } else { 0 };
            prop_assert_eq!(found, expected);
            prop_assert!(seen.len() <= 2 * (usize::BITS - most.leading_zeros()) as usize + 3);
        }
    }

    #[test]
    fn alpha_is_written_so_that_infinity_is_not_nothing() {
        let qfem = |alpha| Qfem {
            alpha: Some(alpha),
            top: None,
            epsilon: None,
            ratio: Ratio::Sequences,
            of: Of::Original,
        };
        let written = |alpha| serde_json::to_value(qfem(alpha)).unwrap();
        assert_eq!(written(Alpha::Fixed(f64::INFINITY))["alpha"], "inf");
        assert_eq!(written(Alpha::Auto)["alpha"], "auto");
        let back: Qfem = serde_json::from_value(written(Alpha::Fixed(f64::INFINITY))).unwrap();
        assert_eq!(back.alpha, Some(Alpha::Fixed(f64::INFINITY)));
        for wrong in [-1.0, f64::NAN] {
            assert!(qfem(Alpha::Fixed(wrong)).check().unwrap_err().starts_with("`alpha`"));
        }
    }
}
