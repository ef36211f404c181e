//! `perplexity`: exp of the mean negative log-likelihood per token, under a named protocol.

use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::data::{BosPolicy, CorpusRef};
use crate::evaluate::decode::Mode;
use crate::evaluate::windows::{Window, batches, llama_cpp_perplexity};
use crate::evaluate::{EvaluateError, LanguageModel, Measured, Progress};
use crate::paired::clustered::{self, Cluster};

/// An `[[evaluate]]` block with `metric = "perplexity"`.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// How text becomes windows and windows a number.
    pub protocol: Protocol,
    /// The text.
    pub corpus: CorpusRef,
    /// Tokens per window, BOS included where the policy adds one.
    pub length: usize,
    /// Where BOS stands.
    pub bos: BosPolicy,
    /// At most this many windows, or documents under the protocol of that name.
    pub limit: Option<usize>,
    /// How the tokens of a window go through the model.
    pub mode: Mode,
    /// Whether readings are also compared with the original token by token ([`crate::evaluate::against`]).
    pub against_original: bool,
}

/// Perplexity protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Rolling windows of each document, whose first token is not predicted; mean over all tokens (arXiv 2405.14428).
    Document,
    /// Disjoint windows of one stream, mean over windows of the mean loss (GPTQ, SmoothQuant, QuaRot, …).
    Gptq,
    /// Disjoint windows of one stream, of which the second half is scored (llama.cpp's `llama-perplexity`).
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
}

impl Protocol {
    /// The word used in files and metric ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Document => "document",
            Protocol::Gptq => "gptq",
            Protocol::LlamaCpp => "llama.cpp",
        }
    }
}

/// Raised whenever a number could move.
pub const VERSION: u32 = 1;

impl Perplexity {
    /// The full metric id, e.g. `perplexity/gptq/wikitext2-test/2048/bos=tokenizer/windows=20`.
    pub fn id(&self) -> String {
        let counted = match self.protocol {
            Protocol::Document => "documents",
            Protocol::Gptq | Protocol::LlamaCpp => "windows",
        };
        let limit = self.limit.map(|n| format!("/{counted}={n}")).unwrap_or_default();
        let mode = match self.mode {
            Mode::Dense => "",
            Mode::Decode => "/mode=decode",
        };
        format!(
            "perplexity/{}/{}/{}/bos={}{limit}{mode}",
            self.protocol.as_str(),
            self.corpus.label(),
            self.length,
            self.bos.as_str()
        )
    }
}

/// Measures the perplexity of windows of one length under protocol `gptq`.
///
/// # Errors
/// As [`measure_windows`].
pub fn measure(
    model: &mut dyn LanguageModel,
    windows: &[Vec<u32>],
    progress: &mut Progress,
) -> Result<Measured, EvaluateError> {
    let windows: Vec<Window> = windows.iter().zip(0..).map(|(tokens, i)| Window::whole(tokens, i)).collect();
    measure_windows(model, Protocol::Gptq, &windows, progress)
}

/// Measures the perplexity of windows.
///
/// # Errors
/// An interrupted or failing model, or losses that are not finite.
pub fn measure_windows(
    model: &mut dyn LanguageModel,
    protocol: Protocol,
    windows: &[Window],
    progress: &mut Progress,
) -> Result<Measured, EvaluateError> {
    let mut scores = Vec::with_capacity(windows.len());
    for batch in batches(windows, &|length| model.batch(length)) {
        if !progress(batch.start, windows.len()) {
            return Err(EvaluateError::Interrupted);
        }
        let first = scores.len();
        scores.extend(model.scores(&windows[batch].iter().collect::<Vec<_>>())?);
        // Now rather than after hours.
        all_finite(&scores[first..]).map_err(|error| match error {
            EvaluateError::NotFinite { count, total, window } => {
                EvaluateError::NotFinite { count, total, window: first + window }
            }
            other => other,
        })?;
    }
    measured(protocol, windows, &scores)
}

