//! A reading against the original, token by token on the same windows: KL divergence, top-1 agreement and Δ log-perplexity.
//!
//! The original's logits are not kept: for a text of any size they are the largest thing there is. What is kept are its
//! hidden states before the output head, a vocabulary's width smaller, and the head itself; the logits are made again
//! beside those of the reading, slice by slice, by the same products, so that the original against itself gives exactly
//! 0. Beside them the details of the KL divergence say how it goes with the token's position, and how errors grow inside
//! ([`growth`]). Behind a prefix a reading is still compared with the original without one: that is the model that was given.
//!
//! # Reference
//! `paired::divergence`, and the statistics of llama.cpp's `llama-perplexity --kl-divergence`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use models::kernel::with_values;
use models::simd::exp_below_zero;
use models::{Decoder, Off, per_processor};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::evaluate::decoder_model::{DecoderModel, target_log_likelihoods};
use crate::evaluate::growth::{self, Growth, Shared, Watch};
use crate::evaluate::metrics::perplexity;
use crate::evaluate::windows::{Window, batches};
use crate::evaluate::{EvaluateError, LanguageModel, Measured, Progress};
use crate::paired::clustered::{self, Cluster};
use crate::paired::divergence::{self, Divergences, Masses, TokenDivergence, token_divergence_by};
use crate::record::{AGAINST_ORIGINAL, NOISE_FLOOR};

/// Raised whenever a number could move.
pub const VERSION: u32 = 1;

/// Bytes of hidden states that one model's evaluations keep in memory; beyond it they go to a temporary file.
pub const STATES_IN_MEMORY: u64 = 1 << 30;

/// The full ids for the evaluation whose perplexity has this id; `floor` for those of the noise floor.
pub fn ids(perplexity: &str, floor: bool) -> [String; 3] {
    let protocol = perplexity.split_once('/').map_or(perplexity, |(_, protocol)| protocol);
    let end = if floor { format!("/{NOISE_FLOOR}") } else { String::new() };
    AGAINST_ORIGINAL.map(|name| format!("{name}/{protocol}{end}"))
}

/// What is kept of the original for one evaluation.
pub struct Original {
    /// Without blocks: its output head and nothing else.
    head: Decoder,
    states: States,
    /// Values of one hidden state.
    width: usize,
    /// Of its first tokens.
    queries: Shared,
}

/// Hidden states of every window, `[targets, hidden]` one after the other.
enum States {
    Memory(Vec<Vec<f32>>),
    /// An unnamed temporary file, gone with the process, and where each window begins and ends in it.
    File(File, Vec<Range<u64>>),
}

impl Original {
    /// Bytes of hidden states that the windows need.
    pub fn bytes(windows: &[Window], hidden: usize) -> u64 {
        windows.iter().map(|window| 4 * (window.targets.len() * hidden) as u64).sum()
    }

    /// Runs the original over the windows and keeps its states, in memory if they take no more than `bound` bytes.
    ///
    /// # Errors
    /// An interrupted model, or a temporary file that cannot be written.
    pub fn keep(
        model: &mut DecoderModel<'_>,
        windows: &[Window],
        bound: u64,
        progress: &mut Progress,
    ) -> Result<Self, EvaluateError> {
        let head = model.head();
        let width = head.architecture.hidden;
        let mut states = match Self::bytes(windows, width) <= bound {
            true => States::Memory(Vec::with_capacity(windows.len())),
            false => States::File(tempfile::tempfile().map_err(spilling)?, Vec::new()),
        };
        model.watch(Watch::keeps(model.architecture(), windows));
        for batch in batches(windows, &|length| model.batch(length)) {
            if !progress(batch.start, windows.len()) {
                return Err(EvaluateError::Interrupted);
            }
            for window in model.states(&windows[batch].iter().collect::<Vec<_>>())? {
                let values = window.try_into_data().expect("the device answers");
                let values = values.try_into_vec::<f32>().expect("states are f32");
                states.push(values).map_err(spilling)?;
            }
        }
        let watch = model.watched();
        let queries = Shared::clone(watch.kept().expect("an original's windows are watched on their way"));
        Ok(Self { head, states, width, queries })
    }

    /// Queries of its first tokens.
    pub fn queries(&self) -> &Shared {
        &self.queries
    }

    /// Bytes that it keeps in memory besides the head.
    pub fn held(&self) -> u64 {
        match &self.states {
            States::Memory(windows) => windows.iter().map(|values| 4 * values.len() as u64).sum(),
            States::File(..) => 0,
        }
    }

