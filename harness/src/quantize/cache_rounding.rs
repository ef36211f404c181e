//! Rounding keys and values to a grid as they enter the cache.
//!
//! A cache is written token by token, so a rule may look at nothing but a token's own keys or values and its position:
//! then one pass over a whole text computes what decoding it token by token with a rounded cache does, the token's own
//! key and value included. A scale over tokens that are still to come cannot be had; where a scale belongs to a channel
//! it is static. (KIVI, arXiv 2402.02750, fits a channel's scale to each 32 tokens once they are complete and keeps the
//! last ones in full precision until then: no pass over a whole text computes that, and it is not here.)

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::quantize::fake_quant::{ActivationRule, ScaleSource};
use crate::quantize::grid::{Granularity, Grid, Scale};
use crate::quantize::rounding;

/// How the keys or the values of one block are rounded.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheRule {
    /// The grid.
    pub grid: Grid,
    /// Who shares a scale.
    pub granularity: CacheGranularity,
    /// Factor on the range before a dynamic scale is chosen.
    pub clip: f32,
    /// So many positions from the start stay as they are, those of a prefix among them.
    pub exact: usize,
    /// The static scales of `Channel`, by head and channel; empty elsewhere.
    pub scales: Vec<Scale>,
}

/// Which keys, or which values, share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheGranularity {
    /// A token's in all heads.
    Token,
    /// A token's in one head.
    Head,
    /// `n` neighbouring channels of a token in one head.
    Group(usize),
    /// A channel of a head at all tokens: a static scale.
    Channel,
}

impl CacheGranularity {
    /// `token`, `head`, `group(n)`, `channel`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let unknown =
            || format!("unknown granularity `{text}` of a cache; expected token, head, group(n) or channel");
        if text == "head" {
            return Ok(Self::Head);
        }
        match Granularity::parse(text) {
            Ok(Granularity::Token) => Ok(Self::Token),
            Ok(Granularity::Channel) => Ok(Self::Channel),
            Ok(Granularity::Group(n)) => Ok(Self::Group(n)),
            Ok(Granularity::Tensor) => Err(unknown()),
            Err(fault) if text.starts_with("group(") => Err(fault),
            Err(_) => Err(unknown()),
        }
    }
}

impl std::fmt::Display for CacheGranularity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token => f.write_str("token"),
            Self::Head => f.write_str("head"),
            Self::Group(n) => write!(f, "group({n})"),
            Self::Channel => f.write_str("channel"),
        }
    }
}

impl Serialize for CacheGranularity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CacheGranularity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Rounds keys or values whose first token stands at position `position`.
///
/// # Shapes
/// `x` and the result are `[sequences, heads, tokens, head_dim]`.
///
/// # Panics
/// If a group does not divide `head_dim`, or there is not one static scale per channel: the step that made the rule has
/// seen to it.
pub fn round(x: Tensor<4>, rule: &CacheRule, position: usize) -> Tensor<4> {
    let tokens = x.dims()[2];
    let exact = rule.exact.saturating_sub(position).min(tokens);
    if exact == tokens {
        return x;
    }
    if exact == 0 {
        return round_all(x, rule);
    }
    let as_it_is = x.clone().narrow(2, 0, exact);
    Tensor::cat(vec![as_it_is, round_all(x.narrow(2, exact, tokens - exact), rule)], 2)
}

