//! Normalisation of the residual stream, in the forms that families use.
//!
//! Each form is written with tensor operations, which run on every device and under autodiff, and as one pass over host
//! memory for when no gradient is asked for; tests hold the two together, and both to the formula in f64.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::architecture::Norm;
use crate::kernel::{GRAIN, on_host};
use crate::simd;

/// A normalisation and its weights: over the last dimension, each token for itself.
#[derive(Clone, Debug)]
pub struct Normalisation {
    /// The formula and its ε.
    pub kind: Norm,
    /// `[hidden]`
    pub weight: Tensor<1>,
    /// `[hidden]`; LayerNorm's.
    pub bias: Option<Tensor<1>>,
}

impl Normalisation {
    /// The normalised rows.
    ///
    /// # Shapes
    /// `[sequences, tokens, hidden]` in and out.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        if !on_host(&x.device()) {
            return self.forward_on_device(x);
        }
        let [sequences, tokens, hidden] = x.dims();
        let device = x.device();
        let (weight, bias) = (self.weight.to_data(), self.bias.as_ref().map(Tensor::to_data));
        let weight = weight.as_slice::<f32>().expect("norm weights are f32");
        let bias = bias.as_ref().map(|bias| bias.as_slice::<f32>().expect("norm biases are f32"));
        let data = x.try_into_data().expect("a host tensor can be read");
        let values = data.as_slice::<f32>().expect("activations are f32");
        let mut out = vec![0.0f32; values.len()];
        let rows = out.par_chunks_mut(hidden).zip(values.par_chunks(hidden)).with_min_len(GRAIN / hidden + 1);
        match self.kind {
            Norm::Rms { eps } => rows.for_each(|(out, row)| {
                let scale = inverse_rms(row, eps);
                for ((o, &x), &w) in out.iter_mut().zip(row).zip(weight) {
                    *o = x * scale * w;
                }
            }),
            Norm::RmsOffset { eps } => rows.for_each(|(out, row)| {
                let scale = inverse_rms(row, eps);
                for ((o, &x), &w) in out.iter_mut().zip(row).zip(weight) {
                    *o = x * scale * (1.0 + w);
                }
            }),
            Norm::Layer { eps } | Norm::LayerUnbiased { eps } => rows.for_each(|(out, row)| {
                let mean = simd::sum(row) / hidden as f32;
                for (o, &x) in out.iter_mut().zip(row) {
                    *o = x - mean;
                }
                let scale = inverse_rms(out, eps);
                for (o, &w) in out.iter_mut().zip(weight) {
                    *o = *o * scale * w;
                }
                for (o, &b) in out.iter_mut().zip(bias.unwrap_or_default()) {
                    *o += b;
                }
            }),
        }
        Tensor::from_data(TensorData::new(out, [sequences, tokens, hidden]), &device)
    }

    fn forward_on_device(&self, x: Tensor<3>) -> Tensor<3> {
        let weight = self.weight.clone().unsqueeze();
        let scaled = |x: Tensor<3>, eps: f64| {
            let scale = (x.clone().square().mean_dim(2) + eps).sqrt().recip();
            x * scale
        };
        match self.kind {
            Norm::Rms { eps } => scaled(x, eps) * weight,
            Norm::RmsOffset { eps } => scaled(x, eps) * (weight + 1.0),
            Norm::Layer { eps } | Norm::LayerUnbiased { eps } => {
                let mean = x.clone().mean_dim(2);
                let y = scaled(x - mean, eps) * weight;
                match &self.bias {
                    Some(bias) => y + bias.clone().unsqueeze(),
                    None => y,
                }
            }
        }
    }

    /// The normalisation whose output channel c is this one's divided by `scales[c]`: w/s and b/s, or (1 + w)/s − 1
    /// where the formula adds the one. In f64, rounded once.
    ///
    /// # Panics
    /// If there is not one scale per channel.
    pub fn divided_by(&self, scales: &[f64]) -> Self {
        let plain = |w: f64, s: f64| w / s;
        // (1 + w)/s − 1, written so that a scale of one gives w back whatever its magnitude.
        let offset = |w: f64, s: f64| (w + (1.0 - s)) / s;
        let weight = match self.kind {
            Norm::Rms { .. } | Norm::Layer { .. } | Norm::LayerUnbiased { .. } => {
                changed(&self.weight, scales, plain)
            }
            Norm::RmsOffset { .. } => changed(&self.weight, scales, offset),
        };
        let bias = self.bias.as_ref().map(|bias| changed(bias, scales, plain));
        Self { kind: self.kind, weight, bias }
    }
}