    /// Logits of some targets of a window, `[targets, vocabulary]`.
    fn logits(
        &mut self,
        window: usize,
        targets: Range<usize>,
        device: &Device,
    ) -> Result<Tensor<2>, EvaluateError> {
        let count = targets.len();
        let values = self.states.read(window, targets.start * self.width..targets.end * self.width);
        let states = TensorData::new(values.map_err(spilling)?, [1, count, self.width]);
        let logits = self.head.logits(Tensor::from_data(states, device), &mut Off);
        let vocabulary = logits.dims()[2];
        Ok(logits.reshape([count, vocabulary]))
    }
}

impl States {
    fn push(&mut self, values: Vec<f32>) -> io::Result<()> {
        match self {
            States::Memory(windows) => windows.push(values),
            States::File(file, places) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let start = places.last().map_or(0, |place| place.end);
                file.write_all(&bytes)?;
                places.push(start..start + bytes.len() as u64);
            }
        }
        Ok(())
    }

    /// Values of a window.
    fn read(&mut self, window: usize, values: Range<usize>) -> io::Result<Vec<f32>> {
        match self {
            States::Memory(windows) => Ok(windows[window][values].to_vec()),
            States::File(file, places) => {
                let mut bytes = vec![0; 4 * values.len()];
                file.seek(SeekFrom::Start(places[window].start + 4 * values.start as u64))?;
                file.read_exact(&mut bytes)?;
                let (values, _) = bytes.as_chunks::<4>();
                Ok(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
            }
        }
    }
}

fn spilling(error: io::Error) -> EvaluateError {
    EvaluateError::States { message: error.to_string() }
}

/// Both readings of every window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compared {
    /// ln p of every target, of the reading.
    pub scores: Vec<Vec<f32>>,
    /// The same, of the original.
    pub original: Vec<Vec<f32>>,
    /// Of every target.
    pub divergences: Vec<Vec<TokenDivergence>>,
    /// Errors inside, over the first tokens.
    pub growth: Growth,
}

/// Runs a reading over the windows that the original was run over.
///
/// # Errors
/// An interrupted model, or a temporary file that cannot be read.
pub fn compare(
    model: &mut DecoderModel<'_>,
    windows: &[Window],
    original: &mut Original,
    progress: &mut Progress,
) -> Result<Compared, EvaluateError> {
    let mut compared = Compared {
        scores: vec![Vec::new(); windows.len()],
        original: vec![Vec::new(); windows.len()],
        divergences: vec![Vec::new(); windows.len()],
        growth: Growth::default(),
    };
    model.watch(Watch::compares(&original.queries));
    for batch in batches(windows, &|length| model.batch(length)) {
        if !progress(batch.start, windows.len()) {
            return Err(EvaluateError::Interrupted);
        }
        let mut broken = None;
        let fed: Vec<&Window> = windows[batch.clone()].iter().collect();
        model.each_logits(&fed, &mut |index, targets, logits| {
            let window = batch.start + index;
            let theirs = match original.logits(window, targets.clone(), &logits.device()) {
                Ok(theirs) => theirs,
                Err(error) => {
                    broken.get_or_insert(error);
                    return;
                }
            };
            let wanted = &windows[window].targets[targets];
            compared.divergences[window].extend(divergences(&theirs, &logits));
            compared.scores[window].extend(target_log_likelihoods(logits, wanted));
            compared.original[window].extend(target_log_likelihoods(theirs, wanted));
        })?;
        if let Some(error) = broken {
            return Err(error);
        }
    }
    compared.growth = model.watched().growth();
    Ok(compared)
}

/// Row by row, on the host: sums over the vocabulary in f64.
fn divergences(original: &Tensor<2>, reading: &Tensor<2>) -> Vec<TokenDivergence> {
    let vocabulary = reading.dims()[1];
    with_values(original.clone(), |original| {
        with_values(reading.clone(), |reading| {
            let rows = original.par_chunks(vocabulary).zip(reading.par_chunks(vocabulary));
            rows.map(|(a, b)| token_divergence_by(masses, a, b).expect("rows of one vocabulary")).collect()
        })
    })
}

