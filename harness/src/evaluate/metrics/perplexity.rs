//! `perplexity`: exp of the mean negative log-likelihood per token, under a named protocol.

use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::data::{BosPolicy, CorpusRef};
use crate::evaluate::decode::Mode;
use crate::evaluate::{EvaluateError, LanguageModel, Measured, Progress};

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
    /// At most this many windows.
    pub limit: Option<usize>,
    /// How the tokens of a window go through the model.
    pub mode: Mode,
}

/// Perplexity protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Disjoint windows of one stream, mean over windows of the mean loss (GPTQ, SmoothQuant, QuaRot, …).
    Gptq,
}

/// Raised whenever a number could move.
pub const VERSION: u32 = 1;

impl Perplexity {
    /// The full metric id, e.g. `perplexity/gptq/wikitext2-test/2048/bos=tokenizer/windows=20`.
    pub fn id(&self) -> String {
        let protocol = match self.protocol {
            Protocol::Gptq => "gptq",
        };
        let limit = self.limit.map(|n| format!("/windows={n}")).unwrap_or_default();
        let mode = match self.mode {
            Mode::Dense => "",
            Mode::Decode => "/mode=decode",
        };
        format!(
            "perplexity/{protocol}/{}/{}/bos={}{limit}{mode}",
            self.corpus.label(),
            self.length,
            self.bos.as_str()
        )
    }
}

/// Measures the perplexity of windows of one length.
///
/// Protocol `gptq`: the loss of a window is the mean over its scored tokens, the perplexity exp of the mean over windows
/// (GPTQ's `llama_eval`; SmoothQuant, QuaRot, Atom and others use the same). The standard error treats windows as the
/// independent units: se(ppl) = ppl · se(mean of window losses), the delta method.
///
/// # Errors
/// An interrupted or failing model, or losses that are not finite.
pub fn measure(
    model: &mut dyn LanguageModel,
    windows: &[Vec<u32>],
    progress: &mut Progress,
) -> Result<Measured, EvaluateError> {
    let batch = windows.first().map_or(1, |window| model.batch(window.len()));
    let mut losses = Vec::with_capacity(windows.len());
    let mut scored = 0u64;
    for (index, chunk) in windows.chunks(batch).enumerate() {
        if !progress(index * batch, windows.len()) {
            return Err(EvaluateError::Interrupted);
        }
        let sequences: Vec<&[u32]> = chunk.iter().map(Vec::as_slice).collect();
        for scores in model.log_likelihoods(&sequences)? {
            let count = scores.iter().filter(|score| !score.is_finite()).count();
            if count > 0 {
                return Err(EvaluateError::NotFinite { count, total: scores.len(), window: losses.len() });
            }
            scored += scores.len() as u64;
            losses.push(-scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64);
        }
    }
    let n = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let value = mean.exp();
    let stderr = (losses.len() > 1).then(|| {
        let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0);
        value * (variance / n).sqrt()
    });
    if !value.is_finite() {
        return Err(EvaluateError::NotFinite { count: windows.len(), total: windows.len(), window: 0 });
    }
    let mut detail = Map::new();
    detail.insert("windows".into(), losses.len().into());
    detail.insert("mean-loss".into(), mean.into());
    detail.insert("window-losses".into(), losses.into());
    Ok(Measured { value, stderr, n: scored, detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::scoring::Answer;
    use crate::evaluate::windows::Sequence;

    /// Every token has the same probability, which depends on the window's first token.
    struct Constant;
    impl LanguageModel for Constant {
        fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvaluateError> {
            Ok(sequences.iter().map(|s| vec![-(s[0] as f32); s.len() - 1]).collect())
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
        };
        assert_eq!(dense.id(), "perplexity/gptq/wikitext2-test/64/bos=none/windows=4");
        let decoded = Perplexity { mode: Mode::Decode, ..dense };
        assert_eq!(decoded.id(), "perplexity/gptq/wikitext2-test/64/bos=none/windows=4/mode=decode");
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
            fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvaluateError> {
                Ok(sequences.iter().map(|_| vec![f32::NAN]).collect())
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
