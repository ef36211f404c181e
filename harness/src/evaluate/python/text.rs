//! Methods of Python's `str` where Rust's differ: `strip`, `isspace`, `capitalize`.

/// White space of `str.isspace`, `str.strip` and `\s`: Unicode's, and the four information separators.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.lstrip()`
pub fn lstrip(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// `str.rstrip()`
pub fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `len(re.split(r"\s+", text))`: one more than the runs of white space, so white space at either end counts.
pub fn split_count(text: &str) -> usize {
    let mut runs = 0;
    let mut inside = false;
    for c in text.chars() {
        runs += usize::from(is_space(c) && !inside);
        inside = is_space(c);
    }
    runs + 1
}

/// `str.capitalize()`: the first character in title case, the rest in lower case.
pub fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // The whole is lowered, because a final sigma depends on what stands before it.
    let lowered = text.to_lowercase();
    let rest = first.to_lowercase().map(char::len_utf8).sum();
    title(first) + lowered.get(rest..).unwrap_or_default()
}

/// `text[0].lower() + text[1:]`; `None` for an empty text, of which Python has no first character.
pub fn lower_first(text: &str) -> Option<String> {
    let mut chars = text.chars();
    let first = chars.next()?;
    Some(first.to_lowercase().collect::<String>() + chars.as_str())
}

/// The title case of a character, which for few characters is not the upper case.
fn title(c: char) -> String {
    let one = |code: u32| char::from_u32(code).expect("these ranges hold no surrogates").to_string();
    let code = u32::from(c);
    match code {
        // Digraphs with a title form of their own: Ǆ ǅ ǆ, Ǉ ǈ ǉ, Ǌ ǋ ǌ, Ǳ ǲ ǳ.
        0x1c4..=0x1cc => one(0x1c5 + (code - 0x1c4) / 3 * 3),
        0x1f1..=0x1f3 => one(0x1f2),
        // Georgian has capitals only for whole words in capitals.
        0x10d0..=0x10fa | 0x10fd..=0x10ff => c.to_string(),
        // Greek with iota: the subscript stays a part of the letter.
        0x1f80..=0x1faf => one(code | 8),
        0x1fb3 | 0x1fc3 | 0x1ff3 => one(code + 9),
        0x1fbc | 0x1fcc | 0x1ffc => c.to_string(),
        0x1fb2 => "\u{1fba}\u{345}".to_owned(),
        0x1fb4 => "\u{386}\u{345}".to_owned(),
        0x1fb7 => "\u{391}\u{342}\u{345}".to_owned(),
        0x1fc2 => "\u{1fca}\u{345}".to_owned(),
        0x1fc4 => "\u{389}\u{345}".to_owned(),
        0x1fc7 => "\u{397}\u{342}\u{345}".to_owned(),
        0x1ff2 => "\u{1ffa}\u{345}".to_owned(),
        0x1ff4 => "\u{38f}\u{345}".to_owned(),
        0x1ff7 => "\u{3a9}\u{342}\u{345}".to_owned(),
        // ß and ligatures of two or three letters: only the first is a capital.
        0xdf | 0x587 | 0xfb00..=0xfb06 | 0xfb13..=0xfb17 => {
            let mut upper = c.to_uppercase();
            let first: String = upper.by_ref().take(1).collect();
            first + &upper.flat_map(char::to_lowercase).collect::<String>()
        }
        _ => c.to_uppercase().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_python_s() {
        assert_eq!(strip("\u{1c}\u{a0} a b\u{1f}\n"), "a b");
        assert_eq!(lstrip(" \u{3000}a "), "a ");
        assert_eq!(rstrip(" a\u{85}"), " a");
        // U+200B is no white space for either.
        assert_eq!(strip("\u{200b}"), "\u{200b}");
        assert_eq!(["", "a", " a b ", "a \u{1d}\n b"].map(split_count), [1, 1, 4, 2]);
    }

    #[test]
    fn capitalize_lowers_the_rest() {
        assert_eq!(capitalize("he Said McDonald"), "He said mcdonald");
        assert_eq!(capitalize(""), "");
        assert_eq!(capitalize(", A"), ", a");
        assert_eq!(capitalize("\u{1c6}A"), "\u{1c5}a");
        assert_eq!(capitalize("ßA"), "Ssa");
        assert_eq!(capitalize("\u{130}I"), "\u{130}i");
        assert_eq!(capitalize("ΟΔΟΣ"), "Οδος");
        assert_eq!(lower_first("\"A"), Some("\"A".to_owned()));
        assert_eq!(lower_first("É"), Some("é".to_owned()));
        assert_eq!(lower_first(""), None);
    }
}
