//! `prefix`: tokens in front of every sequence, whose keys and values the floating-point model computes once; one file
//! per method.
//!
//! A prefix takes the place of BOS: a BOS at a sequence's start is not fed again. Its keys and values are never rounded,
//! and its positions are never counted, in statistics, scales or scores.

use serde_json::{Map, Value, json};

use crate::quantize::{Calibrator, ModelFacts, ModelInFlight, StepError};

pub mod given;
pub mod prefixquant;
pub mod qfep;

/// Puts `tokens` in front of every sequence of the model; what is reported of them.
///
/// # Errors
/// A token that is not in the vocabulary.
pub fn set(model: &mut ModelInFlight, tokens: &[u32]) -> Result<Map<String, Value>, StepError> {
    check_vocabulary(tokens, model.decoder.architecture.vocabulary)?;
    if tokens.is_empty() {
        model.decoder.set_prefix(tokens);
    } else {
        let stream = model.decoder.lead_prefix(tokens, model.carried.take());
        model.carried.put(stream);
    }
    let mut report = Map::new();
    report.insert("tokens".into(), tokens.into());
    report.insert("text".into(), texts(model.calibrator, tokens));
    Ok(report)
}

/// The tokens' texts.
fn texts(calibrator: &dyn Calibrator, tokens: &[u32]) -> Value {
    json!(tokens.iter().map(|&token| calibrator.text(token)).collect::<Vec<_>>())
}

/// Refuses an id that the embedding table does not have.
fn check_vocabulary(tokens: &[u32], vocabulary: usize) -> Result<(), StepError> {
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(&token) => Err(StepError::Vocabulary { token, last: vocabulary - 1 }),
        None => Ok(()),
    }
}

/// Refuses a prefix behind which the longest sequence does not fit.
fn check_room(prefix: usize, facts: &ModelFacts) -> Result<(), StepError> {
    let (longest, context) = (facts.longest, facts.architecture.context);
    match prefix + longest > context {
        true => Err(StepError::NoRoom { prefix, longest, context }),
        false => Ok(()),
    }
}

/// What every prefix has for itself.
fn claims() -> Vec<String> {
    vec!["the tokens in front of every sequence".into()]
}
