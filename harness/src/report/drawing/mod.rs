//! Drawings: pictures as lists of shapes, written as SVG and PNG by one function.
//!
//! A figure decides where everything stands and hands over shapes; nothing is measured or moved afterwards. So the two
//! formats cannot differ, and a test can ask whether a text is clipped or covered before a pixel is drawn. Lengths are
//! in points of a page 800 wide; the origin is the upper left corner.

use std::sync::Once;

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::drawing::IntoDrawingArea;
use plotters::element::{Circle, PathElement, Polygon, Text as TextElement};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle, register_font,
};

use super::ReportError;

pub mod axis;
pub mod bands;
pub mod bars;
pub mod canvas;
pub mod glyphs;
pub mod palette;
pub mod panel;
pub mod scale;
pub mod sheet;

pub use palette::Colour;

/// The font of every figure, so that no system font is needed and pixels do not depend on one.
const FONT: &[u8] = include_bytes!("../../../assets/QuantscopeSans.ttf");
/// The family under which the font is registered. A viewer of the SVG takes its own sans-serif.
const FAMILY: &str = "sans-serif";
/// plotters' SVG takes the size of a font for 1.24 em.
const SVG_SIZE: f64 = 1.24;
/// Its bitmaps take it for the font's ascender and descender: (1901 + 483) / 2048 em.
const BITMAP_SIZE: f64 = 2384.0 / 2048.0;
/// Pixels of the PNG, and units of the SVG, per point: sharp on screens of double density.
const SCALE: f64 = 2.0;
/// The PNG is drawn this many times larger and averaged: plotters smooths neither lines nor the places of letters.
const OVERSAMPLE: usize = 2;

/// A picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// File name without folder and extension.
    pub stem: String,
    /// What the picture shows, in a sentence: the text for who cannot see it, and its caption.
    pub caption: String,
    /// Width in points.
    pub width: f64,
    /// Height in points.
    pub height: f64,
    /// What to draw, bottom first.
    pub shapes: Vec<Shape>,
}

/// A point: x to the right, y down.
pub type Point = (f64, f64);

/// One thing to draw.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A filled rectangle between two corners.
    Fill {
        /// Upper left corner.
        from: Point,
        /// Lower right corner.
        to: Point,
        /// Its colour.
        colour: Colour,
    },
    /// A line through points.
    Line {
        /// The points.
        points: Vec<Point>,
        /// Its colour.
        colour: Colour,
        /// Its width.
        width: f64,
        /// Its dashes; `None` for a solid line. Only of lines between two points.
        dash: Option<Dash>,
    },
    /// A mark at a point.
    Mark {
        /// Its centre.
        at: Point,
        /// Its form.
        form: Mark,
        /// Half of its size.
        radius: f64,
        /// Its colour.
        colour: Colour,
    },
    /// A line of text.
    Text {
        /// Where its baseline is, at the side that `anchor` names.
        at: Point,
        /// The words.
        text: String,
        /// Font size (1 em).
        size: f64,
        /// Which side of the text stands at the point.
        anchor: Anchor,
        /// Its colour.
        colour: Colour,
    },
    /// A line of text that is read upwards: its baseline is upright, and on its right.
    Upward {
        /// Where its baseline is, at the side that `anchor` names: the beginning is the lower end.
        at: Point,
        /// The words.
        text: String,
        /// Font size (1 em).
        size: f64,
        /// Which side of the text stands at the point.
        anchor: Anchor,
        /// Its colour.
        colour: Colour,
    },
}

/// A pattern of dashes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dash {
    /// Length of a dash.
    pub on: f64,
    /// Length of a gap.
    pub off: f64,
    /// How far into the pattern a line begins.
    pub phase: f64,
}

/// The form of a mark. Forms differ, so that colours need not be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// ●
    Circle,
    /// ■
    Square,
    /// ▲
    Triangle,
    /// ◆
    Diamond,
    /// ▼
    Wedge,
    /// ×, for failures only.
    Cross,
}

