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
    /// How a token's position enters.
    #[serde(rename = "rope")]
    pub positions: Positions,
    /// Output head.
    pub head: Head,
    /// Factor on the embedding.
    #[serde(skip_serializing_if = "EmbeddingScale::is_absent")]
    pub embedding: EmbeddingScale,
    /// Further norms, on what attention and the feed-forward part give.
    #[serde(skip_serializing_if = "PostNorms::is_absent")]
    pub post_norms: PostNorms,
    /// What becomes of the head's outputs.
    #[serde(skip_serializing_if = "Logits::is_plain")]
    pub logits: Logits,
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
    /// How far back a token sees.
    #[serde(skip_serializing_if = "Window::is_absent")]
    pub window: Window,
    /// Factor on the scores.
    #[serde(skip_serializing_if = "ScoreScale::is_head_dim")]
    pub scale: ScoreScale,
    /// Whether scores are capped.
    #[serde(skip_serializing_if = "Cap::is_absent")]
    pub cap: Cap,
    /// Norms of queries and keys, before their positions enter.
    #[serde(skip_serializing_if = "QkNorm::is_absent")]
    pub qk_norm: QkNorm,
}

/// How far back a token sees. A window of n tokens holds the token itself and the n − 1 before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Window {
    /// To the first token, in every block.
    Absent,
    /// A window in every block.
    Everywhere {
        /// Its length.
        tokens: usize,
    },
    /// A window in some blocks; the others see everything.
    Blocks {
        /// Its length.
        tokens: usize,
        /// Zero-based, ascending.
        blocks: Vec<usize>,
    },
}

impl Window {
    fn is_absent(&self) -> bool {
        *self == Window::Absent
    }

    /// The window of block `layer`, in tokens; `None` where it sees everything.
    pub fn of(&self, layer: usize) -> Option<usize> {
        match self {
            Window::Absent => None,
            Window::Everywhere { tokens } => Some(*tokens),
            Window::Blocks { tokens, blocks } => blocks.binary_search(&layer).is_ok().then_some(*tokens),
        }
    }

    /// A window of `tokens` in `blocks` of a decoder of `layers`, in the form that says it shortest.
    pub(crate) fn in_blocks(tokens: usize, blocks: Vec<usize>, layers: usize) -> Self {
        match blocks.len() {
            0 => Window::Absent,
            n if n == layers => Window::Everywhere { tokens },
            _ => Window::Blocks { tokens, blocks },
        }
    }
}

/// Factor on the scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreScale {
    /// 1 / sqrt(head_dim)
    HeadDim,
    /// 1 / sqrt(this): Gemma's `query_pre_attn_scalar`.
    Of(f64),
}

impl ScoreScale {
    fn is_head_dim(&self) -> bool {
        *self == ScoreScale::HeadDim
    }

    /// The factor.
    pub fn factor(self, head_dim: usize) -> f64 {
        match self {
            ScoreScale::HeadDim => 1.0 / (head_dim as f64).sqrt(),
            ScoreScale::Of(scalar) => 1.0 / scalar.sqrt(),
        }
    }
}

/// Whether values are capped softly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cap {
    /// No.
    Absent,
    /// c · tanh(x / c), before the mask and the softmax.
    Tanh(f64),
}

impl Cap {
    fn is_absent(&self) -> bool {
        *self == Cap::Absent
    }
}

/// Norms of queries and keys over the channels of a head, of the architecture's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// None.
    Absent,
    /// All heads share one weight.
    Shared,
    /// Every head has a weight of its own.
    PerHead,
}

impl QkNorm {
    fn is_absent(&self) -> bool {
        *self == QkNorm::Absent
    }
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

/// Feed-forward part.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mlp {
    /// Channels between up and down.
    pub intermediate: usize,
    /// Whether its linears carry a bias.
    pub bias: Bias,
    /// What it computes.
    #[serde(skip_serializing_if = "MlpForm::is_plain_swiglu")]
    pub form: MlpForm,
}

