//! How many bits a cell's model takes per weight, activation, key and value, all that goes with them included.

use serde::{Deserialize, Serialize};

/// Bits per value, scales, zero points and exemptions included. `docs/metrics.md` has the conventions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EffectiveBits {
    /// Mean over the weights of the blocks' linear layers: what papers count.
    pub weights: f64,
    /// Mean over all parameters: embeddings, norms, biases and head, too.
    pub parameters: f64,
    /// Mean over the values that the blocks' linear layers read.
    pub activations: f64,
    /// Mean over the keys and values of a token that is rounded as the recipe says.
    pub cache: f64,
    /// Tokens from the start of a sequence whose keys and values stay in 16 bits: those of a prefix, and of a prompt.
    pub exact_tokens: u64,
}

impl EffectiveBits {
    /// Bits per key and value of a sequence of `tokens` tokens, a prefix's included: (|P|·16 + n·b) / (|P| + n) with n the
    /// others and b their bits, scales included. 16 where there are no tokens.
    pub fn cache_at(&self, tokens: u64) -> f64 {
        let exact = self.exact_tokens.min(tokens);
        if tokens == exact {
            return 16.0;
        }
        (exact as f64 * 16.0 + (tokens - exact) as f64 * self.cache) / tokens as f64
    }

    /// Whether anything takes other than 16 bits.
    pub fn is_reduced(&self) -> bool {
        [self.weights, self.parameters, self.activations, self.cache].iter().any(|bits| *bits != 16.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_weighs_as_much_as_it_is_long() {
        let bits = EffectiveBits {
            weights: 16.0,
            parameters: 16.0,
            activations: 16.0,
            cache: 4.0,
            exact_tokens: 32,
        };
        // (32 · 16 + 96 · 4) / 128
        assert_eq!(bits.cache_at(128), 7.0);
        assert_eq!((bits.cache_at(32), bits.cache_at(8), bits.cache_at(0)), (16.0, 16.0, 16.0));
        assert!(bits.is_reduced() && !EffectiveBits { cache: 16.0, ..bits }.is_reduced());
    }
}
