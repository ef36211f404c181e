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

use std::cell::RefCell;
use std::rc::Rc;

use burn::tensor::Tensor;
use models::architecture::Architecture;
use models::kernel::with_values;
use models::{Group, Port, Routed, Site, Tap};
use serde_json::{Value, json};

use super::windows::Window;

/// Bytes of queries that are kept of an original: of the first tokens of its windows, as many as fit.
pub const BOUND: u64 = 64 << 20;

/// The smallest ‖q‖² that is divided by.
const LEAST: f64 = 1e-12;

/// Queries of the original over the first windows.
#[derive(Debug, Default)]
pub struct Queries {
    windows: Vec<OfWindow>,
    /// Values of one token's query, all heads together.
    channels: usize,
    layers: usize,
}

#[derive(Debug)]
struct OfWindow {
    /// How many of its tokens are looked at.
    tokens: usize,
    /// By block, `[tokens so far, channels]`.
    blocks: Vec<Vec<f32>>,
}

/// Queries that somebody else compares with.
pub type Shared = Rc<RefCell<Queries>>;

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

/// Looks at the queries of windows on their way through the blocks of a model, in whatever parts they come: blocks one
/// after the other, windows in order, the tokens of one in order.
#[derive(Debug, Default)]
pub enum Watch {
    /// Looks at nothing.
    #[default]
    Off,
    /// Keeps them: it is the original's way.
    Keeps(Shared),
    /// Compares them with the original's, which is there before.
    Compares(Shared, Errors),
}

/// Errors of queries so far.
#[derive(Debug, Default)]
pub struct Errors {
    /// By block, the sum and over how many tokens.
    blocks: Vec<(f64, u64)>,
    /// By window and block, how many tokens were seen.
    seen: Vec<Vec<usize>>,
    /// Of the last block: position and error.
    last: Vec<(usize, f64)>,
}

impl Watch {
    /// Of an original whose windows begin their way now.
    pub fn keeps(architecture: &Architecture, windows: &[Window]) -> Self {
        let channels = architecture.attention.heads * architecture.attention.head_dim;
        let layers = architecture.layers;
        let mut room = BOUND as usize / (4 * layers * channels).max(1);
        let mut kept = Queries { windows: Vec::new(), channels, layers };
        for window in windows {
            let tokens = window.fed.len().min(room);
            // Of one token nothing spreads.
            if tokens < 2 {
                break;
            }
            room -= tokens;
            kept.windows.push(OfWindow { tokens, blocks: vec![Vec::new(); layers] });
        }
        Self::Keeps(Rc::new(RefCell::new(kept)))
    }

    /// Of a reading whose windows, the same, begin their way now.
    pub fn compares(exact: &Shared) -> Self {
        let queries = exact.borrow();
        let errors = Errors {
            blocks: vec![(0.0, 0); if queries.windows.is_empty() { 0 } else { queries.layers }],
            seen: vec![vec![0; queries.layers]; queries.windows.len()],
            last: Vec::new(),
        };
        Self::Compares(Rc::clone(exact), errors)
    }

    /// What it has kept.
    pub fn kept(&self) -> Option<&Shared> {
        match self {
            Self::Keeps(queries) => Some(queries),
            _ => None,
        }
    }

    /// The mean errors, of what it has compared. Tokens whose place a prefix takes are left out.
    pub fn growth(&self) -> Growth {
        let Self::Compares(_, errors) = self else { return Growth::default() };
        let mean = |(sum, count): &(f64, u64)| sum / (*count).max(1) as f64;
        let positions = by_position(errors.last.iter().copied());
        Growth { blocks: errors.blocks.iter().map(mean).collect(), positions }
    }

    /// A tap that shows it the windows from `first`, of each of which `dropped` tokens are not fed.
    pub(super) fn beside<'a>(&'a mut self, tap: &'a mut dyn Tap, first: usize, dropped: usize) -> Look<'a> {
        Look { tap, watch: self, first, dropped }
    }

