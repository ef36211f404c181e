//! A canvas: shapes put down one after the other, with the parts that every figure has.

use super::{Anchor, Colour, Dash, Drawing, Mark, Point, Shape, elide, text_width};

/// Width of a page in points.
pub const WIDTH: f64 = 800.0;
/// Its empty edge.
pub const MARGIN: f64 = 16.0;
/// Font size of titles.
pub const TITLE: f64 = 15.0;
/// Font size of names.
pub const TEXT: f64 = 12.0;
/// Font size of numbers along axes.
pub const SMALL: f64 = 10.5;
/// Radius of a mark.
pub const RADIUS: f64 = 3.5;
/// Width of a line that shows values.
pub const STROKE: f64 = 1.5;
/// Dashes of a line that is no series.
pub const DASH: Dash = Dash { on: 5.0, off: 3.0, phase: 0.0 };

/// From the middle of a line of text down to its baseline: half of the height of a capital, for size 1.
pub const DROP: f64 = 0.36;

/// What stands before a name in a legend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// A mark.
    Mark(Mark),
    /// A line.
    Line,
    /// A line with marks on it.
    Marked(Mark),
    /// A dashed line.
    Dashes,
    /// A patch of colour.
    Patch,
}

/// Shapes so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Canvas {
    shapes: Vec<Shape>,
}

impl Canvas {
    /// A line of text.
    pub fn text(&mut self, at: Point, text: &str, size: f64, anchor: Anchor, colour: Colour) {
        self.shapes.push(Shape::Text { at, text: text.to_owned(), size, anchor, colour });
    }

    /// A line of text that is read upwards.
    pub fn upward(&mut self, at: Point, text: &str, size: f64, anchor: Anchor, colour: Colour) {
        self.shapes.push(Shape::Upward { at, text: text.to_owned(), size, anchor, colour });
    }

    /// A straight line.
    pub fn line(&mut self, from: Point, to: Point, colour: Colour, width: f64, dash: Option<Dash>) {
        self.shapes.push(Shape::Line { points: vec![from, to], colour, width, dash });
    }

    /// A line through points; nothing where there are fewer than two.
    pub fn path(&mut self, points: Vec<Point>, colour: Colour, width: f64) {
        if points.len() > 1 {
            self.shapes.push(Shape::Line { points, colour, width, dash: None });
        }
    }

    /// A mark.
    pub fn mark(&mut self, at: Point, form: Mark, radius: f64, colour: Colour) {
        self.shapes.push(Shape::Mark { at, form, radius, colour });
    }

    /// A filled rectangle.
    pub fn fill(&mut self, from: Point, to: Point, colour: Colour) {
        self.shapes.push(Shape::Fill { from, to, colour });
    }

    /// Title and a grey line below it, at the top of the page; returns where they end.
    pub fn title(&mut self, title: &str, below: &str) -> f64 {
        let room = WIDTH - 2.0 * MARGIN;
        let (first, second) = (MARGIN + TITLE, MARGIN + TITLE + 1.5 * TEXT);
        self.text((MARGIN, first), &elide(title, TITLE, room), TITLE, Anchor::Start, Colour::INK);
        self.text((MARGIN, second), &elide(below, TEXT, room), TEXT, Anchor::Start, Colour::GREY);
        second + 0.24 * TEXT
    }

    /// Samples with names, in lines from `y` down; returns where the last one ends.
    pub fn legend(&mut self, entries: &[(Sample, Colour, String)], mut y: f64) -> f64 {
        const SAMPLE: f64 = 26.0;
        const GAP: f64 = 18.0;
        const LINE: f64 = 18.0;
        let mut x = MARGIN;
        for (sample, colour, name) in entries {
            let (sample, colour) = (*sample, *colour);
            let name = elide(name, TEXT, WIDTH - 2.0 * MARGIN - SAMPLE);
            let width = SAMPLE + text_width(&name, TEXT);
            if x > MARGIN && x + width > WIDTH - MARGIN {
                x = MARGIN;
                y += LINE;
            }
            let (middle, end) = (y + LINE / 2.0, x + 20.0);
            match sample {
                Sample::Mark(form) => self.mark((x + 10.0, middle), form, RADIUS, colour),
                Sample::Line => self.line((x, middle), (end, middle), colour, STROKE, None),
                Sample::Marked(form) => {
                    self.line((x, middle), (end, middle), colour, STROKE, None);
                    self.mark((x + 10.0, middle), form, RADIUS, colour);
                }
                Sample::Dashes => self.line((x, middle), (end, middle), colour, STROKE, Some(DASH)),
                Sample::Patch => self.fill((x, middle - 6.0), (end, middle + 6.0), colour),
            }
            self.text((x + SAMPLE, middle + DROP * TEXT), &name, TEXT, Anchor::Start, Colour::INK);
            x += width + GAP;
        }
        if entries.is_empty() { y } else { y + LINE }
    }

    /// The drawing, on a page that reaches down to `end`.
    pub fn finish(self, stem: String, caption: String, end: f64) -> Drawing {
        Drawing { stem, caption, width: WIDTH, height: (end + MARGIN).ceil(), shapes: self.shapes }
    }
}
