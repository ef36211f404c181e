//! Token streams as sequences with scored positions: the rolling windows of lm-evaluation-harness, the document windows
//! of arXiv 2405.14428, and the chunks of llama.cpp's perplexity. Pure functions of token ids.

use std::ops::Range;

/// Token ids, and which of them are predicted from those before them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sequence {
    /// All ids, the last predicted one included.
    pub tokens: Vec<u32>,
    /// Places in `tokens` whose log-likelihood counts; it begins at 1 or later.
    pub scored: Range<usize>,
}

impl Sequence {
    /// What goes through the model: everything before the last scored token.
    pub fn inputs(&self) -> &[u32] {
        &self.tokens[..self.scored.end - 1]
    }

    /// The scored tokens.
    pub fn targets(&self) -> &[u32] {
        &self.tokens[self.scored.clone()]
    }
}

/// A piece of a text as a perplexity protocol feeds and scores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What goes through the model.
    pub fed: Vec<u32>,
    /// The place in `fed` whose logits predict the first target.
    pub from: usize,
    /// What is predicted, one token a place from there on.
    pub targets: Vec<u32>,
    /// The independent unit it belongs to: itself, or its document.
    pub unit: usize,
}

impl Window {
    /// Every token but the first is predicted. The last is fed, too, although nothing is predicted from it: published
    /// codes feed whole windows, and with one scale per sequence it matters.
    pub fn whole(tokens: &[u32], unit: usize) -> Self {
        Self { fed: tokens.to_vec(), from: 0, targets: tokens.get(1..).unwrap_or_default().to_vec(), unit }
    }

    /// A sequence of which all tokens are fed.
    pub fn all_fed(sequence: &Sequence, unit: usize) -> Self {
        let targets = sequence.targets().to_vec();
        Self { fed: sequence.tokens.clone(), from: sequence.scored.start - 1, targets, unit }
    }

    /// A sequence of which only the inputs are fed.
    pub fn inputs_fed(sequence: &Sequence, unit: usize) -> Self {
        Self { fed: sequence.inputs().to_vec(), ..Self::all_fed(sequence, unit) }
    }
}

/// Places of windows that go through a model together: neighbours that feed equally many tokens, at most `most(tokens)`.
pub fn batches(windows: &[Window], most: &dyn Fn(usize) -> usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    for (place, window) in windows.iter().enumerate() {
        let length = window.fed.len();
        match batches.last_mut() {
            Some(batch) if windows[batch.start].fed.len() == length && batch.len() < most(length).max(1) => {
                batch.end = place + 1;
            }
            _ => batches.push(place..place + 1),
        }
    }
    batches
}

/// Why a stream cannot be cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowsError {
    /// llama.cpp's rule.
    #[error(
        "the text has {tokens} tokens, and llama.cpp's perplexity needs twice its context, {needed}: use a longer text, \
         or a shorter context"
    )]
    TooShort {
        /// Of the stream.
        tokens: usize,
        /// Of the stream, at least.
        needed: usize,
    },
    /// A context in which nothing can be predicted.
    #[error("windows of {length} tokens are too short: use at least {least}")]
    Length {
        /// Asked for.
        length: usize,
        /// What would do.
        least: usize,
    },
}

/// The rolling windows of lm-evaluation-harness 0.4.13 (`get_rolling_token_windows` with `context_len` 1, made disjoint):
/// every token is predicted once, the first from `prefix`, and no window has more than `max_length` inputs. Later windows
/// begin with one token of context; the last keeps all the context that fits, of which the reference scores nothing.
///
/// With a tokenizer that adds BOS the reference hands over tokens that begin with BOS, and predicts it from `prefix`.
///
/// # Errors
/// [`WindowsError::Length`] for a `max_length` of 0.
pub fn rolling(tokens: &[u32], prefix: u32, max_length: usize) -> Result<Vec<Sequence>, WindowsError> {
    if max_length == 0 {
        return Err(WindowsError::Length { length: 0, least: 1 });
    }
    let mut windows = Vec::with_capacity(tokens.len().div_ceil(max_length));
    let first = tokens.len().min(max_length);
    if first > 0 {
        let tokens: Vec<u32> = std::iter::once(prefix).chain(tokens[..first].iter().copied()).collect();
        windows.push(Sequence { scored: 1..tokens.len(), tokens });
    }
    let mut predicted = first;
    while predicted < tokens.len() {
        let end = tokens.len().min(predicted + max_length);
        let start = end - max_length - 1;
        windows
            .push(Sequence { tokens: tokens[start..end].to_vec(), scored: predicted - start..end - start });
        predicted = end;
    }
    Ok(windows)
}

/// The document windows of arXiv 2405.14428 (`act_spike/eval.py`): rolling windows in which the document's first token is
/// context and never predicted. `bos` is put before every window and not scored, as the paper does for its baselines; a
/// fitted prefix takes its place there. `max_length` counts inputs without it.
///
/// # Errors
/// [`WindowsError::Length`] for a `max_length` of 0.
pub fn document(tokens: &[u32], bos: Option<u32>, max_length: usize) -> Result<Vec<Sequence>, WindowsError> {
    let Some((&first, rest)) = tokens.split_first() else { return Ok(Vec::new()) };
    let mut windows = rolling(rest, first, max_length)?;
    if let Some(bos) = bos {
        for window in &mut windows {
            window.tokens.insert(0, bos);
            window.scored = window.scored.start + 1..window.scored.end + 1;
        }
    }
    Ok(windows)
}

