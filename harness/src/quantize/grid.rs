//! Grids: which values can be represented, and how a scale is chosen for them.
//!
//! Two codes that both say "symmetric 4-bit" differ by 13–30 % in squared error, so the convention is named and part
//! of a recipe's identity. Rounding is half to even everywhere (`torch.round`), and codes are always clamped.
//!
//! With `b` bits, `q = 2^(b−1) − 1`, `n = 2^b − 1`, and for one scale's share of the values `M = max|x|`,
//! `lo = min x`, `hi = max x`:
//!
//! | convention | Δ | zero point | codes | guard | found in |
//! |---|---|---|---|---|---|
//! | `absmax` | M/q | none | −q…q | M = 0 → Δ = 1 | the papers' formula; activation-spikes, clamped |
//! | `absmax-full` | M/q | none | −q−1…q | M = 0 → Δ = 1 | QuaRot, SpinQuant, FlatQuant, SmoothRot |
//! | `smoothquant` | max(M, 1e-5)/q | none | −q…q | in Δ | SmoothQuant |
//! | `atom` | max(M, 1e-5)/q | none | −q−1…q | in Δ | Atom |
//! | `full-range` | 2M/n | none | −q−1…q | M = 0 → Δ = 1 | GPTQ `--sym`, PrefixQuant; clips +M to 0.933 M at 4 bits |
//! | `zero-in-range` | (hi⁺−lo⁻)/n, lo⁻ = min(lo,0), hi⁺ = max(hi,0) | round(−lo⁻/Δ) | 0…n | both 0 → [−1, 1] | GPTQ, QuaRot |
//! | `awq` | max(hi−lo, 1e-5)/n | round(−lo/Δ) clamped to 0…n | 0…n | in Δ | AWQ |
//! | `atom-asymmetric` | max(hi−lo, 1e-5)/n | round(−lo/Δ) | 0…n | in Δ | Atom's cache |
//! | `omniquant` | (hi−lo)/n clamped to [1e-5, 1e4] | round(−lo/Δ) clamped to ±1e4 | 0…n | in Δ | OmniQuant, DuQuant |
//!
//! Floating-point grids: x̂ = Δ·v with v the nearest value of a small float, ties to the even code, larger magnitudes
//! taking the largest value.
//!
//! | convention | bits | values v | Δ | guard | shared by |
//! |---|---|---|---|---|---|
//! | `fp8-e4m3` | 8 | E4M3: up to 448, subnormal below 2^−6, no infinity | M/448 | M = 0 → Δ = 1 | any granularity |
//! | `mxfp4` | 4 | E2M1: 0, ½, 1, 1½, 2, 3, 4, 6 | 2^(⌊log₂ M⌋ − 2), an E8M0 | exponent within ±127 | 32 channels |
//! | `nvfp4` | 4 | E2M1 | g·E4M3(M/(6·g)), g = max of the tensor/(448·6) | 0 → Δ = 1 | 16 channels |
//!
//! `mxfp4` clips magnitudes above 6·Δ, as the OCP specification's own conversion does. The tensor of `nvfp4` is a weight, or
//! an activation of one sequence.
//!
//! Sources: OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats Specification 1.0, sections 5 and 6.3;
//! NVIDIA's description of NVFP4. Of the others: the codes' own quantizers as tabulated in the literature notes; `docs/methodology.md` says how sure each is.

use serde::{Deserialize, Serialize};

/// How scale, zero point and codes follow from the range of the values. See the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convention {
    /// Δ = M/q, codes −q…q.
    Absmax,
    /// Δ = M/q, codes −q−1…q.
    AbsmaxFull,
    /// Δ = max(M, 1e-5)/q, codes −q…q.
    Smoothquant,
    /// Δ = max(M, 1e-5)/q, codes −q−1…q.
    Atom,
    /// Δ = 2M/n, codes −q−1…q.
    FullRange,
    /// Asymmetric, zero forced into the range.
    ZeroInRange,
    /// Asymmetric as in AWQ.
    Awq,
    /// Asymmetric as in Atom's cache quantizer.
    AtomAsymmetric,
    /// Asymmetric as in OmniQuant.
    Omniquant,
    /// 8-bit floats of 4 exponent and 3 mantissa bits.
    #[serde(rename = "fp8-e4m3")]
    Fp8E4m3,
    /// 4-bit floats with a power of two per 32.
    Mxfp4,
    /// 4-bit floats with an E4M3 per 16 and one f32 per tensor.
    Nvfp4,
}

/// The conventions whose codes are floating-point numbers.
pub const FLOATS: [Convention; 3] = [Convention::Fp8E4m3, Convention::Mxfp4, Convention::Nvfp4];

