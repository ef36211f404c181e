//! The sheet that charts are drawn on: measures of the page, and the few things that are drawn on every chart.

use super::{Anchor, Colour, Dash, Mark, Point, Shape, elide, text_width};

// Lengths in points.
/// Width of the page.
pub const WIDTH: f64 = 800.0;
/// Air at its edges.
pub const MARGIN: f64 = 16.0;
/// Size of the title.
pub const TITLE: f64 = 15.0;
/// Size of every other text.
pub const TEXT: f64 = 12.0;
/// From the middle of a line of text down to its baseline: half of the height of a capital.
pub const DROP: f64 = 0.36 * TEXT;
/// Half of the size of a mark.
pub const RADIUS: f64 = 4.0;
/// Width of lines that carry data.
pub const STROKE: f64 = 1.5;
/// Lines of originals.
pub const DASH: Dash = Dash { on: 5.0, off: 3.0, phase: 0.0 };

/// Shapes as they are put down, bottom first.
#[derive(Debug, Default)]
pub struct Sheet {
    /// What is drawn so far.
    pub shapes: Vec<Shape>,
}

/// What an entry of a legend shows before its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// A mark.
    Mark(Mark),
    /// A mark that is only an outline.
    Hollow(Mark),
    /// A dashed line.
    Dashes,
    /// A bar with ends.
    Bar,
    /// A ring around a mark.
    Ring,
}

impl Sheet {
    /// A line of text.
    pub fn text(&mut self, at: Point, text: &str, size: f64, anchor: Anchor, colour: Colour) {
        self.shapes.push(Shape::Text { at, text: text.to_owned(), size, anchor, colour });
    }

    /// A line between two points.
    pub fn line(&mut self, from: Point, to: Point, colour: Colour, width: f64, dash: Option<Dash>) {
        self.shapes.push(Shape::Line { points: vec![from, to], colour, width, dash });
    }

    /// A filled mark.
    pub fn mark(&mut self, at: Point, form: Mark, colour: Colour) {
        self.shapes.push(Shape::Mark { at, form, radius: RADIUS, colour });
    }

    /// The outline of a mark, white inside.
    pub fn hollow(&mut self, at: Point, form: Mark, colour: Colour) {
        self.shapes.push(Shape::Mark { at, form, radius: RADIUS, colour });
        self.shapes.push(Shape::Mark { at, form, radius: RADIUS - STROKE, colour: Colour::WHITE });
    }

    /// A ring that a mark can stand in.
    pub fn ring(&mut self, at: Point, colour: Colour) {
        self.shapes.push(Shape::Mark { at, form: Mark::Circle, radius: RADIUS + 4.0, colour });
        self.shapes.push(Shape::Mark { at, form: Mark::Circle, radius: RADIUS + 2.5, colour: Colour::WHITE });
    }

    /// A horizontal bar with short ends.
    pub fn bar(&mut self, from: f64, to: f64, y: f64, colour: Colour) {
        self.line((from, y), (to, y), colour, STROKE, None);
        for x in [from, to] {
            self.line((x, y - 2.5), (x, y + 2.5), colour, STROKE, None);
        }
    }

    /// A vertical bar with short ends.
    pub fn upright_bar(&mut self, x: f64, from: f64, to: f64, colour: Colour) {
        self.line((x, from), (x, to), colour, STROKE, None);
        for y in [from, to] {
            self.line((x - 2.5, y), (x + 2.5, y), colour, STROKE, None);
        }
    }

    /// The title, and below it the legend in as many lines as it needs. Returns where the last one ends.
    pub fn head(&mut self, title: &str, entries: &[(Sample, Colour, String)]) -> f64 {
        const SAMPLE: f64 = 24.0;
        const GAP: f64 = 20.0;
        const LINE: f64 = 18.0;
        let title = elide(title, TITLE, WIDTH - 2.0 * MARGIN);
        self.text((MARGIN, MARGIN + TITLE), &title, TITLE, Anchor::Start, Colour::INK);
        let mut y = MARGIN + TITLE + 10.0;
        let mut x = MARGIN;
        for (sample, colour, name) in entries {
            let name = elide(name, TEXT, WIDTH - 2.0 * MARGIN - SAMPLE);
            let width = SAMPLE + text_width(&name, TEXT);
            if x > MARGIN && x + width > WIDTH - MARGIN {
                x = MARGIN;
                y += LINE;
            }
            let middle = y + LINE / 2.0;
            let at = (x + 9.0, middle);
            match sample {
                Sample::Mark(form) => self.mark(at, *form, *colour),
                Sample::Hollow(form) => self.hollow(at, *form, *colour),
                Sample::Dashes => self.line((x, middle), (x + 18.0, middle), *colour, STROKE, Some(DASH)),
                Sample::Bar => self.bar(x, x + 18.0, middle, *colour),
                Sample::Ring => self.ring(at, *colour),
            }
            self.text((x + SAMPLE, middle + DROP), &name, TEXT, Anchor::Start, Colour::INK);
            x += width + GAP;
        }
        y + LINE
    }

    /// Text in the middle of a span, moved where it would leave the page.
    pub fn centred(&mut self, from: f64, to: f64, y: f64, text: &str, colour: Colour) {
        let text = elide(text, TEXT, WIDTH - 2.0 * MARGIN);
        let half = text_width(&text, TEXT) / 2.0;
        let middle = ((from + to) / 2.0).clamp(MARGIN + half, WIDTH - MARGIN - half);
        self.text((middle, y), &text, TEXT, Anchor::Middle, colour);
    }
}