/// The chunks of llama.cpp's `llama-perplexity`: disjoint pieces of `context` tokens, the first of each overwritten by
/// `bos` where the vocabulary adds one, and only the second half scored, from place `context / 2 + 1` on: 255 of 512.
/// The tail that fills no chunk is dropped.
///
/// # Errors
/// [`WindowsError::TooShort`] below two chunks, as llama.cpp refuses, and [`WindowsError::Length`] where nothing would be
/// scored.
pub fn llama_cpp(tokens: &[u32], bos: Option<u32>, context: usize) -> Result<Vec<Sequence>, WindowsError> {
    if context < 3 {
        return Err(WindowsError::Length { length: context, least: 3 });
    }
    if tokens.len() < 2 * context {
        return Err(WindowsError::TooShort { tokens: tokens.len(), needed: 2 * context });
    }
    let chunks = tokens.chunks_exact(context).map(|chunk| {
        let mut tokens = chunk.to_vec();
        if let Some(bos) = bos {
            tokens[0] = bos;
        }
        Sequence { tokens, scored: context / 2 + 1..context }
    });
    Ok(chunks.collect())
}

/// Perplexity and its uncertainty as llama.cpp prints them, from the log-likelihoods of all scored tokens:
/// exp of the mean loss, and that times √((E\[loss²\] − E\[loss\]²) / (n − 1)), which takes tokens as independent.
/// `None` below two tokens.
pub fn llama_cpp_perplexity(log_likelihoods: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let (mut n, mut sum, mut squares) = (0u64, 0.0, 0.0);
    for log_likelihood in log_likelihoods {
        n += 1;
        sum -= log_likelihood;
        squares += log_likelihood * log_likelihood;
    }
    if n < 2 {
        return None;
    }
    let mean = sum / n as f64;
    let variance = (squares / n as f64 - mean * mean).max(0.0);
    let perplexity = mean.exp();
    Some((perplexity, perplexity * (variance / (n - 1) as f64).sqrt()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rolling_windows_predict_every_token_once_and_in_order(n in 0usize..60, length in 1usize..20) {
            let tokens: Vec<u32> = (1..=n as u32).collect();
            let windows = rolling(&tokens, 0, length).unwrap();
            let predicted: Vec<u32> = windows.iter().flat_map(|w| w.targets().to_vec()).collect();
            prop_assert_eq!(&predicted, &tokens);
            for window in &windows {
                // Each target follows its own predecessor, and no window is longer than allowed.
                prop_assert!(window.tokens.windows(2).all(|pair| pair[0] + 1 == pair[1]));
                prop_assert!(window.inputs().len() <= length);
            }
        }

        #[test]
        fn document_windows_leave_out_the_first_token_and_bos(n in 0usize..60, length in 1usize..20) {
            let tokens: Vec<u32> = (1..=n as u32).collect();
            let windows = document(&tokens, Some(99), length).unwrap();
            let predicted: Vec<u32> = windows.iter().flat_map(|w| w.targets().to_vec()).collect();
            prop_assert_eq!(&predicted[..], tokens.get(1..).unwrap_or_default());
            prop_assert!(windows.iter().all(|w| w.tokens[0] == 99 && w.inputs().len() <= length + 1));
        }
    }

    #[test]
    fn llama_cpp_scores_255_of_512() {
        let tokens: Vec<u32> = (0..1100).collect();
        let chunks = llama_cpp(&tokens, Some(7), 512).unwrap();
        assert_eq!(chunks.len(), 2);
        assert_eq!((chunks[1].tokens[0], chunks[1].tokens[1]), (7, 513));
        // Logits of places first = n_ctx / 2 … n_ctx - 2 predict the tokens after them.
        assert_eq!(chunks[0].scored, 257..512);
        assert_eq!(chunks[0].targets().len(), 255);
        assert_eq!(llama_cpp(&tokens, None, 512).unwrap()[1].tokens[0], 512);
        let short = llama_cpp(&tokens[..1023], None, 512).unwrap_err();
        assert_eq!(short, WindowsError::TooShort { tokens: 1023, needed: 1024 });
        assert_eq!(llama_cpp(&tokens, None, 2), Err(WindowsError::Length { length: 2, least: 3 }));
    }

    #[test]
    fn llama_cpp_s_uncertainty_by_hand() {
        // Losses 1 and 3: mean 2, E[x²] − E[x]² = 5 − 4 = 1.
        let (value, uncertainty) = llama_cpp_perplexity([-1.0, -3.0]).unwrap();
        assert!((value - 2f64.exp()).abs() < 1e-12 && (uncertainty - 2f64.exp()).abs() < 1e-12);
        assert_eq!(llama_cpp_perplexity([-1.0]), None);
    }
}
