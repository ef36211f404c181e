//! Colours of figures: the palette of Okabe and Ito, which people with any common colour blindness tell apart, and greys.
//!
//! M. Okabe, K. Ito, "Color Universal Design" (2008), <https://jfly.uni-koeln.de/color/>.

use super::Mark;

/// Red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub u8, pub u8, pub u8);

impl Colour {
    /// The page.
    pub const WHITE: Colour = Colour(255, 255, 255);
    /// Text.
    pub const INK: Colour = Colour(34, 34, 34);
    /// Text of second rank.
    pub const GREY: Colour = Colour(90, 90, 90);
    /// Grid lines with a number.
    pub const GRID: Colour = Colour(205, 205, 205);
    /// Grid lines between them.
    pub const MINOR_GRID: Colour = Colour(232, 232, 232);
    /// Every other band behind rows.
    pub const BAND: Colour = Colour(246, 246, 246);
}

/// Okabe and Ito's colours, those that stand out on white first; yellow is left out, being too faint for marks.
const SERIES: [Colour; 6] = [
    Colour(0, 114, 178),
    Colour(213, 94, 0),
    Colour(0, 158, 115),
    Colour(204, 121, 167),
    Colour(86, 180, 233),
    Colour(230, 159, 0),
];

/// Forms that go with the colours; five forms and six colours make thirty different series.
const FORMS: [Mark; 5] = [Mark::Circle, Mark::Square, Mark::Triangle, Mark::Diamond, Mark::Wedge];

/// Colour and form of the series with this index.
pub fn series(index: usize) -> (Colour, Mark) {
    (SERIES[index % SERIES.len()], FORMS[index % FORMS.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_series_all_differ() {
        let all: Vec<_> = (0..30).map(series).collect();
        assert!(all.iter().enumerate().all(|(i, one)| !all[..i].contains(one)));
    }
}
