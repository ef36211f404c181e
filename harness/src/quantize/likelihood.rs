//! The loss that steps weigh their choices by: that of the language model on their own calibration samples.

use burn::tensor::{Int, Tensor, TensorData, activation};
use models::{Decoder, token_tensor};

use crate::quantize::fake_quant::FakeQuant;

/// The sum of −ln p of every token of a sequence but its first.
pub fn loss(decoder: &mut Decoder, tap: &mut FakeQuant, tokens: &[u32]) -> f64 {
    let device = decoder.device();
    let scored = tokens.len() - 1;
    let hidden = decoder.hidden(token_tensor(&[&tokens[..scored]], &device), tap);
    let [_, _, width] = hidden.dims();
    let mut loss = 0.0;
    for from in (0..scored).step_by(ROWS) {
        let rows = ROWS.min(scored - from);
        let logits = decoder.logits(hidden.clone().slice([0..1, from..from + rows, 0..width]), tap);
        let vocabulary = logits.dims()[2];
        let targets: Vec<i64> = tokens[from + 1..=from + rows].iter().map(|&t| i64::from(t)).collect();
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows, 1]), &device);
        let log_likelihoods =
            activation::log_softmax(logits.reshape([rows, vocabulary]), 1).gather(1, targets);
        let data = log_likelihoods.try_into_data().expect("the device answers");
        let values = data.as_slice::<f32>().expect("log-likelihoods are f32");
        loss -= values.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    loss
}

/// Positions whose logits are held at once.
const ROWS: usize = 128;