    /// Queries of a block, `[windows, tokens, channels]`: the next tokens of each window.
    fn look(&mut self, layer: usize, first: usize, dropped: usize, q: &Tensor<3>) {
        let looked_at = match self {
            Self::Off => 0,
            Self::Keeps(exact) | Self::Compares(exact, _) => exact.borrow().windows.len(),
        };
        let [windows, tokens, channels] = q.dims();
        let windows = windows.min(looked_at.saturating_sub(first));
        if windows == 0 {
            return;
        }
        let q = q.clone().slice([0..windows, 0..tokens, 0..channels]);
        with_values(q, |q| {
            for (window, rows) in (first..).zip(q.chunks(tokens * channels)) {
                match self {
                    Self::Off => {}
                    Self::Keeps(exact) => exact.borrow_mut().windows[window].keep(layer, rows, channels),
                    Self::Compares(exact, errors) => {
                        errors.add(&exact.borrow(), (layer, window), dropped, rows);
                    }
                }
            }
        });
    }
}

impl OfWindow {
    fn keep(&mut self, layer: usize, rows: &[f32], channels: usize) {
        let block = &mut self.blocks[layer];
        let room = self.tokens * channels - block.len();
        block.extend_from_slice(&rows[..rows.len().min(room)]);
    }
}

impl Errors {
    fn add(&mut self, exact: &Queries, (layer, window): (usize, usize), dropped: usize, rows: &[f32]) {
        let seen = &mut self.seen[window][layer];
        let from = dropped + *seen;
        let exact_rows = exact.windows[window].blocks[layer].chunks(exact.channels).skip(from);
        for (position, (found, exact_row)) in (from..).zip(rows.chunks(exact.channels).zip(exact_rows)) {
            let error = relative(found, exact_row);
            self.blocks[layer].0 += error;
            self.blocks[layer].1 += 1;
            if layer + 1 == exact.layers {
                self.last.push((position, error));
            }
        }
        *seen += rows.len() / exact.channels;
    }
}

/// Shows queries, and leaves the work to another tap.
pub(super) struct Look<'a> {
    tap: &'a mut dyn Tap,
    watch: &'a mut Watch,
    first: usize,
    dropped: usize,
}

impl Tap for Look<'_> {
    fn begin(&mut self, past: usize) {
        self.tap.begin(past);
    }

    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let outputs = self.tap.linears(site, x, group);
        if let (Some(layer), Port::AttnIn) = (site.layer, site.port) {
            self.watch.look(layer, self.first, self.dropped, &outputs[0]);
        }
        outputs
    }

    fn routed(&mut self, site: Site, x: Tensor<3>, group: &Group, routed: &Routed) -> Vec<Tensor<3>> {
        self.tap.routed(site, x, group, routed)
    }

    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.tap.tensor(site, x)
    }

    fn residual(&mut self, layer: usize, x: &Tensor<3>) {
        self.tap.residual(layer, x);
    }
}

/// ‖found − exact‖² / ‖exact‖².
fn relative(found: &[f32], exact: &[f32]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let error = squares(&mut found.iter().zip(exact).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    error / squares(&mut exact.iter().map(|x| f64::from(*x))).max(LEAST)
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
    use crate::evaluate::against::{self, Original};
    use crate::evaluate::decoder_model::DecoderModel;
    use crate::evaluate::noise::RoundingNoise;
    use burn::tensor::Device;
    use models::{Checkpoint, Decoder, Fallback, Hadamard, Off};

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
        let (mut original, mut off, windows) = (model(), Off, windows());
        let mut kept = Original::keep(
            &mut DecoderModel::new(&mut original, &mut off, Some(0)),
            &windows,
            1 << 20,
            &mut |_, _| true,
        )
        .unwrap();
        let mut model = DecoderModel::new(decoder, tap, Some(0));
        against::compare(&mut model, &windows, &mut kept, &mut |_, _| true).unwrap().growth
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
