//! `wikitext`: perplexity per word and per byte of WikiText-2's test articles (arXiv 1609.07843).

use super::{Examples, Source, Task};
use crate::evaluate::items::{Fault, Fields, Form, Prompt};
use crate::evaluate::python::text::{split_count, strip};
use crate::evaluate::scoring::Metric;

/// Each article, detokenized, scored as a whole by rolling windows. Words and bytes are those of the article as it is on
/// the hub, with white space at its ends counting as a word each.
///
/// The number moves with the length of the windows and with the BOS policy, so both are in its id.
pub struct WikiText;

pub(super) const SOURCE: Source = Source {
    repository: "EleutherAI/wikitext_document_level",
    configuration: Some("wikitext-2-raw-v1"),
    split: "test",
};

pub(super) const FORMS: &[(Form, &[&str])] = &[(Form::Hub, &["page"]), (Form::Raw, &["page"])];

/// The articles of the test split.
pub(super) const ITEMS: usize = 62;

/// The question of an item.
pub(super) fn read(fields: &Fields) -> Result<Prompt, Fault> {
    let page = fields.text("page")?;
    Ok(Prompt::Text { text: detokenize(page), words: split_count(page), bytes: page.len() })
}

impl Task for WikiText {
    fn name(&self) -> &'static str {
        "wikitext"
    }

    fn version(&self) -> &'static str {
        "2.0"
    }

    fn source(&self) -> Source {
        SOURCE
    }

    fn items(&self) -> usize {
        ITEMS
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::WordPerplexity, Metric::BytePerplexity, Metric::BitsPerByte]
    }

    fn forms(&self) -> &'static [(Form, &'static [&'static str])] {
        FORMS
    }

    fn read(&self, fields: &Fields, _form: Form) -> Result<Prompt, Fault> {
        read(fields)
    }

    fn examples(&self) -> Option<Examples> {
        None
    }
}

/// The reference's detokenizer: 24 replacements, each on the result of those before it.
pub fn detokenize(page: &str) -> String {
    let mut text = page.replace("s '", "s'");
    text = slashed(&text);
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        text = text.replace(from, to);
    }
    for (open, close) in [('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')] {
        text = tighten(&text, open, close);
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" ° ", "°"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// The reference's second replacement is a JavaScript expression whose slashes are part of the pattern: a digit between
/// `/' ` and `/` becomes the literal text `[0-9]`. No article of the test split has one.
fn slashed(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("/' ") {
        let after = &rest.as_bytes()[at + 3..];
        if after.len() >= 2 && after[0].is_ascii_digit() && after[1] == b'/' {
            result.push_str(&rest[..at]);
            result.push_str("/'[0-9]/");
            rest = &rest[at + 5..];
        } else {
            result.push_str(&rest[..at + 1]);
            rest = &rest[at + 1..];
        }
    }
    result + rest
}

/// Takes the white space out at the inner ends of every pair of marks; what stands inside has no closing mark.
fn tighten(text: &str, open: char, close: char) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(open) {
        let inside = &rest[start + 1..];
        let Some(end) = inside.find(close) else { break };
        result.push_str(&rest[..=start]);
        result.push_str(strip(&inside[..end]));
        result.push(close);
        rest = &inside[end + 1..];
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_close_up_in_pairs() {
        assert_eq!(tighten("( a ) ( b (c ) d ) (", '(', ')'), "(a) (b (c) d ) (");
        assert_eq!(tighten("\" a \" b \" c", '"', '"'), "\"a\" b \" c");
        assert_eq!(tighten("( )", '(', ')'), "()");
        assert_eq!(slashed("x/' 5/' 6/ /' 12/"), "x/'[0-9]/' 6/ /' 12/");
    }
}
