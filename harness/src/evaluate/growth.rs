//! How errors grow inside a model: of queries, block by block and position by position, beside the original.
//!
//! # Equation
//! e(t) = ‖q̂_t − q_t‖² / ‖q_t‖² for the queries q of a block before their rotary embedding, those of all heads of token t
//! together; the means over tokens. Queries are what a block first makes of the stream that reaches it, and neither a
//! rotation of the stream nor a scale that is folded around any site changes them, so that recipes of all kinds can be
//! compared; the rounding of the block's own q is in them.
//!
//! # Reference
//! BiSup, arXiv:2405.15346, whose abstract says that errors grow vertically, through layers, and spread horizontally, to other
//! tokens by attention. What it plots is not known to this project: queries are our choice.

use burn::tensor::Tensor;
use serde_json::{Value, json};

use super::decoder_model::DecoderModel;
use super::windows::Window;

/// Bytes of queries that are kept of an original: of the first tokens of its windows, as many as fit.
pub const BOUND: u64 = 64 << 20;

/// The smallest ‖q‖² that is divided by.
const LEAST: f64 = 1e-12;

/// Queries of the original over the first windows.
#[derive(Debug, Default)]
pub struct Queries {
    /// By window and block, `[tokens, channels]`.
    windows: Vec<Vec<Vec<f32>>>,
    /// Of one token.
    channels: usize,
}

/// Mean errors of queries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Growth {
    /// By block.
    pub blocks: Vec<f64>,
    /// Of the last block, by position.
    pub positions: Vec<Span>,
}

/// Tokens whose positions are `from` to, without it, `to`.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The first position.
    pub from: usize,
    /// Behind the last.
    pub to: usize,
    /// How many there were.
    pub tokens: u64,
    /// The mean of what was asked.
    pub mean: f64,
}

impl Queries {
    /// Runs the original over the first tokens of the windows.
    pub fn keep(model: &mut DecoderModel<'_>, windows: &[Window]) -> Self {
        let attention = &model.architecture().attention;
        let channels = attention.heads * attention.head_dim;
        let layers = model.architecture().layers;
        let mut room = BOUND as usize / (4 * layers * channels).max(1);
        let mut kept = Self { windows: Vec::new(), channels };
        for window in windows {
            let tokens = window.fed.len().min(room);
            // Of one token nothing spreads.
            if tokens < 2 {
                break;
            }
            room -= tokens;
            let mut blocks = vec![Vec::new(); layers];
            model.queries(&window.fed[..tokens], &mut |layer, q| blocks[layer] = values(q));
            kept.windows.push(blocks);
        }
        kept
    }

    /// Runs a reading over the same tokens. Tokens whose place a prefix takes are left out.
    pub fn compare(&self, model: &mut DecoderModel<'_>, windows: &[Window]) -> Growth {
        let layers = self.windows.first().map_or(0, Vec::len);
        let mut sums = vec![(0.0, 0u64); layers];
        let mut last: Vec<(usize, f64)> = Vec::new();
        for (kept, window) in self.windows.iter().zip(windows) {
            let tokens = kept[0].len() / self.channels;
            let fed = &window.fed[..tokens];
            let dropped = model.dropped(fed);
            model.queries(fed, &mut |layer, q| {
                let found = values(q);
                let exact = kept[layer][dropped * self.channels..].chunks(self.channels);
                for (place, (found, exact)) in found.chunks(self.channels).zip(exact).enumerate() {
                    let error = relative(found, exact);
                    sums[layer].0 += error;
                    sums[layer].1 += 1;
                    if layer + 1 == layers {
                        last.push((place + dropped, error));
                    }
                }
            });
        }
        let mean = |(sum, count): &(f64, u64)| sum / (*count).max(1) as f64;
        Growth { blocks: sums.iter().map(mean).collect(), positions: by_position(last) }
    }
}