fn changed(x: &Tensor<1>, scales: &[f64], change: impl Fn(f64, f64) -> f64) -> Tensor<1> {
    let values = x.to_data().try_to_vec::<f32>().expect("norm weights are f32");
    assert_eq!(values.len(), scales.len(), "one scale per channel");
    let values: Vec<f32> = values.iter().zip(scales).map(|(&w, &s)| change(f64::from(w), s) as f32).collect();
    Tensor::from_data(TensorData::new(values, [scales.len()]), &x.device())
}

/// 1 / sqrt(mean(x²) + ε)
fn inverse_rms(row: &[f32], eps: f64) -> f32 {
    1.0 / (simd::sum_of_squares(row) / row.len() as f32 + eps as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    const HIDDEN: usize = 37;
    const ROWS: usize = 6;
    const KINDS: [Norm; 4] = [
        Norm::Rms { eps: 1e-5 },
        Norm::RmsOffset { eps: 1e-6 },
        Norm::Layer { eps: 1e-5 },
        Norm::LayerUnbiased { eps: 1e-5 },
    ];

    /// Values between −1 and 1 in no order; far from zero mean where `shift` is not 0.
    fn values(count: usize, step: usize, shift: f32) -> Vec<f32> {
        (0..count).map(|i| (i * step % 101) as f32 / 50.0 - 1.0 + shift).collect()
    }

    fn norm(kind: Norm, device: &Device) -> Normalisation {
        let tensor = |values| Tensor::from_data(TensorData::new(values, [HIDDEN]), device);
        let bias = matches!(kind, Norm::Layer { .. }).then(|| tensor(values(HIDDEN, 29, 0.25)));
        Normalisation { kind, weight: tensor(values(HIDDEN, 53, 0.5)), bias }
    }

    fn run(norm: &Normalisation, x: &[f32], device: &Device) -> Vec<f32> {
        let x = Tensor::from_data(TensorData::new(x.to_vec(), [2, ROWS / 2, HIDDEN]), device);
        norm.forward(x).to_data().try_to_vec().unwrap()
    }

    /// The formulas, in f64.
    fn expected(norm: &Normalisation, x: &[f32]) -> Vec<f64> {
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let w = wide(&norm.weight.to_data().try_to_vec::<f32>().unwrap());
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let mean_square = |x: &[f64]| mean(&x.iter().map(|x| x * x).collect::<Vec<_>>());
        x.chunks(HIDDEN)
            .flat_map(|row| {
                let row = wide(row);
                match norm.kind {
                    Norm::Rms { eps } => {
                        let rms = (mean_square(&row) + eps).sqrt();
                        (0..HIDDEN).map(|c| row[c] / rms * w[c]).collect::<Vec<_>>()
                    }
                    Norm::RmsOffset { eps } => {
                        let rms = (mean_square(&row) + eps).sqrt();
                        (0..HIDDEN).map(|c| row[c] / rms * (1.0 + w[c])).collect()
                    }
                    Norm::Layer { eps } | Norm::LayerUnbiased { eps } => {
                        let b = norm.bias.as_ref().map(|b| wide(&b.to_data().try_to_vec::<f32>().unwrap()));
                        let b = b.unwrap_or_else(|| vec![0.0; HIDDEN]);
                        let mean = mean(&row);
                        let centred: Vec<f64> = row.iter().map(|x| x - mean).collect();
                        let std = (mean_square(&centred) + eps).sqrt();
                        (0..HIDDEN).map(|c| centred[c] / std * w[c] + b[c]).collect()
                    }
                }
            })
            .collect()
    }

    #[test]
    fn both_paths_are_the_formulas() {
        for kind in KINDS {
            for shift in [0.0, 7.0] {
                let x = values(ROWS * HIDDEN, 37, shift);
                for device in [Device::flex(), Device::flex().autodiff()] {
                    let norm = norm(kind, &device);
                    for (found, expected) in run(&norm, &x, &device).iter().zip(expected(&norm, &x)) {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(error < 2e-5, "{kind:?}, {device:?}: {found} instead of {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_formulas_agree_with_pytorch() {
        // torch 2.15, x = [0.5, -1.25, 3.0, 0.125], w = [0.5, 1.0, -2.0, 0.25], b = [0.1, -0.2, 0.3, 0.0], ε = 1e-5:
        // F.rms_norm(x, (4,), w, 1e-5), F.rms_norm(x, (4,), 1 + w, 1e-5), F.layer_norm(x, (4,), w, b, 1e-5).
        let golden = [
            [0.151_947_16, -0.759_735_76, -3.646_731_9, 0.018_993_394],
            [0.455_841_48, -1.519_471_5, -1.823_365_9, 0.094_966_97],
            [0.069_451_38, -1.401_579_4, -2.836_326, -0.076_371_57],
        ];
        let device = Device::flex();
        let tensor = |values: [f32; 4]| Tensor::from_data(TensorData::from(values), &device);
        for (kind, golden) in
            [Norm::Rms { eps: 1e-5 }, Norm::RmsOffset { eps: 1e-5 }, Norm::Layer { eps: 1e-5 }]
                .into_iter()
                .zip(golden)
        {
            let bias = matches!(kind, Norm::Layer { .. }).then(|| tensor([0.1, -0.2, 0.3, 0.0]));
            let norm = Normalisation { kind, weight: tensor([0.5, 1.0, -2.0, 0.25]), bias };
            let x = Tensor::from_data(TensorData::from([[[0.5f32, -1.25, 3.0, 0.125]]]), &device);
            let found = norm.forward(x).to_data().try_to_vec::<f32>().unwrap();
            for (found, golden) in found.iter().zip(golden) {
                assert!((found - golden).abs() < 1e-6, "{kind:?}: {found} instead of {golden}");
            }
        }
    }

    #[test]
    fn dividing_divides_the_output() {
        let device = Device::flex();
        let x = values(ROWS * HIDDEN, 37, 0.3);
        let scales: Vec<f64> =
            (0..HIDDEN).map(|c| 0.2 * 25f64.powf((c * 11 % HIDDEN) as f64 / 36.0)).collect();
        for kind in KINDS {
            let norm = norm(kind, &device);
            let (plain, divided) = (run(&norm, &x, &device), run(&norm.divided_by(&scales), &x, &device));
            for (i, (plain, divided)) in plain.iter().zip(divided).enumerate() {
                let expected = f64::from(*plain) / scales[i % HIDDEN];
                assert!((f64::from(divided) - expected).abs() < 1e-5, "{kind:?}: {divided}, not {expected}");
            }
        }
    }

    #[test]
    fn dividing_by_one_changes_no_bit() {
        let device = Device::flex();
        for kind in KINDS {
            let mut norm = norm(kind, &device);
            // Below the last bit of 1 + w, even in f64.
            norm.weight = norm.weight * 1e-25;
            let same = norm.divided_by(&[1.0; HIDDEN]);
            let bytes =
                |x: &Tensor<1>| x.to_data().try_to_vec::<f32>().unwrap().into_iter().map(f32::to_bits);
            assert!(bytes(&norm.weight).eq(bytes(&same.weight)), "{kind:?}");
            assert!(norm.bias.iter().zip(&same.bias).all(|(a, b)| bytes(a).eq(bytes(b))), "{kind:?}");
        }
    }
}
