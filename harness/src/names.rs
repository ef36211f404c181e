//! Names as people type them: globs that select some, and the nearest valid one for a misspelt one.

/// Whether `name` matches `pattern`, where `*` stands for any characters (`/` too) and `?` for one.
pub fn glob(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // reach[i]: the pattern so far matches the first i characters of the name.
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    for p in pattern {
        if p == '*' {
            for i in 0..name.len() {
                reach[i + 1] |= reach[i];
            }
        } else {
            for i in (0..name.len()).rev() {
                reach[i + 1] = reach[i] && (p == '?' || p == name[i]);
            }
            reach[0] = false;
        }
    }
    reach[name.len()]
}

/// The candidate that `word` most likely meant, if one is near enough to say so.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong (a transposition counts once), and a word may lack its end; case and the
    // choice of separator are free.
    let plain = |s: &str| s.to_lowercase().replace('_', "-");
    let word = plain(word);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let other = plain(candidate);
            let distance = strsim::damerau_levenshtein(&word, &other);
            let allowed = (word.chars().count().max(other.chars().count()) / 3).max(1);
            let begins = word.len() >= 3 && other.starts_with(&word);
            (distance <= allowed || begins).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `" (did you mean `…`?)"`, or nothing: to be put straight after the misspelt word.
pub fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_select_as_in_a_shell_but_cross_slashes() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "builtin/tiny-llama"),
            ("builtin/*", "builtin/x"),
            ("w?a8*", "w8a8-token"),
            ("a*b*c", "aXbYbc"),
        ] {
            assert!(glob(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "a"), ("?", ""), ("w8", "w8a8"), ("*a", "ab"), ("a*b*c", "acb"), ("W8*", "w8")]
        {
            assert!(!glob(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let keys = ["bits", "granularity", "symmetric", "clip"];
        assert_eq!(nearest("granulrity", keys), Some("granularity"));
        assert_eq!(nearest("bit", keys), Some("bits"));
        assert_eq!(nearest("gran", keys), Some("granularity"));
        assert_eq!(nearest("Symmetric", keys), Some("symmetric"));
        assert_eq!(nearest("w8a8_token", ["w8a8-tensor", "w8a8-token"]), Some("w8a8-token"));
        assert_eq!(nearest("alpha", keys), None);
        assert_eq!(hint("alpha", keys), "");
        assert_eq!(hint("clop", keys), " (did you mean `clip`?)");
    }
}
