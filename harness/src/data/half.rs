//! Halves: what is cut in two, so that one half can calibrate and the other be measured on.
//!
//! A text is cut at one place, near its middle: between two documents, else behind a line. Items of a task are dealt to
//! the halves by a hash of what they ask, so that a half does not depend on the order of a file, a part of a file has the
//! halves of the whole, and items that ask the same stand in one half. So the halves of a task are about equally large.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// One of two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Half {
    /// The first: of a text what stands before the cut, of a task the questions with an even hash.
    First,
    /// The second.
    Second,
}

/// The context of the hash that deals items to halves.
const CONTEXT: &str = "quantscope half of a task";

impl Half {
    /// The word used in files, names and metric ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Half::First => "first",
            Half::Second => "second",
        }
    }

    /// The half of a question: the lowest bit of the first byte of its blake3 key derivation.
    pub fn of(question: &str) -> Self {
        match blake3::derive_key(CONTEXT, question.as_bytes())[0] & 1 {
            0 => Half::First,
            _ => Half::Second,
        }
    }

    /// The bytes of this half of a text with these documents, which stand in order.
    pub fn range(self, text: &str, documents: &[Range<usize>]) -> Range<usize> {
        let middle = text.len() / 2;
        let between = documents.windows(2).map(|pair| (pair[0].end, pair[1].start));
        let (end, start) = between.min_by_key(|(_, start)| start.abs_diff(middle)).unwrap_or_else(|| {
            let behind_line = |at: usize| text[at..].find('\n').map(|line| at + line + 1);
            let character = (middle..=text.len()).find(|at| text.is_char_boundary(*at));
            let character = character.unwrap_or(text.len());
            let cut = behind_line(character).filter(|cut| *cut < text.len()).unwrap_or(character);
            (cut, cut)
        });
        match self {
            Half::First => 0..end,
            Half::Second => start..text.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_cut_between_documents_or_lines() {
        let text = "one\n\ntwo two two\n\nthree";
        let documents = [0..3, 5..16, 18..23];
        // Borders at 5 and 18 of 23 bytes: 5 is nearer to the middle.
        assert_eq!(&text[Half::First.range(text, &documents)], "one");
        assert_eq!(&text[Half::Second.range(text, &documents)], "two two two\n\nthree");
        let documents = 0..23;
        let whole = std::slice::from_ref(&documents);
        assert_eq!(&text[Half::First.range(text, whole)], "one\n\ntwo two two\n");
        assert_eq!(&text[Half::Second.range(text, whole)], "\nthree");
        let documents = 0..6;
        assert_eq!(&"ééé"[Half::Second.range("ééé", std::slice::from_ref(&documents))], "é");
    }

    proptest! {
        #[test]
        fn halves_share_nothing_and_leave_nothing_out(text in "[a-cé\n]{2,60}") {
            let documents = 0..text.len();
            let whole = std::slice::from_ref(&documents);
            let (first, second) = (Half::First.range(&text, whole), Half::Second.range(&text, whole));
            prop_assert_eq!(format!("{}{}", &text[first], &text[second]), text);
        }
    }

    #[test]
    fn questions_are_dealt_about_evenly_and_always_alike() {
        let first = (0..1000).filter(|i| Half::of(&format!("question {i}")) == Half::First).count();
        // Four standard deviations of a fair coin.
        assert!((437..=563).contains(&first), "{first}");
        assert_eq!(Half::of("question 7"), Half::of("question 7"));
    }
}
