//! A decoder described as data: what a family's `config.json` is turned into, and all that the forward pass knows.
//!
//! Features are enums, so that a combination that no checkpoint has cannot be written down.

use serde::Serialize;

/// A decoder-only transformer.
///
/// Its serialization enters the ids of cells and must not change for a checkpoint that exists: fields are neither
/// renamed nor reordered, and a feature that is added later comes as a field behind the others, not written
/// (`skip_serializing_if`) where it has the value that all earlier checkpoints have.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Architecture {
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Longest sequence the checkpoint was made for, in tokens.
    pub context: usize,
    /// Attention of every block.
    pub attention: Attention,
    /// Feed-forward part of every block.
    pub mlp: Mlp,
    /// Normalisation before attention, before the feed-forward part, and at the end.
    pub norm: Norm,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Output head.
    pub head: Head,
}

/// Grouped-query attention; multi-head where `kv_heads == heads`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels per head; need not be `hidden / heads`.
    pub head_dim: usize,
    /// Which projections carry a bias.
    pub bias: AttentionBias,
}

/// Which of the attention's projections carry a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionBias {
    /// None.
    Absent,
    /// q, k and v.
    Qkv,
    /// q, k, v and o.
    All,
}

/// Feed-forward part: down(silu(gate(x)) · up(x)).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mlp {
    /// Channels between up and down.
    pub intermediate: usize,
    /// Whether gate, up and down carry a bias.
    pub bias: Bias,
}

/// Whether linears carry a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bias {
    /// No.
    Absent,
    /// Yes.
    Present,
}

/// Normalisation. A family's `config.json` chooses; so far only `Rms` is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Norm {
    /// x / sqrt(mean(x²) + ε) · w: Llama's.
    Rms {
        /// ε
        eps: f64,
    },
    /// x / sqrt(mean(x²) + ε) · (1 + w): Gemma's, whose checkpoints hold the distance from one.
    RmsOffset {
        /// ε
        eps: f64,
    },
    /// (x − mean(x)) / sqrt(var(x) + ε) · w + b, the variance over all channels: LayerNorm.
    Layer {
        /// ε
        eps: f64,
    },
}

/// Rotary position embedding over all channels of a head; pairs are (i, i + head_dim/2).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rope {
    /// Base θ: pair i turns by position · θ^(−2i/head_dim).
    pub theta: f64,
    /// How frequencies are stretched beyond the original context.
    pub scaling: RopeScaling,
}

/// Stretching of rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum RopeScaling {
    /// As trained.
    Plain,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear ramp between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are divided.
        low: f64,
        /// Wavelengths below `original_context / high` are kept.
        high: f64,
        /// Context before stretching, in tokens.
        original_context: usize,
    },
}

/// The output head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// Shares the embedding table.
    Tied,
    /// Has its own weight.
    Untied,
}

impl Rope {
    /// Angle per position of each pair of channels, radians, length `head_dim / 2`.
    ///
    /// Llama-3 scaling follows the released model code: wavelengths λ = 2π/f longer than `original/low` are divided by
    /// the factor, shorter than `original/high` kept, and between them f is blended linearly in original/λ.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let f = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                match self.scaling {
                    RopeScaling::Plain => f,
                    RopeScaling::Linear { factor } => f / factor,
                    RopeScaling::Llama3 { factor, low, high, original_context } => {
                        let wavelength = 2.0 * std::f64::consts::PI / f;
                        let context = original_context as f64;
                        if wavelength < context / high {
                            f
                        } else if wavelength > context / low {
                            f / factor
                        } else {
                            let keep = (context / wavelength - low) / (high - low);
                            (1.0 - keep) * f / factor + keep * f
                        }
                    }
                }
            })
            .collect()
    }
}

impl Architecture {
    /// Number of weights and biases, the head counted once where it is tied.
    pub fn parameters(&self) -> u64 {
        let (h, a) = (self.hidden, &self.attention);
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let norm = match self.norm {
            Norm::Rms { .. } | Norm::RmsOffset { .. } => h,
            Norm::Layer { .. } => 2 * h,
        };
        let mut block = h * (q + 2 * kv) + q * h + 3 * h * self.mlp.intermediate + 2 * norm;
        if a.bias != AttentionBias::Absent {
            block += q + 2 * kv;
        }
        if a.bias == AttentionBias::All {
            block += h;
        }
        if self.mlp.bias == Bias::Present {
            block += 2 * self.mlp.intermediate + h;
        }
        let tables = match self.head {
            Head::Tied => 1,
            Head::Untied => 2,
        };
        (self.layers * block + norm + tables * self.vocabulary * h) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serialization_of_existing_checkpoints_stands() {
        let mut architecture = Architecture {
            vocabulary: 49152,
            hidden: 576,
            layers: 30,
            context: 8192,
            attention: Attention { heads: 9, kv_heads: 3, head_dim: 64, bias: AttentionBias::Absent },
            mlp: Mlp { intermediate: 1536, bias: Bias::Absent },
            norm: Norm::Rms { eps: 1e-5 },
            rope: Rope { theta: 100000.0, scaling: RopeScaling::Plain },
            head: Head::Tied,
        };
        let json = |architecture: &Architecture| serde_json::to_string(architecture).unwrap();
        assert_eq!(
            json(&architecture),
            r#"{"vocabulary":49152,"hidden":576,"layers":30,"context":8192,"attention":{"heads":9,"kv-heads":3,"head-dim":64,"bias":"absent"},"mlp":{"intermediate":1536,"bias":"absent"},"norm":{"rms":{"eps":0.00001}},"rope":{"theta":100000.0,"scaling":"plain"},"head":"tied"}"#
        );
        architecture.rope.scaling =
            RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192 };
        assert!(
            json(&architecture).contains(
                r#""scaling":{"llama3":{"factor":8.0,"low":1.0,"high":4.0,"original-context":8192}}"#
            )
        );
    }
}