/// A small floating-point format without infinities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Float {
    /// Bits of the mantissa.
    mantissa: i32,
    /// Exponent of the smallest normal number.
    least_exponent: i32,
    /// The largest value.
    largest: u16,
}

/// 1 sign, 4 exponent, 3 mantissa bits: 448 is the largest value.
pub const E4M3: Float = Float { mantissa: 3, least_exponent: -6, largest: 448 };

/// 1 sign, 2 exponent, 1 mantissa bit.
pub const E2M1: Float = Float { mantissa: 1, least_exponent: 0, largest: 6 };

impl Float {
    /// The largest value.
    pub fn largest(self) -> f32 {
        f32::from(self.largest)
    }

    /// The nearest value, ties to the even code; beyond the largest, the largest. NaN stays.
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        let exponent = (((x.to_bits() >> 23) & 0xFF) as i32 - 127).max(self.least_exponent);
        // Values of one binade stand 2^(exponent − mantissa) apart; below the least, as there.
        let step = f32::from_bits(((exponent - self.mantissa + 127).clamp(1, 254) as u32) << 23);
        let rounded = (x / step).round_ties_even() * step;
        let largest = self.largest();
        let rounded = if rounded > largest { largest } else { rounded };
        if rounded < -largest { -largest } else { rounded }
    }
}

/// Every convention of whole codes, in the order of the module's table.
pub const CONVENTIONS: [Convention; 9] = [
    Convention::Absmax,
    Convention::AbsmaxFull,
    Convention::Smoothquant,
    Convention::Atom,
    Convention::FullRange,
    Convention::ZeroInRange,
    Convention::Awq,
    Convention::AtomAsymmetric,
    Convention::Omniquant,
];

impl Convention {
    /// The word used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Convention::Absmax => "absmax",
            Convention::AbsmaxFull => "absmax-full",
            Convention::Smoothquant => "smoothquant",
            Convention::Atom => "atom",
            Convention::FullRange => "full-range",
            Convention::ZeroInRange => "zero-in-range",
            Convention::Awq => "awq",
            Convention::AtomAsymmetric => "atom-asymmetric",
            Convention::Omniquant => "omniquant",
            Convention::Fp8E4m3 => "fp8-e4m3",
            Convention::Mxfp4 => "mxfp4",
            Convention::Nvfp4 => "nvfp4",
        }
    }

    /// True where codes are centred on zero and there is no zero point.
    pub fn is_symmetric(self) -> bool {
        matches!(
            self,
            Convention::Absmax
                | Convention::AbsmaxFull
                | Convention::Smoothquant
                | Convention::Atom
                | Convention::FullRange
                | Convention::Fp8E4m3
                | Convention::Mxfp4
                | Convention::Nvfp4
        )
    }

    /// The float that its values are, and the channels that share a scale where the format says so.
    pub fn float(self) -> Option<(Float, Option<usize>)> {
        match self {
            Convention::Fp8E4m3 => Some((E4M3, None)),
            Convention::Mxfp4 => Some((E2M1, Some(32))),
            Convention::Nvfp4 => Some((E2M1, Some(16))),
            _ => None,
        }
    }
}

/// A grid of 2 to 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    bits: u8,
    convention: Convention,
    /// max|x| of the tensor, where scales stand in relation to it.
    largest: f32,
}

/// Scale and zero point shared by some values: x̂ = Δ · (clamp(round(x/Δ) + z, lo, hi) − z).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Δ, in the units of the values.
    pub delta: f32,
    /// z, a whole number; 0 for symmetric conventions.
    pub zero: f32,
}

impl Grid {
    /// A grid of `bits` (2 to 8).
    ///
    /// # Panics
    /// If `bits` is outside 2…8: recipes are checked before they reach a grid.
    pub fn new(bits: u8, convention: Convention) -> Self {
        assert!((2..=8).contains(&bits), "a grid has 2 to 8 bits, not {bits}");
        Self { bits, convention, largest: 0.0 }
    }

    /// Whether a scale depends on the whole tensor besides its share of it.
    pub fn looks_at_tensor(self) -> bool {
        self.convention == Convention::Nvfp4
    }

    /// The grid for values of a tensor whose greatest magnitude is `largest`.
    pub fn within(self, largest: f32) -> Self {
        if self.looks_at_tensor() { Self { largest, ..self } } else { self }
    }

    /// Bits per code.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// The convention it follows.
    pub fn convention(self) -> Convention {
        self.convention
    }

    /// q = 2^(b−1) − 1.
    fn q(self) -> f32 {
        ((1u32 << (self.bits - 1)) - 1) as f32
    }

