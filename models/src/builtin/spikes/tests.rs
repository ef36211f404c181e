//! The planted model against what was asked of it, on a few windows of the held-out text. 8-bit rounding is written
//! out here, apart from the harness's own.

use burn::tensor::{Device, Tensor, activation::log_softmax};

use super::*;
use crate::builtin::{self, SPIKING_TOKENS};
use crate::{Checkpoint, Decoder, Group, Off, Port, Site, Tap, token_tensor};

const LENGTH: usize = 256;

fn windows(checkpoint: &Checkpoint, count: usize) -> Vec<Vec<u32>> {
    let text = builtin::text("builtin/stories-held-out").unwrap();
    let tokens = checkpoint.tokenizer().encode(text).unwrap();
    tokens.chunks_exact(LENGTH - 1).take(count).map(|c| [&[SPIKING_TOKENS.bos], c].concat()).collect()
}

fn open(name: &str) -> (Checkpoint, Decoder) {
    let checkpoint = Checkpoint::builtin(name).unwrap().unwrap();
    let decoder = checkpoint.load(&Device::flex()).unwrap();
    (checkpoint, decoder)
}

/// The largest magnitude of each token before `down_proj`, by block.
#[derive(Default)]
struct Largest(HashMap<usize, Vec<f32>>);

impl Tap for Largest {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if let (Some(layer), Port::DownIn) = (site.layer, site.port) {
            let largest = x.clone().abs().max_dim(2).into_data().try_to_vec::<f32>().unwrap();
            self.0.entry(layer).or_default().extend(largest);
        }
        group.forward(x)
    }
}

#[test]
fn spikes_stand_at_bos_and_the_first_stop_and_nowhere_else() {
    let (checkpoint, mut decoder) = open("builtin/tiny-llama-spiky");
    let windows = windows(&checkpoint, 6);
    let mut largest = Largest::default();
    decoder.hidden(token_tensor(&windows, &Device::flex()), &mut largest);
    for block in SPIKING_BLOCKS {
        for (window, values) in windows.iter().zip(largest.0[&block].chunks_exact(LENGTH)) {
            let first = window.iter().position(|&token| token == SPIKING_TOKENS.stop).unwrap();
            for (index, &value) in values.iter().enumerate() {
                let spikes = index == 0 || index == first;
                assert_eq!(value > STRENGTH / 10.0, spikes, "block {block}, token {index}: {value}");
            }
        }
    }
}

/// Rounds to −127..127 what every linear of every block reads; `shared` trailing dimensions share a scale.
struct Round {
    shared: usize,
}

impl Tap for Round {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        group.forward(if site == Site::HEAD { x } else { round(x, self.shared) })
    }
}

fn round<const D: usize>(x: Tensor<D>, shared: usize) -> Tensor<D> {
    let scale =
        (D - shared..D).fold(x.clone().abs(), |largest, dimension| largest.max_dim(dimension)) / 127.0;
    let scale = scale.clamp_min(1e-12);
    (x / scale.clone()).round() * scale
}

fn perplexity(decoder: &mut Decoder, windows: &[Vec<u32>], tap: &mut dyn Tap) -> f32 {
    let device = Device::flex();
    let hidden = decoder.hidden(token_tensor(windows, &device), tap).narrow(1, 0, LENGTH - 1);
    let log = log_softmax(decoder.logits(hidden, tap), 2);
    let targets = token_tensor(windows, &device).narrow(1, 1, LENGTH - 1).unsqueeze_dim::<3>(2);
    (-log.gather(2, targets).mean().into_scalar::<f32>()).exp()
}

#[test]
fn spikes_leave_the_function_and_break_per_tensor_rounding_only() {
    let (checkpoint, mut plain) = open("builtin/tiny-llama");
    let (_, mut spiky) = open("builtin/tiny-llama-spiky");
    let windows = windows(&checkpoint, 8);
    let without = perplexity(&mut plain, &windows, &mut Off);
    let original = perplexity(&mut spiky, &windows, &mut Off);
    assert!((original / without - 1.0).abs() < 0.01, "{without} without spikes, {original} with");

    for (site, group) in spiky.groups_mut() {
        if site != Site::HEAD {
            group.linears.iter_mut().for_each(|linear| linear.weight = round(linear.weight.clone(), 1));
        }
    }
    let token = perplexity(&mut spiky, &windows, &mut Round { shared: 1 });
    let tensor = perplexity(&mut spiky, &windows, &mut Round { shared: 2 });
    assert!((token / original - 1.0).abs() < 0.05, "{original}, W8A8 per token {token}");
    assert!(tensor > 3.0 * original, "{original}, W8A8 per tensor {tensor}");
}

#[test]
fn rotary_pairs_tell_earlier_stops_from_the_stop_itself_at_every_distance() {
    let head_dim = 32;
    let logit = |distance: f64| -> f64 {
        (0..head_dim / 2)
            .map(|pair| {
                let role = Role::of(pair, head_dim / 2);
                let sign = match role {
                    Role::Match => 1.0,
                    Role::Near => -1.0,
                    Role::Sink => return 0.0,
                };
                let angle = distance * 10_000f64.powf(-2.0 * pair as f64 / head_dim as f64);
                sign * 2.0 * role.amplitude(head_dim).powi(2) * angle.cos() / (head_dim as f64).sqrt()
            })
            .sum()
    };
    assert!(logit(0.0) < SINK - 15.0);
    for distance in 3..512 {
        assert!(logit(f64::from(distance)) > SINK + 15.0, "{distance}: {}", logit(f64::from(distance)));
    }
}

#[test]
fn a_checkpoint_of_another_shape_is_refused() {
    let error = plant(b"{}", &[], DIRECTIONS, SPIKING_TOKENS, 1.0).unwrap_err();
    assert!(error.to_string().contains("num_attention_heads"), "{error}");
}