/// Which side of a text stands at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

impl Anchor {
    /// How much of the text is before its point.
    fn share(self) -> f64 {
        match self {
            Anchor::Start => 0.0,
            Anchor::Middle => 0.5,
            Anchor::End => 1.0,
        }
    }
}

/// Width of `text` in points at this font size, as the font of the figures has it.
pub fn text_width(text: &str, size: f64) -> f64 {
    register();
    // Measured large, because plotters rounds to whole pixels.
    let font = (FAMILY, 100.0 * BITMAP_SIZE).into_font();
    let ((left, _), (right, _)) = font.layout_box(text).expect("the font is registered");
    f64::from(right - left) * size / 100.0
}

/// `text` if it is no wider than `room`, else its beginning and end with `…` between them.
pub fn elide(text: &str, size: f64, room: f64) -> String {
    let chars: Vec<char> = text.chars().collect();
    let shortened = |kept: usize| {
        let head: String = chars[..kept.div_ceil(2)].iter().collect();
        let tail: String = chars[chars.len() - kept / 2..].iter().collect();
        format!("{head}…{tail}")
    };
    if text_width(text, size) <= room {
        return text.to_owned();
    }
    (1..chars.len())
        .rev()
        .map(shortened)
        .find(|text| text_width(text, size) <= room)
        .unwrap_or_else(|| "…".to_owned())
}

impl Shape {
    /// The rectangle a shape covers: upper left and lower right corner. Texts by the font's own widths.
    pub fn bounds(&self) -> (Point, Point) {
        match self {
            Shape::Fill { from, to, .. } => (*from, *to),
            Shape::Line { points, width, .. } => {
                let half = width / 2.0;
                let fold = |pick: fn(&Point) -> f64, start: f64, by: fn(f64, f64) -> f64| {
                    points.iter().map(pick).fold(start, by)
                };
                let (x0, x1) = (fold(|p| p.0, f64::MAX, f64::min), fold(|p| p.0, f64::MIN, f64::max));
                let (y0, y1) = (fold(|p| p.1, f64::MAX, f64::min), fold(|p| p.1, f64::MIN, f64::max));
                ((x0 - half, y0 - half), (x1 + half, y1 + half))
            }
            Shape::Mark { at, radius, .. } => {
                ((at.0 - radius, at.1 - radius), (at.0 + radius, at.1 + radius))
            }
            Shape::Text { at, text, size, anchor, .. } => {
                let width = text_width(text, *size);
                let left = at.0 - width * anchor.share();
                ((left, at.1 - 0.76 * size), (left + width, at.1 + 0.24 * size))
            }
            Shape::Upward { at, text, size, anchor, .. } => {
                let width = text_width(text, *size);
                let lower = at.1 + width * anchor.share();
                ((at.0 - 0.76 * size, lower - width), (at.0 + 0.24 * size, lower))
            }
        }
    }
}