/// What a feed-forward part computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum MlpForm {
    /// down(act(gate(x)) · up(x)), behind attention.
    Gated(Activation),
    /// The same beside attention: both read one norm's output, and both are added to the stream at once.
    Parallel(Activation),
    /// down(act(up(x))), behind attention.
    Plain(Activation),
    /// Gated experts, of which a router chooses some for every token; their outputs are weighted with the softmax over
    /// the chosen ones' scores.
    Experts {
        /// How many there are.
        count: usize,
        /// How many a token goes to.
        chosen: usize,
        /// Of every expert's gate.
        activation: Activation,
    },
}

impl MlpForm {
    fn is_plain_swiglu(&self) -> bool {
        *self == MlpForm::Gated(Activation::Silu)
    }
}

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// x / (1 + e^−x)
    Silu,
    /// x/2 · (1 + tanh(sqrt(2/π) · (x + 0.044715 x³)))
    GeluTanh,
    /// max(x, 0)
    Relu,
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

/// Normalisation.
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
    /// The same without b: Cohere's.
    LayerUnbiased {
        /// ε
        eps: f64,
    },
}

/// How a token's position enters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Positions {
    /// Queries and keys are turned.
    Rotary(Rope),
    /// A table's row is added to the embedding.
    Learned(Table),
}

/// A table of learned positions: position p has row p + `offset`, and there are `context` + `offset` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Table {
    /// Rows in front that no position reads.
    pub offset: usize,
}

/// Rotary position embedding over all channels of a head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rope {
    /// Base θ: pair i turns by position · θ^(−2i/head_dim).
    pub theta: f64,
    /// How frequencies are stretched beyond the original context.
    pub scaling: RopeScaling,
    /// Which channels are a pair.
    #[serde(skip_serializing_if = "Pairs::is_halves")]
    pub pairs: Pairs,
    /// What holds in blocks with a window instead.
    #[serde(skip_serializing_if = "LocalRope::is_same")]
    pub local: LocalRope,
}

/// Which channels of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairs {
    /// (i, i + head_dim/2)
    Halves,
    /// (2i, 2i + 1)
    Neighbours,
}

impl Pairs {
    fn is_halves(&self) -> bool {
        *self == Pairs::Halves
    }
}

/// Rotary embedding in blocks with a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalRope {
    /// As in the others.
    Same,
    /// Another base θ, and no stretching.
    Theta(f64),
}

impl LocalRope {
    fn is_same(&self) -> bool {
        *self == LocalRope::Same
    }
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

/// Factor on the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddingScale {
    /// None.
    Absent,
    /// sqrt(hidden), rounded to f32, in which the model is computed.
    RootHidden,
}

impl EmbeddingScale {
    fn is_absent(&self) -> bool {
        *self == EmbeddingScale::Absent
    }
}

/// Norms on what attention and the feed-forward part give, before it is added to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PostNorms {
    /// None.
    Absent,
    /// One on each.
    Present,
}

impl PostNorms {
    fn is_absent(&self) -> bool {
        *self == PostNorms::Absent
    }
}

/// What becomes of the head's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Logits {
    /// They are the logits.
    Plain,
    /// c · tanh(x / c)
    Capped(f64),
    /// Times a factor.
    Scaled(f64),
}

impl Logits {
    fn is_plain(&self) -> bool {
        *self == Logits::Plain
    }
}

impl Rope {
    /// As it is where every block is alike.
    pub fn plain(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::Plain, pairs: Pairs::Halves, local: LocalRope::Same }
    }

    /// What holds in blocks with a window, where it differs.
    pub fn in_windows(&self) -> Option<Rope> {
        match self.local {
            LocalRope::Same => None,
            LocalRope::Theta(theta) => Some(Rope { pairs: self.pairs, ..Rope::plain(theta) }),
        }
    }

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

impl Activation {
    /// Whether act(x·s) = act(x)·s for every s above zero, so that a scale goes through.
    pub fn is_homogeneous(self) -> bool {
        match self {
            Activation::Relu => true,
            Activation::Silu | Activation::GeluTanh => false,
        }
    }
}

impl Norm {
    /// Whether it has a bias, which a shift of its output can enter.
    pub fn has_bias(self) -> bool {
        match self {
            Norm::Layer { .. } => true,
            Norm::Rms { .. } | Norm::RmsOffset { .. } | Norm::LayerUnbiased { .. } => false,
        }
    }
}

