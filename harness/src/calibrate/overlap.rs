//! Whether a calibration set holds what is measured.
//!
//! A method that saw the evaluation text is not comparable with one that did not, so such a cell is refused. Two texts
//! share a passage where [`RUN`] equal tokens stand in a row in both; in shorter samples and windows, one token less than
//! their length. The first token of every sample and window is left out of it, since it may be BOS.
//!
//! A run that recurs within the set counts once, where it stands first. So what every page repeats (a licence, a footer,
//! a line of dots) weighs as one passage, however often it was drawn, while the evaluation text itself shares all it has.
//!
//! Tokens are compared, not words: the same article with other spacing or another markup is not found.
//!
//! # Reference
//!
//! own. Decontamination by shared n-grams is common (13 words in arXiv:2005.14165, 50 tokens in arXiv:2107.06499); the
//! run length lies between, and a share above [`LARGEST_SHARE`] is refused, because a quotation is no overlap.

use std::collections::HashSet;

use serde::Serialize;

use super::set::CalibrationSet;
use crate::experiment::Calibration;

/// Equal tokens in a row that make a shared passage.
pub const RUN: usize = 32;

/// Below this, runs are too short to tell a shared passage from a shared phrase: nothing is said.
pub const SHORTEST_RUN: usize = 8;

/// The largest share of a set that may stand in the evaluation text, too.
pub const LARGEST_SHARE: f64 = 0.01;

/// How much of a set stands in the evaluation text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Overlap {
    /// Equal tokens in a row that were asked for.
    pub run: usize,
    /// Tokens of the set in runs that the evaluation text has, too.
    pub tokens: usize,
    /// Tokens of the set that were compared: without what may be BOS, and without what recurs.
    pub of: usize,
    /// `tokens / of`, 0 where nothing was compared.
    pub share: f64,
}

/// A set that holds what is measured.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "calibration `{calibration}` (text {text}) holds {:.1} % of what `{evaluation}` measures on: {} of {} tokens stand \
     there, too, in runs of {}; at most {:.0} % are allowed. Use another text for one of the two, or say \
     allow-overlap = true in [calibration.{calibration}]",
    100.0 * overlap.share, overlap.tokens, overlap.of, overlap.run, 100.0 * LARGEST_SHARE
)]
pub struct OverlapError {
    /// The set's name.
    pub calibration: String,
    /// Label of its text.
    pub text: String,
    /// What is measured: a metric id.
    pub evaluation: String,
    /// How much.
    pub overlap: Overlap,
}

/// Compares a set with what is measured on.
pub fn overlap(set: &CalibrationSet, evaluation_windows: &[Vec<u32>]) -> Overlap {
    let longest = |sequences: &[Vec<u32>]| sequences.iter().map(Vec::len).max().unwrap_or(0);
    let run = RUN.min(longest(&set.samples).min(longest(evaluation_windows)).saturating_sub(1));
    let mut found = Overlap { run, tokens: 0, of: 0, share: 0.0 };
    if run < SHORTEST_RUN {
        return found;
    }
    let text = |sequence: &'_ Vec<u32>| sequence.len().min(1);
    let known: HashSet<&[u32]> =
        evaluation_windows.iter().flat_map(|window| window[text(window)..].windows(run)).collect();
    let mut seen: HashSet<&[u32]> = HashSet::new();
    for sample in &set.samples {
        let ids = &sample[text(sample)..];
        // Tokens before these ends are counted already: in a first run, and in one that is known.
        let (mut compared, mut shared) = (0, 0);
        for (start, ids) in ids.windows(run).enumerate().filter(|(_, ids)| seen.insert(ids)) {
            let end = start + run;
            found.of += end - start.max(compared);
            compared = end;
            if known.contains(ids) {
                found.tokens += end - start.max(shared);
                shared = end;
            }
        }
    }
    if found.of > 0 {
        found.share = found.tokens as f64 / found.of as f64;
    }
    found
}