/// Refuses log-likelihoods that are not finite.
///
/// # Errors
/// [`EvaluateError::NotFinite`] with the first window that has some.
pub fn all_finite(scores: &[Vec<f32>]) -> Result<(), EvaluateError> {
    for (window, scores) in scores.iter().enumerate() {
        let count = scores.iter().filter(|score| !score.is_finite()).count();
        if count > 0 {
            return Err(EvaluateError::NotFinite { count, total: scores.len(), window });
        }
    }
    Ok(())
}

/// The perplexity from the log-likelihood of every target of every window.
///
/// Protocol `gptq`: the loss of a window is the mean over its scored tokens, the perplexity exp of the mean over windows
/// (GPTQ's `llama_eval`; SmoothQuant, QuaRot, Atom and others use the same). Protocols `document` and `llama.cpp`: exp of
/// the mean over all scored tokens. The standard error treats windows, or documents, as the independent units: se(ppl) =
/// ppl · se(mean loss), the delta method. llama.cpp's own uncertainty, which takes tokens as independent, stands in the
/// details.
///
/// # Errors
/// Losses that are not finite.
pub fn measured(
    protocol: Protocol,
    windows: &[Window],
    scores: &[Vec<f32>],
) -> Result<Measured, EvaluateError> {
    all_finite(scores)?;
    let sums = || scores.iter().map(|scores| -scores.iter().map(|&score| f64::from(score)).sum::<f64>());
    let mut detail = Map::new();
    let scored: u64 = scores.iter().map(|scores| scores.len() as u64).sum();
    let (mean, spread) = if protocol == Protocol::Gptq {
        let losses: Vec<f64> = sums().zip(scores).map(|(sum, scores)| sum / scores.len() as f64).collect();
        let n = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / n;
        let spread = (losses.len() > 1).then(|| {
            let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0);
            (variance / n).sqrt()
        });
        detail.insert("windows".into(), losses.len().into());
        detail.insert("mean-loss".into(), mean.into());
        detail.insert("window-losses".into(), losses.into());
        (mean, spread)
    } else {
        let mut units: Vec<(usize, Cluster)> = Vec::new();
        for ((window, sum), scores) in windows.iter().zip(sums()).zip(scores) {
            if units.last().is_none_or(|(unit, _)| *unit != window.unit) {
                units.push((window.unit, Cluster::default()));
            }
            if let Some((_, unit)) = units.last_mut() {
                (unit.sum, unit.n) = (unit.sum + sum, unit.n + scores.len() as u64);
            }
        }
        let units: Vec<Cluster> = units.into_iter().map(|(_, unit)| unit).collect();
        let not_finite =
            |_| EvaluateError::NotFinite { count: windows.len(), total: windows.len(), window: 0 };
        let mean = clustered::mean(&units).map_err(not_finite)?;
        if protocol == Protocol::LlamaCpp
            && let Some((_, uncertainty)) =
                llama_cpp_perplexity(scores.iter().flatten().map(|&s| f64::from(s)))
        {
            detail.insert("llama.cpp-uncertainty".into(), uncertainty.into());
        }
        let losses: Vec<f64> = units.iter().map(|unit| unit.sum / unit.n as f64).collect();
        let tokens: Vec<u64> = units.iter().map(|unit| unit.n).collect();
        detail.insert("windows".into(), windows.len().into());
        detail.insert("mean-loss".into(), mean.value.into());
        detail.insert("window-losses".into(), losses.into());
        detail.insert("window-tokens".into(), tokens.into());
        (mean.value, mean.stderr)
    };
    let value = mean.exp();
    if !value.is_finite() {
        return Err(EvaluateError::NotFinite { count: windows.len(), total: windows.len(), window: 0 });
    }
    Ok(Measured { value, stderr: spread.map(|spread| value * spread), n: scored, detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::scoring::Answer;
    use crate::evaluate::windows::Sequence;

    /// Every token has the same probability, which depends on the window's first token.
    struct Constant;
    impl LanguageModel for Constant {
        fn scores(&mut self, windows: &[&Window]) -> Result<Vec<Vec<f32>>, EvaluateError> {
            Ok(windows.iter().map(|w| vec![-(w.fed[0] as f32); w.targets.len()]).collect())
        }
        fn batch(&self, _: usize) -> usize {
            2
        }
        fn answers(&mut self, _: &[&[Sequence]], _: &mut Progress) -> Result<Vec<Answer>, EvaluateError> {
            unreachable!("perplexity asks for log-likelihoods")
        }
    }

    #[test]
    fn perplexity_is_the_exponential_of_the_mean_window_loss() {
        let windows = [vec![1, 0, 0], vec![2, 0, 0], vec![3, 0, 0]];
        let measured = measure(&mut Constant, &windows, &mut |_, _| true).unwrap();
        assert!((measured.value - 2f64.exp()).abs() < 1e-9);
        assert_eq!(measured.n, 6);
        // The losses 1, 2, 3 have standard deviation 1, so the mean has 1/√3.
        assert!((measured.stderr.unwrap() - 2f64.exp() / 3f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn a_mode_stands_in_the_id_where_it_is_not_the_usual_one() {
        let dense = Perplexity {
            protocol: Protocol::Gptq,
            corpus: CorpusRef::Named("wikitext2/test".into()),
            length: 64,
            bos: BosPolicy::None,
            limit: Some(4),
            mode: Mode::Dense,
            against_original: false,
        };
        assert_eq!(dense.id(), "perplexity/gptq/wikitext2-test/64/bos=none/windows=4");
        let decoded = Perplexity { mode: Mode::Decode, ..dense };
        assert_eq!(decoded.id(), "perplexity/gptq/wikitext2-test/64/bos=none/windows=4/mode=decode");
    }

    #[test]
    fn documents_weigh_by_their_tokens() {
        // Two windows of one document, losses 1 (two tokens) and 4 (one token), and one of another, loss 2.
        let window = |first, n, unit| Window { fed: vec![first; n], from: 0, targets: vec![0; n], unit };
        let windows = [window(1, 2, 0), window(4, 1, 0), window(2, 1, 1)];
        let measured =
            measure_windows(&mut Constant, Protocol::Document, &windows, &mut |_, _| true).unwrap();
        assert!((measured.value - 2f64.exp()).abs() < 1e-9, "8 nats over 4 tokens");
        assert_eq!(measured.detail["window-losses"], serde_json::json!([2.0, 2.0]));
        assert_eq!(measured.detail["window-tokens"], serde_json::json!([3, 1]));
        assert_eq!(measured.stderr, Some(0.0), "both documents have the same mean");
        let chunks = [window(1, 1, 0), window(3, 1, 1)];
        let measured = measure_windows(&mut Constant, Protocol::LlamaCpp, &chunks, &mut |_, _| true).unwrap();
        // llama.cpp's ±, by hand: losses 1 and 3.
        assert!((measured.detail["llama.cpp-uncertainty"].as_f64().unwrap() - 2f64.exp()).abs() < 1e-9);
    }

    #[test]
    fn one_window_has_no_standard_error() {
        assert_eq!(measure(&mut Constant, &[vec![1, 0]], &mut |_, _| true).unwrap().stderr, None);
    }

    #[test]
    fn interruption_and_nan_are_errors() {
        let interrupted = measure(&mut Constant, &[vec![1, 0]], &mut |_, _| false);
        assert_eq!(interrupted, Err(EvaluateError::Interrupted));
        struct Broken;
        impl LanguageModel for Broken {
            fn scores(&mut self, windows: &[&Window]) -> Result<Vec<Vec<f32>>, EvaluateError> {
                Ok(windows.iter().map(|_| vec![f32::NAN]).collect())
            }
            fn batch(&self, _: usize) -> usize {
                1
            }
            fn answers(&mut self, _: &[&[Sequence]], _: &mut Progress) -> Result<Vec<Answer>, EvaluateError> {
                unreachable!("perplexity asks for log-likelihoods")
            }
        }
        let broken = measure(&mut Broken, &[vec![1, 0]], &mut |_, _| true);
        assert!(matches!(broken, Err(EvaluateError::NotFinite { window: 0, .. })));
    }
}
