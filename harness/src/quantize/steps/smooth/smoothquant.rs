//! `smooth` by `smoothquant`: channel scales from the largest activations and the largest weights.
//!
//! # Equation
//! For channel j of a site, with a_j = max over all calibration tokens of |X_j| and w_j = max over all linears that read
//! the site and over their outputs of |W_ij|:
//!
//! s_j = max( a_j^α / max(w_j, 10⁻⁵)^(1−α), 10⁻⁵ ),  X' = X·diag(s)⁻¹,  W' = W·diag(s)
//!
//! 1/s is folded into what produces the activation, s into what reads it, in f64: `attn_in` and `mlp_in` into the norm
//! before them (Gemma's 1 + w as (1 + w)/s − 1), `down_in` into the rows of `up`, `o_in` into those of `v`. Where several
//! query heads read one value head, their channels share one scale, from the largest a and w among them. A channel that
//! is zero in all of the calibration set says nothing and keeps s = 1, where the released code takes 10⁻⁵.
//!
//! # Parameters
//! `alpha` 0 to 1, default 0.5 · `sites` of attn_in, o_in, mlp_in, down_in; default attn_in and mlp_in, the paper's.
//!
//! # Reference
//! SmoothQuant, arXiv:2211.10438, equation 4; weights' maximum over the concatenated linears and both clamps as in its
//! released code. Its runs on Llama-2 use α = 0.85, arXiv:2405.14428 uses 0.8; neither smooths o_in or down_in.

use models::{Group, Port};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quantize::steps::{Stage, smooth};
use crate::quantize::{Method, ModelFacts, ModelInFlight, StatisticsNeed, StepError, admissible};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Smoothquant {
    /// Migration strength: 0 leaves activations alone, 1 makes every channel's maximum 1. Default: 0.5.
    #[serde(default = "half")]
    pub alpha: f64,
    /// Sites to smooth. Default: `attn_in` and `mlp_in`.
    #[serde(default = "norms")]
    pub sites: Vec<String>,
}

fn half() -> f64 {
    0.5
}
fn norms() -> Vec<String> {
    [Port::AttnIn, Port::MlpIn].map(|port| port.as_str().to_string()).to_vec()
}

/// Where scales can be folded into a producer.
const ALLOWED: [Port; 4] = [Port::AttnIn, Port::OIn, Port::MlpIn, Port::DownIn];

/// Below it a maximum of weights, or a scale, counts as this.
const CLAMP: f64 = 1e-5;

impl Smoothquant {
    /// Defaults are written out as they are read.
    pub fn resolved(self) -> Self {
        self
    }
}

/// Equation 4: scales from the largest activation and the largest weight of every channel.
///
/// # Shapes
/// One value per channel, in and out.
pub fn scales(activations: &[f64], weights: &[f64], alpha: f64) -> Vec<f64> {
    let scale = |(&a, &w): (&f64, &f64)| {
        if a == 0.0 {
            return 1.0;
        }
        (a.powf(alpha) / w.max(CLAMP).powf(1.0 - alpha)).max(CLAMP)
    };
    activations.iter().zip(weights).map(scale).collect()
}

/// The largest |W_ij| of every input channel j over the linears of a group.
pub fn largest_weights(groups: &[&Group]) -> Vec<f64> {
    let mut largest: Vec<f64> = Vec::new();
    for linear in groups.iter().flat_map(|group| &group.linears) {
        let data = linear.weight.clone().abs().max_dim(0).try_into_data();
        let data = data.expect("weights can be read from their device");
        let row = data.as_slice::<f32>().expect("weights are f32");
        largest.resize(row.len(), 0.0);
        for (most, &w) in largest.iter_mut().zip(row) {
            *most = most.max(f64::from(w));
        }
    }
    largest
}

/// Gives every channel the largest value among those that share its producer.
pub fn shared_maxima(values: &mut [f64], producers: &[usize]) {
    let count = producers.iter().max().map_or(0, |last| last + 1);
    let mut largest = vec![0.0f64; count];
    for (value, &producer) in values.iter().zip(producers) {
        largest[producer] = largest[producer].max(*value);
    }
    for (value, &producer) in values.iter_mut().zip(producers) {
        *value = largest[producer];
    }
}

impl Method for Smoothquant {
    fn stage(&self) -> Stage {
        Stage::Smooth
    }

    fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(format!("`alpha` must be between 0 and 1, not {}", self.alpha));
        }
        smooth::check_sites(&self.sites, &ALLOWED)
    }

    fn claims(&self) -> Vec<String> {
        smooth::claims()
    }

    fn statistics(&self) -> StatisticsNeed {
        StatisticsNeed::Present
    }

    fn preserves_function(&self) -> bool {
        true
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        admissible::sites_of_model(Some(&self.sites), facts.architecture)?;
        smooth::check_scales(&self.sites, facts)
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        admissible::sites_of_model(Some(&self.sites), &model.decoder.architecture)?;
        let statistics = model.present.clone().expect("SmoothQuant asks for statistics");
        let mut found = Map::new();
        for port in smooth::ports(&self.sites) {
            let groups = model.decoder.groups();
            let of_port = groups.iter().filter(|(site, _)| site.port == port && !smooth::follows(*site));
            let fitted: Vec<_> =
                of_port.map(|(site, _)| (*site, largest_weights(&model.decoder.followers(*site)))).collect();
            for (site, mut weights) in fitted {
                let seen = statistics.sites.get(&site).ok_or_else(|| {
                    StepError::Statistics(format!("{site}: the calibration pass did not look here"))
                })?;
                let mut activations: Vec<f64> = seen.absmax_by_channel().into_iter().map(f64::from).collect();
                if let Some(producers) = model.decoder.sharing(site) {
                    shared_maxima(&mut activations, &producers);
                    shared_maxima(&mut weights, &producers);
                }
                let scales = scales(&activations, &weights, self.alpha);
                model.decoder.rescale(site, &scales)?;
                found.insert(site.to_string(), smooth::extremes(&scales));
            }
        }
        Ok(smooth::report(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor, TensorData};
    use models::Linear;
    use proptest::prelude::*;

    fn positive(n: usize) -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.01f64..100.0, n)
    }

    proptest! {
        #[test]
        fn one_evens_activations_zero_evens_weights_and_a_half_makes_them_equal(a in positive(8), w in positive(8)) {
            for (a, w, s) in a.iter().zip(&w).zip(scales(&a, &w, 1.0)).map(|((a, w), s)| (a, w, s)) {
                prop_assert!((a / s - 1.0).abs() < 1e-12 && w * s > 0.0);
            }
            for (w, s) in w.iter().zip(scales(&a, &w, 0.0)) {
                prop_assert!((w * s - 1.0).abs() < 1e-12);
            }
            for ((a, w), s) in a.iter().zip(&w).zip(scales(&a, &w, 0.5)) {
                prop_assert!((a / s - w * s).abs() <= 1e-12 * (a / s));
            }
        }

        #[test]
        fn scales_are_homogeneous_and_grow_with_the_data(a in positive(6), w in positive(6), c in 0.5f64..4.0, alpha in 0.0f64..=1.0) {
            let s = scales(&a, &w, alpha);
            let ca: Vec<f64> = a.iter().map(|a| c * a).collect();
            let cw: Vec<f64> = w.iter().map(|w| c * w).collect();
            for ((s, larger), heavier) in s.iter().zip(scales(&ca, &w, alpha)).zip(scales(&a, &cw, alpha)) {
                prop_assert!((larger / s - c.powf(alpha)).abs() < 1e-9);
                prop_assert!((heavier / s - c.powf(alpha - 1.0)).abs() < 1e-9);
                // A superset of data has maxima at least as large.
                prop_assert!(c < 1.0 || larger >= s * (1.0 - 1e-12));
            }
        }

        #[test]
        fn scaled_activations_times_scaled_weights_are_the_product(
            x in prop::collection::vec(-3.0f64..3.0, 12), w in prop::collection::vec(-3.0f64..3.0, 12),
        ) {
            // [3, 4] times [3, 4]ᵀ.
            let a: Vec<f64> = (0..4).map(|j| (0..3).map(|t| x[t * 4 + j].abs()).fold(0.0, f64::max)).collect();
            let m: Vec<f64> = (0..4).map(|j| (0..3).map(|i| w[i * 4 + j].abs()).fold(0.0, f64::max)).collect();
            let s = scales(&a, &m, 0.5);
            for t in 0..3 {
                for i in 0..3 {
                    let plain: f64 = (0..4).map(|j| x[t * 4 + j] * w[i * 4 + j]).sum();
                    let smooth: f64 = (0..4).map(|j| x[t * 4 + j] / s[j] * (w[i * 4 + j] * s[j])).sum();
                    prop_assert!((plain - smooth).abs() < 1e-12 * 40.0);
                }
            }
        }
    }

    #[test]
    fn ones_change_nothing_dead_channels_keep_one_and_clamps_hold() {
        assert_eq!(scales(&[1.0, 1.0], &[1.0, 1.0], 0.5), [1.0, 1.0]);
        assert_eq!(scales(&[0.0], &[3.0], 0.5), [1.0]);
        assert_eq!(scales(&[4.0], &[0.0], 0.5), [4f64.sqrt() / CLAMP.sqrt()]);
        assert_eq!(scales(&[1e-9], &[1e9], 0.5), [CLAMP]);
    }

    #[test]
    fn negative_weights_count_by_magnitude_and_linears_together() {
        let device = Device::flex();
        let linear = |values: Vec<f32>| {
            Linear::new("x".into(), Tensor::from_data(TensorData::new(values, [2, 2]), &device), None)
        };
        let group =
            Group { linears: vec![linear(vec![-5.0, 1.0, -2.0, 0.5]), linear(vec![1.0, -0.25, 0.0, -3.0])] };
        assert_eq!(largest_weights(&[&group]), [5.0, 3.0]);
    }

    #[test]
    fn channels_of_one_producer_share_their_maxima() {
        let mut values = [1.0, 2.0, 5.0, 1.5, 0.0, 3.0];
        shared_maxima(&mut values, &[0, 1, 0, 1, 2, 2]);
        assert_eq!(values, [5.0, 2.0, 5.0, 2.0, 3.0, 3.0]);
    }
}
