//! `layer-error`: what rounding every linear group costs at its output, under smoothing, rotation and both.
//!
//! # Equation
//! For an activation X (tokens × channels), the weights W (outputs × channels) that read it, and a transform that leaves
//! X·Wᵀ as it is: E = ‖X·Wᵀ − Q(X')·Q(W')ᵀ‖², the sum over all tokens and outputs, where Q rounds every token of X' and
//! every output channel of W' with a scale of its own (symmetric, Δ = max/q, codes −q−1 … q: `absmax-full`).
//!
//! | transform | X' | W' |
//! |---|---|---|
//! | `none` | X | W |
//! | `smooth` | X·diag(s)⁻¹ | W·diag(s), s_j = max_t \|X_tj\|^α / max(max_i \|W_ij\|, 10⁻⁵)^(1−α), at least 10⁻⁵ |
//! | `rotate` | X·H/√d | W·H/√d, H a Hadamard matrix |
//! | `hybrid` | smooth, then rotate | |
//! | `reverse` | rotate, then smooth | |
//!
//! The value of a transform is the total of E over all groups of all blocks; the output head is left out. Beside it the
//! record keeps, for every group: the estimate (‖W'‖²·Σ_t Δ_t² + ‖X'‖²·Σ_i Δ_i²)/12; the quantization difficulty
//! D = std over channels j of ‖X'_·j‖₂ (denominator n − 1; of weights down their outputs) and its scale-free form
//! D·√d/‖X'‖; kurtosis, greatest magnitude, greatest token scale over the lower median.
//!
//! # Parameters
//! `mode` `released` or `honest` · `corpus` · `length` 128 · `samples` 1 in released mode, 8 in honest · `bos` none ·
//! `seed` 0 · `bits` 4 · `alpha` 0.5 · `calibration` of honest mode: `corpus`, `samples` 16, `length` 128.
//!
//! In `released` mode, as in the paper's code, one linear stands for its group (k, o, gate, down) and s comes from its own
//! weight and from the very tokens that are measured. In `honest` mode all linears of a group count, and s is what the
//! step `smooth` would take from separate calibration samples: largest weights over the whole group, one scale where value
//! heads are shared.
//!
//! # Reference
//! arXiv:2506.01967 (difficulty, hybrid, the layer-wise error) with its released code; SmoothQuant, arXiv:2211.10438,
//! equation 4; QuaRot, arXiv:2404.00456. The honest mode, the reverse order in it and the scale-free form are ours.

pub mod collect;
pub mod pair;
pub mod products;

use serde::{Deserialize, Serialize};

use crate::data::{BosPolicy, CorpusRef};
use crate::layerwise::pair::Transform;

/// Raised whenever a number could move.
pub const VERSION: u32 = 1;

/// Tokens that are looked at together at most: a block's activation and its transform are held in f64.
pub const MOST_TOKENS: usize = 16_384;

/// An `[[evaluate]]` block with `metric = "layer-error"`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerError {
    /// Which weights count, and where smoothing scales come from.
    pub mode: Mode,
    /// The text.
    pub corpus: CorpusRef,
    /// Tokens per sample, BOS included where the policy adds one.
    pub length: usize,
    /// Samples, drawn from anywhere in the text.
    pub samples: usize,
    /// Where BOS stands, also in calibration samples.
    pub bos: BosPolicy,
    /// Draws the samples.
    pub seed: u64,
    /// Of weights and activations.
    pub bits: u8,
    /// Migration strength of smoothing.
    pub alpha: f64,
    /// What smoothing scales come from in honest mode.
    pub calibration: Option<Separate>,
}

/// Samples that are not measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Separate {
    /// The text.
    pub corpus: CorpusRef,
    /// Samples.
    pub samples: usize,
    /// Tokens per sample.
    pub length: usize,
}

/// Which weights count, and where smoothing scales come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As the paper's code: one linear per group, scales from what is measured.
    Released,
    /// Every linear of a group, scales from other samples.
    Honest,
}

impl Mode {
    /// The word used in files and metric ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Released => "released",
            Mode::Honest => "honest",
        }
    }
}

impl LayerError {
    /// The full metric id without the transform: what all five measurements, and the file of their rows, share.
    pub fn protocol(&self) -> String {
        let calibration = self.calibration.as_ref().map_or(String::new(), |set| {
            format!("/calibration={}-{}x{}", set.corpus.label(), set.samples, set.length)
        });
        format!(
            "layer-error/{}/{}/{}/bos={}/samples={}/seed={}/bits={}/alpha={}{calibration}",
            self.mode.as_str(),
            self.corpus.label(),
            self.length,
            self.bos.as_str(),
            self.samples,
            self.seed,
            self.bits,
            self.alpha,
        )
    }

    /// The full metric id of a transform, e.g.
    /// `layer-error/released/wikitext2-test/128/bos=none/samples=1/seed=0/bits=4/alpha=0.5/transform=hybrid`.
    pub fn id(&self, transform: Transform) -> String {
        format!("{}/transform={}", self.protocol(), transform.as_str())
    }

    /// Tokens of its longest sequence.
    pub fn longest(&self) -> usize {
        self.calibration.as_ref().map_or(0, |set| set.length).max(self.length)
    }
}