impl Drawing {
    /// The picture as SVG.
    ///
    /// # Errors
    /// plotters' own.
    pub fn svg(&self) -> Result<String, ReportError> {
        let (width, height) = self.pixels(SCALE);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
            // plotters puts a centred text's baseline half an x-height below its point, 0.27 em in common fonts.
            self.paint(&area, SCALE, SVG_SIZE, VPos::Center, -0.27)?;
        }
        // plotters' coordinates are whole numbers: draw at double size for exactness, show at the size meant.
        let header = format!("<svg width=\"{width}\" height=\"{height}\"");
        let shown = format!("<svg width=\"{}\" height=\"{}\"", width as f64 / SCALE, height as f64 / SCALE);
        Ok(svg.replacen(&header, &shown, 1))
    }

    /// The picture as PNG.
    ///
    /// # Errors
    /// plotters' own, and of a temporary file that its encoder needs.
    pub fn png(&self) -> Result<Vec<u8>, ReportError> {
        let (width, height) = self.pixels(SCALE);
        let (wide, high) = (width as usize * OVERSAMPLE, height as usize * OVERSAMPLE);
        let mut fine = vec![0; 3 * wide * high];
        {
            let area = BitMapBackend::with_buffer(&mut fine, (wide as u32, high as u32)).into_drawing_area();
            // plotters puts the baseline half of its size below the upper edge of a text.
            self.paint(&area, SCALE * OVERSAMPLE as f64, BITMAP_SIZE, VPos::Top, -0.5 * BITMAP_SIZE)?;
        }
        let pixels = average(&fine, wide, OVERSAMPLE);

        let folder = tempfile::tempdir().map_err(|source| self.failure(&source))?;
        let file = folder.path().join("drawing.png");
        {
            let mut backend = BitMapBackend::new(&file, (width, height));
            backend.blit_bitmap((0, 0), (width, height), &pixels).map_err(|error| self.failure(&error))?;
            backend.present().map_err(|error| self.failure(&error))?;
        }
        std::fs::read(&file).map_err(|source| self.failure(&source))
    }

    fn pixels(&self, scale: f64) -> (u32, u32) {
        ((self.width * scale).round() as u32, (self.height * scale).round() as u32)
    }

    fn failure(&self, error: &dyn std::fmt::Display) -> ReportError {
        ReportError::Drawing { figure: self.stem.clone(), message: error.to_string() }
    }

    /// Draws the shapes. `em` is the back end's size of a font of 1 em; `anchor` and `shift` (in em) say where its
    /// texts must be put so that their baselines are where the shapes want them.
    fn paint<DB: DrawingBackend>(
        &self,
        area: &plotters::drawing::DrawingArea<DB, plotters::coord::Shift>,
        scale: f64,
        em: f64,
        anchor: VPos,
        shift: f64,
    ) -> Result<(), ReportError> {
        register();
        let failure = |error: plotters::drawing::DrawingAreaErrorKind<DB::ErrorType>| self.failure(&error);
        let place = |(x, y): Point| ((x * scale).round() as i32, (y * scale).round() as i32);
        area.fill(&rgb(Colour::WHITE)).map_err(failure)?;
        for shape in &self.shapes {
            match shape {
                Shape::Fill { from, to, colour } => {
                    let corners = [*from, (to.0, from.1), *to, (from.0, to.1)].map(place);
                    area.draw(&Polygon::new(corners, rgb(*colour).filled())).map_err(failure)?;
                }
                Shape::Line { points, colour, width, dash } => {
                    let style = ShapeStyle {
                        color: rgb(*colour).to_rgba(),
                        filled: false,
                        stroke_width: (width * scale).round().max(1.0) as u32,
                    };
                    for piece in dashes(points, *dash) {
                        let piece: Vec<_> = piece.into_iter().map(place).collect();
                        area.draw(&PathElement::new(piece, style)).map_err(failure)?;
                    }
                }
                Shape::Mark { at, form, radius, colour } => {
                    let style = rgb(*colour).filled();
                    match outline(*form, *at, *radius) {
                        Some(corners) => {
                            let corners: Vec<_> = corners.into_iter().map(place).collect();
                            area.draw(&Polygon::new(corners, style)).map_err(failure)?;
                        }
                        None => {
                            let radius = (radius * scale).round() as i32;
                            area.draw(&Circle::new(place(*at), radius, style)).map_err(failure)?;
                        }
                    }
                }
                Shape::Text { at, text, size, anchor: side, colour } => {
                    let at = place((at.0, at.1 + shift * size));
                    let style = letters(size * em * scale, *side, anchor, *colour);
                    area.draw(&TextElement::new(text.as_str(), at, style)).map_err(failure)?;
                }
                Shape::Upward { at, text, size, anchor: side, colour } => {
                    // What is down for the letters is right on the page.
                    let at = place((at.0 + shift * size, at.1));
                    let style = letters(size * em * scale, *side, anchor, *colour)
                        .transform(FontTransform::Rotate270);
                    area.draw(&TextElement::new(text.as_str(), at, style)).map_err(failure)?;
                }
            }
        }
        area.present().map_err(failure)
    }
}