/// As [`overlap`], and refuses a set that holds too much of what `evaluation`, a metric id, measures on. With
/// `allow-overlap = true` nothing is refused.
///
/// # Errors
/// Where the share is above [`LARGEST_SHARE`].
pub fn check(
    set: &CalibrationSet,
    calibration: &Calibration,
    evaluation: &str,
    evaluation_windows: &[Vec<u32>],
) -> Result<Overlap, OverlapError> {
    let overlap = overlap(set, evaluation_windows);
    if overlap.share <= LARGEST_SHARE || calibration.allow_overlap {
        return Ok(overlap);
    }
    let text = set.detail.get("text").and_then(|text| text.as_str()).unwrap_or_default().to_string();
    let (calibration, evaluation) = (calibration.name.clone(), evaluation.to_string());
    Err(OverlapError { calibration, text, evaluation, overlap })
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn set(samples: Vec<Vec<u32>>) -> CalibrationSet {
        CalibrationSet { samples, hash: String::new(), detail: Map::new() }
    }

    /// Ids of a text in which no run recurs.
    fn text(from: u32, tokens: u32) -> Vec<u32> {
        (from..from + tokens).collect()
    }

    #[test]
    fn the_same_text_is_found_whatever_the_cut_and_the_bos() {
        // Windows cut every 100 tokens, a sample that begins in the middle of one and has BOS in front.
        let windows: Vec<Vec<u32>> = (0..4).map(|i| text(1000 + 100 * i, 100)).collect();
        let sample = [vec![1], text(1050, 200)].concat();
        let found = overlap(&set(vec![sample]), &windows);
        // All but the first token of the windows at 1100 and 1200, which may be BOS.
        assert_eq!((found.run, found.of, found.tokens), (32, 200, 198));
    }

    #[test]
    fn counts_by_hand() {
        // 40 shared tokens in 100; a shared run of 31 is none.
        let sample = [vec![0], text(0, 30), text(5000, 40), text(30, 30)].concat();
        let window = [vec![0], text(5000, 40), text(9000, 500)].concat();
        let found = overlap(&set(vec![sample]), &[window]);
        assert_eq!((found.tokens, found.of, found.share), (40, 100, 0.4));
        let sample = [vec![0], text(0, 69), text(5000, 31)].concat();
        let window = [vec![0], text(5000, 31), text(9000, 500)].concat();
        assert_eq!(overlap(&set(vec![sample]), &[window]).tokens, 0);
    }

    #[test]
    fn what_recurs_weighs_once() {
        // A footer of 50 tokens behind each of 100 pages of 100 tokens, in both texts: a third of the tokens, one passage.
        let footer = text(1_000_000, 50);
        let pages = |from: u32| -> Vec<Vec<u32>> {
            (0..100).map(|i| [vec![0], text(from + 100 * i, 100), footer.clone()].concat()).collect()
        };
        let found = overlap(&set(pages(0)), &pages(100_000));
        assert_eq!(found.tokens, 50);
        assert!(found.share < LARGEST_SHARE, "{found:?}");
        // A period of 3, such as ". \n - ", has three runs.
        let dots: Vec<u32> = (0..400).map(|i| i % 3).collect();
        let sample = [text(5000, 8000), dots.clone()].concat();
        let found = overlap(&set(vec![sample]), &[dots]);
        assert_eq!(found.tokens, 34);
    }

    #[test]
    fn short_samples_are_compared_whole_and_tiny_ones_not() {
        let found = overlap(&set(vec![text(0, 16)]), &[text(0, 64)]);
        assert_eq!((found.run, found.share), (15, 1.0));
        let found = overlap(&set(vec![text(0, 8)]), &[text(0, 64)]);
        assert_eq!((found.run, found.share), (7, 0.0));
        assert_eq!(overlap(&set(vec![text(0, 16)]), &[]).share, 0.0);
    }
}
