//! Texts of tokens in figures: white space made visible, and nothing that the font cannot draw.
//!
//! A token may be any bytes. What a figure writes under an axis must be seen and must survive an SVG: a space is `␣`, a
//! line feed `↵`, a tab `⇥`, a single other character that the font lacks is its code point, and a longer text with
//! such characters is the token's id.

/// The characters of the font in `harness/assets`, as inclusive ranges. Its README names the same.
pub const GLYPHS: &[(char, char)] = &[
    ('\u{20}', '\u{7e}'),
    ('\u{a0}', '\u{17f}'),
    ('\u{370}', '\u{377}'),
    ('\u{37a}', '\u{37f}'),
    ('\u{384}', '\u{38a}'),
    ('\u{38c}', '\u{38c}'),
    ('\u{38e}', '\u{3a1}'),
    ('\u{3a3}', '\u{45f}'),
    ('\u{2010}', '\u{2027}'),
    ('\u{2030}', '\u{203a}'),
    ('\u{2070}', '\u{2071}'),
    ('\u{2074}', '\u{208e}'),
    ('\u{2090}', '\u{209c}'),
    ('\u{20ac}', '\u{20ac}'),
    ('\u{2190}', '\u{2199}'),
    ('\u{21b5}', '\u{21b5}'),
    ('\u{21e5}', '\u{21e5}'),
    ('\u{2200}', '\u{22ff}'),
    ('\u{2423}', '\u{2423}'),
    ('\u{25a0}', '\u{25cf}'),
    ('\u{fffd}', '\u{fffd}'),
];

/// Whether the font has the character and draws something for it.
pub fn is_visible(c: char) -> bool {
    // The ranges hold a hyphen too that shows at the ends of lines only.
    let blank = c.is_whitespace() || c == '\u{ad}';
    !blank && GLYPHS.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// A token's text as a figure writes it: never empty, every character visible.
pub fn token_text(text: &str, id: u32) -> String {
    let shown = |c: char| match c {
        ' ' => Some('␣'),
        '\n' => Some('↵'),
        '\t' => Some('⇥'),
        c => is_visible(c).then_some(c),
    };
    let visible: Option<String> = text.chars().map(shown).collect();
    let mut rest = text.chars();
    match (visible, rest.next(), rest.next()) {
        // One replacement character says only that the token is part of a character.
        (Some(visible), Some(first), _) if first != '\u{fffd}' => visible,
        (None, Some(only), None) => format!("U+{:04X}", u32::from(only)),
        _ => format!("#{id}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The characters in a font's table `cmap`, format 4 (ISO/IEC 14496-22, section 5.2.1).
    fn characters(font: &[u8]) -> BTreeSet<u32> {
        let u16 = |at: usize| u16::from_be_bytes([font[at], font[at + 1]]);
        let u32 =
            |at: usize| u32::from_be_bytes([font[at], font[at + 1], font[at + 2], font[at + 3]]) as usize;
        let tables = (0..usize::from(u16(4))).map(|i| 12 + 16 * i);
        let cmap = tables.into_iter().find(|at| &font[*at..at + 4] == b"cmap").map(|at| u32(at + 8)).unwrap();
        let maps = (0..usize::from(u16(cmap + 2))).map(|i| cmap + u32(cmap + 4 + 8 * i + 4));
        let map = maps.into_iter().find(|at| u16(*at) == 4).unwrap();
        let segments = usize::from(u16(map + 6)) / 2;
        let ends = (0..segments).map(|i| u16(map + 14 + 2 * i));
        let starts = (0..segments).map(|i| u16(map + 16 + 2 * segments + 2 * i));
        starts
            .zip(ends)
            .flat_map(|(start, end)| start..=end)
            .filter(|c| *c != 0xffff)
            .map(u32::from)
            .collect()
    }

    #[test]
    fn the_ranges_are_those_of_the_font() {
        let listed: BTreeSet<u32> =
            GLYPHS.iter().flat_map(|(first, last)| u32::from(*first)..=u32::from(*last)).collect();
        assert_eq!(characters(super::super::FONT), listed);
    }

    #[test]
    fn unusual_tokens_have_a_text_that_can_be_drawn() {
        for (text, shown) in [
            (" the", "␣the"),
            ("\n\n", "↵↵"),
            ("\t", "⇥"),
            ("é", "é"),
            ("слово", "слово"),
            ("<s>", "<s>"),
            ("中", "U+4E2D"),
            ("😀", "U+1F600"),
            ("\u{0}", "U+0000"),
            ("\u{a0}", "U+00A0"),
            ("\u{ad}", "U+00AD"),
            ("\r\n", "#7"),
            ("中文", "#7"),
            ("\u{fffd}", "#7"),
            ("", "#7"),
        ] {
            assert_eq!(token_text(text, 7), shown, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_shown_by_the_font(text in ".*", id: u32) {
            let shown = token_text(&text, id);
            prop_assert!(!shown.is_empty() && shown.chars().all(is_visible), "{shown:?}");
        }
    }
}
