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
    /// What a reader should look at: Okabe and Ito's vermilion.
    pub const ACCENT: Colour = SERIES[1];
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

/// A tone of blue for a share of the way from little (0, light, yet not white) to much (1, dark). Lightness falls steadily,
/// so that it reads the same in grey and with any colour blindness.
pub fn tone(share: f64) -> Colour {
    // The darker four of ColorBrewer's Blues.
    const STOPS: [Colour; 4] =
        [Colour(205, 224, 241), Colour(107, 174, 214), Colour(33, 113, 181), Colour(8, 40, 90)];
    let place = share.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let first = (place as usize).min(STOPS.len() - 2);
    let between =
        |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * (place - first as f64)).round() as u8;
    let (a, b) = (STOPS[first], STOPS[first + 1]);
    Colour(between(a.0, b.0), between(a.1, b.1), between(a.2, b.2))
}

/// A tone between white (0) and blue (−1) or orange (1), both of Okabe and Ito, which keep apart for the colour-blind. The
/// sign is in the hue and the size in the lightness.
pub fn signed_tone(share: f64) -> Colour {
    let end = if share < 0.0 { SERIES[0] } else { SERIES[1] };
    let share = share.abs().min(1.0);
    let between = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    let white = Colour::WHITE;
    Colour(between(white.0, end.0), between(white.1, end.1), between(white.2, end.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_series_all_differ() {
        let all: Vec<_> = (0..30).map(series).collect();
        assert!(all.iter().enumerate().all(|(i, one)| !all[..i].contains(one)));
    }

    #[test]
    fn more_is_darker() {
        let lightness = |Colour(r, g, b): Colour| 3 * u32::from(r) + 6 * u32::from(g) + u32::from(b);
        let tones: Vec<u32> = (0..=10).map(|i| lightness(tone(f64::from(i) / 10.0))).collect();
        assert!(tones.windows(2).all(|pair| pair[0] > pair[1]), "{tones:?}");
        assert!(lightness(tone(0.0)) < lightness(Colour::WHITE) - 200);
        assert_eq!((tone(-1.0), tone(7.0)), (tone(0.0), tone(1.0)));
        assert_eq!(signed_tone(0.0), Colour::WHITE);
        assert_eq!((signed_tone(-2.0), signed_tone(1.0)), (SERIES[0], SERIES[1]));
    }
}