impl Architecture {
    /// Number of weights and biases, the head counted once where it is tied.
    pub fn parameters(&self) -> u64 {
        let (h, a, f) = (self.hidden, &self.attention, self.mlp.intermediate);
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let norm = if self.norm.has_bias() { 2 * h } else { h };
        let mut block = h * (q + 2 * kv) + q * h;
        block += match a.bias {
            AttentionBias::Absent => 0,
            AttentionBias::Qkv => q + 2 * kv,
            AttentionBias::All => q + 2 * kv + h,
        };
        block += match a.qk_norm {
            QkNorm::Absent => 0,
            QkNorm::Shared => 2 * a.head_dim,
            QkNorm::PerHead => q + kv,
        };
        let biased = usize::from(self.mlp.bias == Bias::Present);
        block += match self.mlp.form {
            MlpForm::Gated(_) => 3 * h * f + biased * (2 * f + h) + 2 * norm,
            MlpForm::Parallel(_) => 3 * h * f + biased * (2 * f + h) + norm,
            MlpForm::Plain(_) => 2 * h * f + biased * (f + h) + 2 * norm,
            MlpForm::Experts { count, .. } => {
                count * h + count * (3 * h * f + biased * (2 * f + h)) + 2 * norm
            }
        };
        if self.post_norms == PostNorms::Present {
            block += 2 * norm;
        }
        let tables = match self.head {
            Head::Tied => 1,
            Head::Untied => 2,
        };
        let positions = match self.positions {
            Positions::Rotary(_) => 0,
            Positions::Learned(Table { offset }) => (self.context + offset) * h,
        };
        (self.layers * block + norm + tables * self.vocabulary * h + positions) as u64
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
            attention: Attention {
                heads: 9,
                kv_heads: 3,
                head_dim: 64,
                bias: AttentionBias::Absent,
                window: Window::Absent,
                scale: ScoreScale::HeadDim,
                cap: Cap::Absent,
                qk_norm: QkNorm::Absent,
            },
            mlp: Mlp { intermediate: 1536, bias: Bias::Absent, form: MlpForm::Gated(Activation::Silu) },
            norm: Norm::Rms { eps: 1e-5 },
            positions: Positions::Rotary(Rope::plain(100000.0)),
            head: Head::Tied,
            embedding: EmbeddingScale::Absent,
            post_norms: PostNorms::Absent,
            logits: Logits::Plain,
        };
        let json = |architecture: &Architecture| serde_json::to_string(architecture).unwrap();
        assert_eq!(
            json(&architecture),
            r#"{"vocabulary":49152,"hidden":576,"layers":30,"context":8192,"attention":{"heads":9,"kv-heads":3,"head-dim":64,"bias":"absent"},"mlp":{"intermediate":1536,"bias":"absent"},"norm":{"rms":{"eps":0.00001}},"rope":{"theta":100000.0,"scaling":"plain"},"head":"tied"}"#
        );
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192 };
        architecture.positions = Positions::Rotary(Rope { scaling, ..Rope::plain(100000.0) });
        assert!(
            json(&architecture).contains(
                r#""scaling":{"llama3":{"factor":8.0,"low":1.0,"high":4.0,"original-context":8192}}"#
            )
        );
        architecture.positions = Positions::Learned(Table { offset: 2 });
        assert!(json(&architecture).contains(r#""rope":{"offset":2},"head""#));
        architecture.attention.window = Window::in_blocks(512, vec![0, 2], 30);
        architecture.logits = Logits::Capped(30.0);
        let text = json(&architecture);
        assert!(
            text.contains(r#""bias":"absent","window":{"blocks":{"tokens":512,"blocks":[0,2]}}}"#),
            "{text}"
        );
        assert!(text.ends_with(r#""head":"tied","logits":{"capped":30.0}}"#), "{text}");
    }

    #[test]
    fn a_window_is_of_the_blocks_it_names() {
        let of = |window: Window| [0, 1, 2].map(|layer| window.of(layer));
        assert_eq!(of(Window::in_blocks(8, vec![], 3)), [None; 3]);
        assert_eq!(of(Window::in_blocks(8, vec![0, 1, 2], 3)), [Some(8); 3]);
        assert_eq!(of(Window::in_blocks(8, vec![0, 2], 3)), [Some(8), None, Some(8)]);
    }
}