per_processor! {
    /// [`divergence::masses`], lane by lane.
    fn masses(original: &[f32], reading: &[f32], peaks: [f64; 2]) -> Masses {
        const LANES: usize = 16;
        let mut sums = [[0.0f64; LANES]; 3];
        let ((chunks, rest), (reading, reading_rest)) = (original.as_chunks(), reading.as_chunks());
        let mut last = [[f32::NEG_INFINITY; LANES]; 2];
        last[0][..rest.len()].copy_from_slice(rest);
        last[1][..rest.len()].copy_from_slice(reading_rest);
        for (original, reading) in chunks.iter().zip(reading).chain([(&last[0], &last[1])]) {
            for i in 0..LANES {
                let (a, b) = (f64::from(original[i]) - peaks[0], f64::from(reading[i]) - peaks[1]);
                let weight = exp_below_zero(a);
                sums[0][i] += weight;
                sums[1][i] += exp_below_zero(b);
                // 0 · ∞ where the original excludes the token.
                sums[2][i] += if weight > 0.0 { weight * (a - b) } else { 0.0 };
            }
        }
        let [original, reading, moved] = sums.map(|lanes| lanes.iter().sum());
        Masses { original, reading, moved }
    }
}

/// KL divergence, top-1 agreement and Δ log-perplexity, in the order of [`AGAINST_ORIGINAL`]. Standard errors are clustered by window,
/// or by document under the protocol that scores documents; what each of them adds is in the details, so that readings can
/// be paired with each other from records alone.
///
/// # Errors
/// Log-likelihoods that are not finite, or no token with a finite divergence.
pub fn measured(windows: &[Window], compared: &Compared) -> Result<[Measured; 3], EvaluateError> {
    perplexity::all_finite(&compared.scores)?;
    perplexity::all_finite(&compared.original)?;
    let units = units(windows);
    let mut all = Divergences::default();
    let mut differences = Vec::with_capacity(units.len());
    let mut same_top = Vec::with_capacity(units.len());
    let mut kl_sums = Vec::with_capacity(units.len());
    let mut kl_tokens = Vec::with_capacity(units.len());
    for unit in &units {
        let tokens: Vec<TokenDivergence> =
            unit.iter().flat_map(|&w| compared.divergences[w].clone()).collect();
        let finite = || tokens.iter().filter(|token| token.kl.is_finite());
        same_top.push(finite().filter(|token| token.same_top).count());
        kl_sums.push(finite().map(|token| token.kl).sum::<f64>());
        kl_tokens.push(finite().count());
        let pairs = unit.iter().flat_map(|&w| compared.original[w].iter().zip(&compared.scores[w]));
        let sum = pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)).sum::<f64>();
        differences.push(Cluster { sum, n: tokens.len() as u64 });
        all.push_window(tokens);
    }
    let not_finite = |_| {
        let total = all.tokens().len();
        EvaluateError::NotFinite { count: total, total, window: 0 }
    };
    let summary = divergence::summary(&all).map_err(not_finite)?;
    let difference = clustered::mean(&differences).map_err(not_finite)?;
    let buckets: Vec<Value> = summary
        .buckets
        .iter()
        .map(|b| {
            json!({
                "from": b.from, "to": b.to, "tokens": b.tokens, "mean": b.mean, "median": b.median,
                "same-top": b.same_top,
            })
        })
        .collect();
    let placed = windows.iter().zip(&compared.divergences).flat_map(|(window, tokens)| {
        tokens.iter().enumerate().map(move |(target, token)| (window.from + target, token.kl))
    });
    let kl = detail([
        ("units", json!(units.len())),
        ("median", json!(summary.median)),
        ("p90", json!(summary.p90)),
        ("p99", json!(summary.p99)),
        ("max", json!(summary.max)),
        ("not-finite", json!(summary.not_finite)),
        ("buckets", json!(buckets)),
        ("unit-sums", json!(kl_sums)),
        ("unit-tokens", json!(kl_tokens)),
        ("by-position", growth::written(&growth::by_position(placed))),
        ("queries-by-block", json!(compared.growth.blocks)),
        ("queries-by-position", growth::written(&compared.growth.positions)),
    ]);
    let top = detail([
        ("units", json!(units.len())),
        ("unit-sums", json!(same_top)),
        ("unit-tokens", json!(kl_tokens)),
    ]);
    let delta = detail([
        ("units", json!(units.len())),
        ("unit-sums", json!(differences.iter().map(|c| c.sum).collect::<Vec<_>>())),
        ("unit-tokens", json!(differences.iter().map(|c| c.n).collect::<Vec<_>>())),
    ]);
    Ok([(summary.mean, kl), (summary.same_top, top), (difference, delta)].map(|(estimate, detail)| {
        Measured { value: estimate.value, stderr: estimate.stderr, n: estimate.n, detail }
    }))
}