/// plotters' style of a text whose point is at `side` and `height` of it.
fn letters(size: f64, side: Anchor, height: VPos, colour: Colour) -> TextStyle<'static> {
    let side = match side {
        Anchor::Start => HPos::Left,
        Anchor::Middle => HPos::Center,
        Anchor::End => HPos::Right,
    };
    let font = (FAMILY, size, FontStyle::Normal).into_font();
    TextStyle { font, color: rgb(colour).to_backend_color(), pos: Pos::new(side, height) }
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if register_font(FAMILY, FontStyle::Normal, FONT).is_err() {
            panic!("the font in harness/assets is a TrueType font");
        }
    });
}

fn rgb(colour: Colour) -> RGBColor {
    RGBColor(colour.0, colour.1, colour.2)
}

/// The corners of a mark; `None` for a circle.
fn outline(form: Mark, (x, y): Point, r: f64) -> Option<Vec<Point>> {
    // Forms of one radius are drawn with about the same area.
    let corners: Vec<Point> = match form {
        Mark::Circle => return None,
        Mark::Square => vec![(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        Mark::Triangle => vec![(0.0, -1.2), (1.15, 0.8), (-1.15, 0.8)],
        Mark::Wedge => vec![(0.0, 1.2), (-1.15, -0.8), (1.15, -0.8)],
        Mark::Diamond => vec![(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
        Mark::Cross => {
            let (a, b) = (0.3, 1.0);
            let arm = [(0.0, -a), (b - a, -b), (b, a - b), (a, 0.0), (b, b - a), (b - a, b), (0.0, a)];
            arm.into_iter().chain([(a - b, b), (-b, b - a), (-a, 0.0), (-b, a - b), (a - b, -b)]).collect()
        }
    };
    Some(corners.into_iter().map(|(dx, dy)| (x + r * dx, y + r * dy)).collect())
}

/// A line as the pieces of it that are drawn.
fn dashes(points: &[Point], dash: Option<Dash>) -> Vec<Vec<Point>> {
    let (Some(dash), &[a, b]) = (dash, points) else {
        return vec![points.to_vec()];
    };
    let length = (b.0 - a.0).hypot(b.1 - a.1);
    let along = |t: f64| (a.0 + (b.0 - a.0) * t / length, a.1 + (b.1 - a.1) * t / length);
    let period = dash.on + dash.off;
    let count = ((length + dash.phase) / period).ceil() as usize;
    (0..count)
        .map(|i| i as f64 * period - dash.phase)
        .map(|start| (start.max(0.0), (start + dash.on).min(length)))
        .filter(|(start, end)| start < end)
        .map(|(start, end)| vec![along(start), along(end)])
        .collect()
}

/// RGB pixels `factor` times smaller: each is the mean of a square.
fn average(fine: &[u8], wide: usize, factor: usize) -> Vec<u8> {
    let (width, height) = (wide / factor, fine.len() / 3 / wide / factor);
    let mut pixels = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let mut sum = 0;
                for dy in 0..factor {
                    for dx in 0..factor {
                        sum += u32::from(fine[3 * ((y * factor + dy) * wide + x * factor + dx) + channel]);
                    }
                }
                let area = (factor * factor) as u32;
                pixels.push(((sum + area / 2) / area) as u8);
            }
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(at: Point, anchor: Anchor) -> Shape {
        Shape::Text { at, text: "perplexity".into(), size: 16.0, anchor, colour: Colour::INK }
    }

    fn drawing(shapes: Vec<Shape>) -> Drawing {
        Drawing { stem: "test".into(), caption: String::new(), width: 200.0, height: 100.0, shapes }
    }

    #[test]
    fn a_long_text_keeps_its_ends_and_fits() {
        let text = "a-rather-long-recipe-name-of-many-words";
        let short = elide(text, 12.0, 100.0);
        assert!(text_width(&short, 12.0) <= 100.0 && text_width(&short, 12.0) > 85.0);
        assert!(short.starts_with("a-rat") && short.ends_with("words") && short.contains('…'), "{short}");
        assert_eq!(elide(text, 12.0, 1000.0), text);
    }

    #[test]
    fn texts_stand_where_their_bounds_say() {
        // The dark pixels of a text drawn alone must fill the box that `bounds` gives, whatever its anchor.
        let upward =
            |at, anchor| Shape::Upward { at, text: "help".into(), size: 16.0, anchor, colour: Colour::INK };
        let anchors = [Anchor::Start, Anchor::Middle, Anchor::End];
        let level = anchors.map(|anchor| (anchor, text((100.0, 60.0), anchor)));
        let upright = anchors.map(|anchor| (anchor, upward((100.0, 50.0), anchor)));
        for (anchor, shape) in level.into_iter().chain(upright) {
            let ((left, top), (right, bottom)) = shape.bounds();
            let scale = SCALE * OVERSAMPLE as f64;
            let (wide, high) = ((200.0 * scale) as usize, (100.0 * scale) as usize);
            let mut pixels = vec![0; 3 * wide * high];
            {
                let area =
                    BitMapBackend::with_buffer(&mut pixels, (wide as u32, high as u32)).into_drawing_area();
                drawing(vec![shape]).paint(&area, scale, BITMAP_SIZE, VPos::Top, -0.5 * BITMAP_SIZE).unwrap();
            }
            let dark: Vec<(f64, f64)> = (0..wide * high)
                .filter(|i| pixels[3 * i] < 128)
                .map(|i| ((i % wide) as f64 / scale, (i / wide) as f64 / scale))
                .collect();
            let range = |pick: fn(&(f64, f64)) -> f64| {
                let values = dark.iter().map(pick);
                (values.clone().fold(f64::MAX, f64::min), values.fold(f64::MIN, f64::max))
            };
            let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
            assert!(
                (x0 - left).abs() < 3.0 && (x1 - right).abs() < 3.0,
                "{anchor:?}: {x0}–{x1}, {left}–{right}"
            );
            assert!(
                (y0 - top).abs() < 3.0 && (y1 - bottom).abs() < 3.0,
                "{anchor:?}: {y0}–{y1}, {top}–{bottom}"
            );
        }
    }

    #[test]
    fn dashes_cover_a_line_from_end_to_end_without_leaving_it() {
        let line = [(0.0, 0.0), (0.0, 10.0)];
        let pieces = |phase| dashes(&line, Some(Dash { on: 4.0, off: 2.0, phase }));
        assert_eq!(pieces(0.0), [[(0.0, 0.0), (0.0, 4.0)], [(0.0, 6.0), (0.0, 10.0)]]);
        assert_eq!(
            pieces(3.0),
            [[(0.0, 0.0), (0.0, 1.0)], [(0.0, 3.0), (0.0, 7.0)], [(0.0, 9.0), (0.0, 10.0)]]
        );
        assert_eq!(dashes(&line, None), [line]);
    }

    #[test]
    fn averaging_keeps_a_mean_colour() {
        let fine = [0, 0, 0, 255, 255, 255, 255, 255, 255, 0, 0, 0];
        assert_eq!(average(&fine, 2, 2), [128, 128, 128]);
    }

    #[test]
    fn both_formats_have_the_size_asked_for_and_repeat_their_bytes() {
        let drawing = drawing(vec![text((10.0, 50.0), Anchor::Start)]);
        let svg = drawing.svg().unwrap();
        assert!(svg.starts_with("<svg width=\"200\" height=\"100\" viewBox=\"0 0 400 200\""), "{svg}");
        assert!(svg.contains("perplexity"));
        let png = drawing.png().unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(png[16..24], [0, 0, 1, 144, 0, 0, 0, 200]);
        assert_eq!(png, drawing.png().unwrap());
        assert_eq!(svg, drawing.svg().unwrap());
    }
}