/// ‖found − exact‖² / ‖exact‖².
fn relative(found: &[f32], exact: &[f32]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let error = squares(&mut found.iter().zip(exact).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    error / squares(&mut exact.iter().map(|x| f64::from(*x))).max(LEAST)
}

fn values(x: &Tensor<3>) -> Vec<f32> {
    x.to_data().try_into_vec().expect("activations are f32 and can be read")
}

/// Means over positions 0, 1, 2–3, 4–7, 8–15 and so on; spans without a token, and values that are not finite, are left out.
pub fn by_position(values: impl IntoIterator<Item = (usize, f64)>) -> Vec<Span> {
    let mut sums: Vec<(f64, u64)> = Vec::new();
    for (position, value) in values.into_iter().filter(|(_, value)| value.is_finite()) {
        let span = (usize::BITS - position.leading_zeros()) as usize;
        if sums.len() <= span {
            sums.resize(span + 1, (0.0, 0));
        }
        sums[span].0 += value;
        sums[span].1 += 1;
    }
    let span = |(i, (sum, tokens)): (usize, (f64, u64))| Span {
        from: if i == 0 { 0 } else { 1 << (i - 1) },
        to: 1 << i,
        tokens,
        mean: sum / tokens as f64,
    };
    sums.into_iter().enumerate().filter(|(_, (_, tokens))| *tokens > 0).map(span).collect()
}

/// Spans as records hold them.
pub fn written(spans: &[Span]) -> Value {
    let of =
        |span: &Span| json!({ "from": span.from, "to": span.to, "tokens": span.tokens, "mean": span.mean });
    spans.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::noise::RoundingNoise;
    use burn::tensor::Device;
    use models::{Checkpoint, Decoder, Fallback, Group, Hadamard, Off, Port, Site, Tap};

    #[test]
    fn positions_are_taken_together_in_spans_that_double() {
        let spans = by_position((0..9).map(|p| (p, p as f64)).chain([(3, f64::NAN)]));
        let of = |span: &Span| (span.from, span.to, span.tokens, span.mean);
        let found: Vec<_> = spans.iter().map(of).collect();
        assert_eq!(found, [(0, 1, 1, 0.0), (1, 2, 1, 1.0), (2, 4, 2, 2.5), (4, 8, 4, 5.5), (8, 16, 1, 8.0)]);
        assert!(by_position([(5, 1.0)]).iter().map(of).eq([(4, 8, 1, 1.0)]));
    }

    fn model() -> Decoder {
        Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap().load(&Device::flex()).unwrap()
    }

    fn windows() -> Vec<Window> {
        (0..2)
            .map(|w| Window::whole(&(0..24).map(|i| (i * 7 + w * 5) % 200).collect::<Vec<u32>>(), w as usize))
            .collect()
    }

    fn growth(decoder: &mut Decoder, tap: &mut dyn Tap) -> Growth {
        let (mut original, mut off) = (model(), Off);
        let kept = Queries::keep(&mut DecoderModel::new(&mut original, &mut off, Some(0)), &windows());
        kept.compare(&mut DecoderModel::new(decoder, tap, Some(0)), &windows())
    }

    /// Doubles what one block's queries are.
    struct Doubled(usize);

    impl Tap for Doubled {
        fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
            let mut outputs = group.forward(x);
            if site == Site::block(self.0, Port::AttnIn) {
                outputs[0] = outputs[0].clone() * 2.0;
            }
            outputs
        }
    }

    #[test]
    fn a_fault_shows_where_it_is_and_behind_it() {
        assert_eq!(growth(&mut model(), &mut Off).blocks, vec![0.0; 5]);
        let found = growth(&mut model(), &mut Doubled(2));
        assert_eq!(found.blocks[..2], [0.0, 0.0]);
        // ‖2q − q‖² is ‖q‖².
        assert!((found.blocks[2] - 1.0).abs() < 1e-6 && found.blocks[3] > 1e-6, "{:?}", found.blocks);
        // Whatever it asks, the first token attends to itself alone.
        assert!(found.positions[0].mean < 1e-9 && found.positions[3].mean > 1e-6, "{:?}", found.positions);
    }

    #[test]
    fn a_rotation_is_no_error_and_noise_is_one() {
        let mut rotated = model();
        let hidden = rotated.architecture.hidden;
        let turn = Hadamard::new(hidden, Fallback::default(), 0).with_random_signs(3);
        rotated.rotate_residual(&turn).unwrap();
        let turned = growth(&mut rotated, &mut Off);
        let noisy = growth(&mut model(), &mut RoundingNoise::new(8));
        for (turned, noisy) in turned.blocks.iter().zip(&noisy.blocks) {
            assert!(*turned < 1e-9 && *noisy > 1e-7, "{turned:e} {noisy:e}");
        }
    }
}