fn round_all(x: Tensor<4>, rule: &CacheRule) -> Tensor<4> {
    let [sequences, heads, tokens, head_dim] = x.dims();
    let of_tokens = |granularity| ActivationRule {
        grid: rule.grid,
        granularity,
        clip: rule.clip,
        scale: ScaleSource::Dynamic,
    };
    let by_head = |x: Tensor<4>, granularity| {
        let rows = x.reshape([sequences * heads, tokens, head_dim]);
        rounding::round_activation(rows, &of_tokens(granularity))
            .reshape([sequences, heads, tokens, head_dim])
    };
    match rule.granularity {
        CacheGranularity::Token => {
            let rows = x.swap_dims(1, 2).reshape([sequences, tokens, heads * head_dim]);
            let rounded = rounding::round_activation(rows, &of_tokens(Granularity::Token));
            rounded.reshape([sequences, tokens, heads, head_dim]).swap_dims(1, 2)
        }
        CacheGranularity::Head => by_head(x, Granularity::Token),
        CacheGranularity::Group(n) => by_head(x, Granularity::Group(n)),
        CacheGranularity::Channel => {
            assert_eq!(rule.scales.len(), heads * head_dim, "one static scale for each channel of each head");
            let device = x.device();
            let of_channels = |value: fn(&Scale) -> f32| {
                let values: Vec<f32> = rule.scales.iter().map(value).collect();
                Tensor::<4>::from_data(TensorData::new(values, [1, heads, 1, head_dim]), &device)
            };
            let (delta, zero) = (of_channels(|scale| scale.delta), of_channels(|scale| scale.zero));
            let (lo, hi) = rule.grid.codes();
            let code = (x / delta.clone()).round() + zero.clone();
            (code.clamp(lo, hi) - zero) * delta
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::quantize::grid::{CONVENTIONS, Convention};

    const SHAPE: [usize; 4] = [2, 2, 5, 8];

    fn tensor(values: &[f32]) -> Tensor<4> {
        Tensor::from_data(TensorData::new(values.to_vec(), SHAPE), &Device::flex())
    }

    fn rule(convention: Convention, granularity: CacheGranularity) -> CacheRule {
        let grid = Grid::new(3, convention);
        let channels = match granularity {
            CacheGranularity::Channel => SHAPE[1] * SHAPE[3],
            _ => 0,
        };
        let scale = |channel: usize| grid.fit(-1.0 - channel as f32, 2.0, 1.0);
        CacheRule { grid, granularity, clip: 0.9, exact: 0, scales: (0..channels).map(scale).collect() }
    }

    fn bits(x: &Tensor<4>) -> Vec<u32> {
        x.to_data().try_to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// The rule by its definition: which values share a scale is said by their four indices.
    fn by_definition(values: &[f32], rule: &CacheRule) -> Vec<u32> {
        let index = |i: usize| {
            let (channel, rest) = (i % SHAPE[3], i / SHAPE[3]);
            let (token, rest) = (rest % SHAPE[2], rest / SHAPE[2]);
            (rest / SHAPE[1], rest % SHAPE[1], token, channel)
        };
        let shares = |i: usize, j: usize| {
            let ((s, h, t, c), (s2, h2, t2, c2)) = (index(i), index(j));
            let token = s == s2 && t == t2;
            match rule.granularity {
                CacheGranularity::Token => token,
                CacheGranularity::Head => token && h == h2,
                CacheGranularity::Group(n) => token && h == h2 && c / n == c2 / n,
                CacheGranularity::Channel => unreachable!("its scales are given"),
            }
        };
        let rounded = |i: usize| {
            let (_, head, _, channel) = index(i);
            let scale = match rule.granularity {
                CacheGranularity::Channel => rule.scales[head * SHAPE[3] + channel],
                _ => {
                    let share = (0..values.len()).filter(|&j| shares(i, j)).map(|j| values[j]);
                    let (lo, hi) =
                        share.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
                    rule.grid.fit(lo, hi, rule.clip)
                }
            };
            rule.grid.round(values[i], scale).to_bits()
        };
        (0..values.len()).map(rounded).collect()
    }

    const GRANULARITIES: [CacheGranularity; 4] = [
        CacheGranularity::Token,
        CacheGranularity::Head,
        CacheGranularity::Group(4),
        CacheGranularity::Channel,
    ];

    proptest! {
        #[test]
        fn every_granularity_is_its_definition(
            values in prop::collection::vec(-8.0f32..8.0, SHAPE.iter().product::<usize>()),
        ) {
            for convention in CONVENTIONS {
                for granularity in GRANULARITIES {
                    let rule = rule(convention, granularity);
                    let found = bits(&round(tensor(&values), &rule, 0));
                    // −0 and +0 are one value.
                    let positive = |bits: Vec<u32>| -> Vec<u32> {
                        bits.into_iter().map(|b| if b == 1 << 31 { 0 } else { b }).collect()
                    };
                    prop_assert_eq!(
                        positive(found),
                        positive(by_definition(&values, &rule)),
                        "{:?} {}",
                        convention,
                        granularity
                    );
                }
            }
        }

        #[test]
        fn a_token_is_rounded_alone_as_in_its_sequence_and_the_first_stay(
            values in prop::collection::vec(-8.0f32..8.0, SHAPE.iter().product::<usize>()),
            exact in 0usize..7,
            position in 0usize..4,
        ) {
            for granularity in GRANULARITIES {
                let rule = CacheRule { exact, ..rule(Convention::ZeroInRange, granularity) };
                let x = tensor(&values);
                let whole = round(x.clone(), &rule, position);
                for token in 0..SHAPE[2] {
                    let own = x.clone().narrow(2, token, 1);
                    let alone = round(own.clone(), &rule, position + token);
                    prop_assert_eq!(bits(&alone), bits(&whole.clone().narrow(2, token, 1)));
                    let stays = position + token < exact;
                    prop_assert!(!stays || bits(&alone) == bits(&own), "position {}", position + token);
                }
            }
        }
    }

    #[test]
    fn granularities_have_their_words() {
        for granularity in GRANULARITIES {
            assert_eq!(CacheGranularity::parse(&granularity.to_string()), Ok(granularity));
        }
        let fault = CacheGranularity::parse("tensor").unwrap_err();
        assert!(fault.contains("token, head, group(n) or channel"), "{fault}");
        assert!(CacheGranularity::parse("group(0)").unwrap_err().contains("positive"));
    }
}