    /// n = 2^b − 1.
    fn n(self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// Lowest and highest code; of floats, lowest and highest value.
    pub fn codes(self) -> (f32, f32) {
        if let Some((float, _)) = self.convention.float() {
            return (-float.largest(), float.largest());
        }
        match self.convention {
            Convention::Absmax | Convention::Smoothquant => (-self.q(), self.q()),
            Convention::AbsmaxFull | Convention::Atom | Convention::FullRange => (-self.q() - 1.0, self.q()),
            _ => (0.0, self.n()),
        }
    }

    /// The scale for values between `lo` and `hi` (`lo` ≤ `hi`, both finite), after both ends are multiplied by `clip`
    /// (1 = no clipping).
    pub fn fit(self, lo: f32, hi: f32, clip: f32) -> Scale {
        let (lo, hi) = (lo * clip, hi * clip);
        let m = lo.abs().max(hi.abs());
        let symmetric = |delta: f32| Scale { delta, zero: 0.0 };
        match self.convention {
            Convention::Absmax | Convention::AbsmaxFull => symmetric(guarded(m / self.q())),
            Convention::Smoothquant | Convention::Atom => symmetric(m.max(1e-5) / self.q()),
            Convention::FullRange => symmetric(guarded(2.0 * m / self.n())),
            Convention::Fp8E4m3 => symmetric(guarded(m / E4M3.largest())),
            Convention::Mxfp4 => {
                let exponent = (m.to_bits() >> 23) as i32 - 127 - 2;
                symmetric(f32::from_bits(((exponent.clamp(-126, 127) + 127) as u32) << 23))
            }
            Convention::Nvfp4 => {
                // Without a tensor around it the share is the tensor.
                let global = guarded(self.largest.max(m) / (E4M3.largest() * E2M1.largest()));
                symmetric(guarded(E4M3.round(m / E2M1.largest() / global) * global))
            }
            Convention::ZeroInRange => {
                let (mut lo, mut hi) = (lo.min(0.0), hi.max(0.0));
                if lo == 0.0 && hi == 0.0 {
                    (lo, hi) = (-1.0, 1.0);
                }
                let delta = guarded((hi - lo) / self.n());
                Scale { delta, zero: (-lo / delta).round_ties_even() }
            }
            Convention::Awq => {
                let delta = (hi - lo).max(1e-5) / self.n();
                Scale { delta, zero: (-lo / delta).round_ties_even().clamp(0.0, self.n()) }
            }
            Convention::AtomAsymmetric => {
                let delta = (hi - lo).max(1e-5) / self.n();
                Scale { delta, zero: (-lo / delta).round_ties_even() }
            }
            Convention::Omniquant => {
                let delta = ((hi - lo) / self.n()).clamp(1e-5, 1e4);
                Scale { delta, zero: (-lo / delta).round_ties_even().clamp(-1e4, 1e4) }
            }
        }
    }

    /// The code of `x`: a whole number, or the value of a float.
    #[inline]
    pub fn code(self, x: f32, scale: Scale) -> f32 {
        if let Some((float, _)) = self.convention.float() {
            return float.round(x / scale.delta);
        }
        let (lo, hi) = self.codes();
        ((x / scale.delta).round_ties_even() + scale.zero).clamp(lo, hi)
    }

    /// `x` rounded to the grid.
    #[inline]
    pub fn round(self, x: f32, scale: Scale) -> f32 {
        (self.code(x, scale) - scale.zero) * scale.delta
    }
}

/// A Δ that underflowed to zero (all-zero values, or values below the smallest normal number) becomes 1: zeros stay zeros.
fn guarded(delta: f32) -> f32 {
    if delta >= f32::MIN_POSITIVE { delta } else { 1.0 }
}

/// Who shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One scale for the whole tensor: for activations, for one sequence, whatever the batch.
    Tensor,
    /// One scale per output channel of a weight (a row of `[out, in]`).
    Channel,
    /// One scale per token of an activation (a row of `[tokens, channels]`).
    Token,
    /// One scale per `n` neighbouring input channels of a row.
    Group(usize),
}

impl Granularity {
    /// `tensor`, `channel`, `token`, `group(n)`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let group = text.strip_prefix("group(").and_then(|rest| rest.strip_suffix(')'));
        match (text, group) {
            ("tensor", _) => Ok(Self::Tensor),
            ("channel", _) => Ok(Self::Channel),
            ("token", _) => Ok(Self::Token),
            (_, Some(n)) => match n.trim().parse::<usize>() {
                Ok(n) if n > 0 => Ok(Self::Group(n)),
                _ => Err(format!("a group holds a positive number of channels, not `{n}`")),
            },
            _ => Err(format!("unknown granularity `{text}`; expected tensor, channel, token or group(n)")),
        }
    }
}

impl std::fmt::Display for Granularity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tensor => f.write_str("tensor"),
            Self::Channel => f.write_str("channel"),
            Self::Token => f.write_str("token"),
            Self::Group(n) => write!(f, "group({n})"),
        }
    }
}

impl Serialize for Granularity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Granularity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}
