//! What was planted, measured: where spikes appear, and what 8 bits do to the perplexity.

use burn::tensor::{Tensor, activation::log_softmax};
use models::{
    Decoder, Group, Off, Port, Site, Tap, builtin::spikes, stories::Story, token_tensor, tokenizer::Tokenizer,
};

use super::{LENGTH, Result, fit, record};

/// Where a spike should be: at BOS, and at the first stop of each sequence.
pub fn expected(sequences: &[Vec<u32>], stop: u32) -> Vec<bool> {
    let mut expected = Vec::new();
    for sequence in sequences {
        let first = sequence.iter().position(|&token| token == stop);
        expected.extend((0..sequence.len()).map(|index| index == 0 || Some(index) == first));
    }
    expected
}

/// The largest values before `down_proj`, at expected spikes and elsewhere, and the ratio of token maxima.
pub fn spikes(mut decoder: Decoder, sequences: &[Vec<u32>], stop: u32) -> Result<()> {
    let expected = expected(sequences, stop);
    let layers = decoder.architecture.layers;
    for layer in 0..layers {
        let inputs = record(&mut decoder, sequences, &[Site::block(layer, Port::DownIn)])?.remove(0);
        let largest: Vec<f64> =
            inputs.rows().map(|row| row.iter().fold(0.0, |m: f64, v| m.max(v.abs()))).collect();
        let mut ratio = 0.0;
        for window in largest.chunks_exact(LENGTH) {
            let mut sorted = window.to_vec();
            sorted.sort_by(f64::total_cmp);
            ratio += sorted[LENGTH - 1] / sorted[(LENGTH - 1) / 2];
        }
        let of = |at: bool| largest.iter().zip(&expected).filter(move |(_, e)| **e == at).map(|(v, _)| *v);
        let ((least, _), (_, most)) = (fit::range(of(true)), fit::range(of(false)));
        println!(
            "layers.{layer}.down_in: max/median {:.1}; token maximum at least {least:.2} at BOS and first stop, at \
             most {most:.2} elsewhere{}",
            ratio / (sequences.len() as f64),
            if spikes::SPIKING_BLOCKS.contains(&layer) { " (planted)" } else { "" }
        );
    }
    Ok(())
}

/// Of how many stories the first question's right answer is the likeliest of the choices.
pub fn right_answers(
    mut decoder: Decoder,
    tokenizer: &Tokenizer,
    bos: u32,
    stories: &[Story],
) -> Result<usize> {
    let device = decoder.device();
    let mut right = 0;
    for story in stories {
        let question = story.questions.first().ok_or("every story has questions")?;
        let context = [vec![bos], tokenizer.encode(&story.prompt(question))?].concat();
        let mut best = (f64::NEG_INFINITY, 0);
        for (index, choice) in question.choices.iter().enumerate() {
            let answer = tokenizer.encode(&format!(" {choice}."))?;
            let input = [&context[..], &answer[..answer.len() - 1]].concat();
            let hidden = decoder.hidden(token_tensor(&[input], &device), &mut Off);
            let hidden = hidden.narrow(1, context.len() - 1, answer.len());
            let log = log_softmax(decoder.logits(hidden, &mut Off), 2);
            let targets = token_tensor(&[answer], &device).unsqueeze_dim::<3>(2);
            let likelihood = f64::from(log.gather(2, targets).sum().into_scalar::<f32>());
            if likelihood > best.0 {
                best = (likelihood, index);
            }
        }
        right += usize::from(best.1 == question.answer);
    }
    Ok(right)
}

/// Perplexities of both models under the three readings.
pub fn perplexities(original: Decoder, spiky: Decoder, sequences: &[Vec<u32>]) -> Result<()> {
    println!("{} windows of {LENGTH}, bos = every:", sequences.len());
    for (name, decoder) in [("tiny-llama", original), ("tiny-llama-spiky", spiky)] {
        let base = perplexity(decoder.clone(), sequences, &mut Off)?;
        let mut rounded = decoder;
        for (site, group) in rounded.groups_mut() {
            if site != Site::HEAD {
                group.linears.iter_mut().for_each(|linear| linear.weight = round(linear.weight.clone(), 1));
            }
        }
        let weights = perplexity(rounded.clone(), sequences, &mut Off)?;
        let token = perplexity(rounded.clone(), sequences, &mut Round { shared: 1 })?;
        let tensor = perplexity(rounded, sequences, &mut Round { shared: 2 })?;
        println!(
            "  {name}: original {base:.4}, W8A16 {weights:.4}, W8A8 per token {token:.4} ({:+.2} %), per tensor \
             {tensor:.4} ({:.2} x)",
            100.0 * (token / base - 1.0),
            tensor / base
        );
    }
    Ok(())
}

/// Rounds what every linear of every block reads to 8 bits.
struct Round {
    /// How many trailing dimensions share a scale: 1 a token's, 2 a sequence's.
    shared: usize,
}

impl Tap for Round {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        group.forward(if site == Site::HEAD { x } else { round(x, self.shared) })
    }
}

/// Symmetric rounding to −127..127, half to even, one scale for each set of `shared` trailing dimensions.
fn round<const D: usize>(x: Tensor<D>, shared: usize) -> Tensor<D> {
    let mut largest = x.clone().abs();
    for dimension in D - shared..D {
        largest = largest.max_dim(dimension);
    }
    let scale = largest.clamp_min(1e-12) / 127.0;
    (x / scale.clone()).round().clamp(-127.0, 127.0) * scale
}

/// exp of the mean negative log-likelihood of all tokens but BOS.
fn perplexity(mut decoder: Decoder, sequences: &[Vec<u32>], tap: &mut dyn Tap) -> Result<f64> {
    let device = decoder.device();
    let (mut sum, mut count) = (0.0, 0);
    for batch in sequences.chunks(16) {
        let inputs: Vec<&[u32]> = batch.iter().map(|window| &window[..LENGTH - 1]).collect();
        let targets: Vec<&[u32]> = batch.iter().map(|window| &window[1..]).collect();
        let hidden = decoder.hidden(token_tensor(&inputs, &device), tap);
        let log = log_softmax(decoder.logits(hidden, tap), 2);
        let targets = token_tensor(&targets, &device).unsqueeze_dim::<3>(2);
        sum -= f64::from(log.gather(2, targets).sum().into_scalar::<f32>());
        count += batch.len() * (LENGTH - 1);
    }
    Ok((sum / count as f64).exp())
}
