//! From a line of a plot to a sentence: slots, alternatives, articles and capitals.

use rand_chacha::ChaCha8Rng;

use super::{below, cast::Cast};

/// A line of a plot told about this cast, with its alternatives drawn.
pub(super) fn expand(line: &str, cast: &Cast, rng: &mut ChaCha8Rng) -> String {
    let mut chosen = String::with_capacity(2 * line.len());
    choose(line, rng, &mut chosen);
    if chosen == "\n" {
        return chosen;
    }
    sentence(expand_plain(&chosen, cast))
}

/// A line without alternatives, its slots filled; no capitals, no articles.
pub(super) fn expand_plain(line: &str, cast: &Cast) -> String {
    let mut text = String::with_capacity(2 * line.len());
    let mut rest = line;
    while let Some(open) = rest.find('{') {
        let close = open + rest[open..].find('}').expect("a plot's `{` has its `}`");
        text.push_str(&rest[..open]);
        text.push_str(cast.value(&rest[open + 1..close]));
        rest = &rest[close + 1..];
    }
    text + rest
}

/// Draws one of the alternatives of each `[x|y]`, from the outside in.
fn choose(line: &str, rng: &mut ChaCha8Rng, out: &mut String) {
    let mut rest = line;
    while let Some(open) = rest.find('[') {
        out.push_str(&rest[..open]);
        let mut depth = 0;
        let mut start = open + 1;
        let mut options = Vec::new();
        let mut end = None;
        for (at, c) in rest.char_indices().skip_while(|(at, _)| *at < open) {
            match c {
                '[' => depth += 1,
                '|' if depth == 1 => {
                    options.push(&rest[start..at]);
                    start = at + 1;
                }
                ']' => {
                    depth -= 1;
                    if depth == 0 {
                        options.push(&rest[start..at]);
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
        }
        choose(options[below(rng, options.len())], rng, out);
        rest = &rest[end.expect("a plot's `[` has its `]`")..];
    }
    out.push_str(rest);
}

/// Articles, capitals and single spaces.
pub(super) fn sentence(raw: String) -> String {
    let words: Vec<&str> = raw.split_whitespace().collect();
    let mut text = String::with_capacity(raw.len());
    for (index, word) in words.iter().enumerate() {
        let word = match *word {
            "@" => match words.get(index + 1).and_then(|next| next.chars().next()) {
                Some('a' | 'e' | 'i' | 'o' | 'u') => "an",
                _ => "a",
            },
            word => word,
        };
        // An alternative that was left empty can leave its punctuation alone.
        if !text.is_empty() && !word.starts_with(['.', ',', '!', '?']) {
            text.push(' ');
        }
        let capital = word.trim_start_matches('"');
        if text.is_empty() || text.trim_end().ends_with(['.', '!', '?']) {
            text.push_str(&word[..word.len() - capital.len()]);
            let mut letters = capital.chars();
            text.extend(letters.next().into_iter().flat_map(char::to_uppercase));
            text.push_str(letters.as_str());
        } else {
            text.push_str(word);
        }
    }
    text
}