/// The places of the windows of every unit, units in order.
fn units(windows: &[Window]) -> Vec<Vec<usize>> {
    let mut units: Vec<Vec<usize>> = Vec::new();
    for (place, window) in windows.iter().enumerate() {
        match units.last_mut() {
            Some(unit) if windows[unit[0]].unit == window.unit => unit.push(place),
            _ => units.push(vec![place]),
        }
    }
    units
}

fn detail<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_the_same_protocol() {
        let [kl, _, delta] = ids("perplexity/gptq/x/2048/bos=every", false);
        assert_eq!(kl, "kl-divergence/gptq/x/2048/bos=every");
        assert_eq!(delta, "log-perplexity-difference/gptq/x/2048/bos=every");
        assert_eq!(ids("perplexity/gptq/x", true)[1], "top1-agreement/gptq/x/noise-floor");
    }

    #[test]
    fn divergences_are_those_of_the_sums_one_after_the_other() {
        let row = |length: usize, step: f32| -> Vec<f32> {
            (0..length).map(|i| 9.0 * (i as f32 * step).sin() - 3.0).collect()
        };
        for length in [1, 15, 16, 17, 64, 1003] {
            let (mut a, b) = (row(length, 0.37), row(length, 0.41));
            for _ in 0..2 {
                let found = token_divergence_by(masses, &a, &b).unwrap();
                let expected = divergence::token_divergence(&a, &b).unwrap();
                let close = |x: f64, y: f64| (x - y).abs() <= 1e-13 * (1.0 + y.abs());
                assert!(close(found.kl, expected.kl) && close(found.confidence, expected.confidence));
                assert_eq!(found.same_top, expected.same_top);
                // Exactly nothing, against itself and against a constant that no subtraction rounds.
                assert_eq!(token_divergence_by(masses, &a, &a).unwrap().kl, 0.0);
                let shifted: Vec<f32> = a.iter().map(|x| (x * 64.0).round() / 64.0).collect();
                let twin: Vec<f32> = shifted.iter().map(|x| x + 2.0).collect();
                assert_eq!(token_divergence_by(masses, &shifted, &twin).unwrap().kl, 0.0);
                // Again where the original excludes a token.
                a[length / 2] = if length > 1 { f32::NEG_INFINITY } else { 1.0 };
            }
            let mut excluding = b.clone();
            excluding[0] = f32::NEG_INFINITY;
            let found = token_divergence_by(masses, &b, &excluding).unwrap();
            assert!(if length > 1 { found.kl == f64::INFINITY } else { found.kl.is_nan() }, "{found:?}");
        }
    }

    #[test]
    fn states_in_a_file_read_back_as_they_were() {
        let mut file = States::File(tempfile::tempfile().unwrap(), Vec::new());
        let mut memory = States::Memory(Vec::new());
        for window in [vec![1.0, -2.5, 3.0, 4.0], vec![], vec![5.0, f32::MIN_POSITIVE]] {
            file.push(window.clone()).unwrap();
            memory.push(window).unwrap();
        }
        for (window, values) in [(0, 1..3), (2, 0..2), (1, 0..0), (0, 0..4)] {
            assert_eq!(file.read(window, values.clone()).unwrap(), memory.read(window, values).unwrap());
        }
    }

    #[test]
    fn a_unit_is_a_document_where_windows_share_one() {
        let window = |unit| Window { fed: vec![1, 2], from: 0, targets: vec![2], unit };
        assert_eq!(units(&[window(0), window(0), window(3)]), [vec![0, 1], vec![2]]);
        // One token a window: differences 1, 3 and −2, of which the first two belong together.
        let token = TokenDivergence { kl: 0.5, confidence: 0.3, same_top: true };
        let compared = Compared {
            scores: vec![vec![-2.0], vec![-4.0], vec![-1.0]],
            original: vec![vec![-1.0], vec![-1.0], vec![-3.0]],
            divergences: vec![vec![token], vec![token], vec![TokenDivergence { same_top: false, ..token }]],
            growth: Growth::default(),
        };
        let [kl, top, delta] = measured(&[window(0), window(0), window(3)], &compared).unwrap();
        assert_eq!((kl.value, kl.n), (0.5, 3));
        assert_eq!(top.value, 2.0 / 3.0);
        assert_eq!(delta.detail["unit-sums"], json!([4.0, -2.0]));
        // Mean 2/3; (4 − 4/3)² + (−2 − 2/3)² = 128/9; times 2/1, the root of it over 3.
        assert!((delta.stderr.unwrap() - (256f64 / 9.0).sqrt() / 3.0).abs() < 1e-12);
    }
}
