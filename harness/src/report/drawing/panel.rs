//! Panels: plots of one drawing beside and below one another, with axes of their own.

use super::axis::{BlockAxis, LogAxis};
use super::canvas::{Canvas, DROP, MARGIN, SMALL, TEXT, WIDTH};
use super::{Anchor, Colour, Point, elide};

/// Room to the left of a panel for the numbers, and the name, of its upright axis.
const BESIDE: f64 = 60.0;
/// Room above it for its heading.
const ABOVE: f64 = 24.0;
/// Room below it for the numbers, and the name, of its level axis.
const BELOW: f64 = 42.0;

/// A plot's rectangle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Panel {
    /// Left edge.
    pub left: f64,
    /// Right edge.
    pub right: f64,
    /// Upper edge.
    pub top: f64,
    /// Lower edge.
    pub bottom: f64,
}

/// `count` panels of one height, in rows of `columns`, from `top` down; and where they end with everything below them.
pub fn panels(count: usize, columns: usize, top: f64, height: f64) -> (Vec<Panel>, f64) {
    let columns = columns.clamp(1, count.max(1));
    let width = (WIDTH - 2.0 * MARGIN) / columns as f64;
    let row = ABOVE + height + BELOW;
    let panel = |i: usize| {
        let (x, y) = (MARGIN + width * (i % columns) as f64, top + row * (i / columns) as f64);
        Panel { left: x + BESIDE, right: x + width - 8.0, top: y + ABOVE, bottom: y + ABOVE + height }
    };
    ((0..count).map(panel).collect(), top + row * count.div_ceil(columns) as f64)
}

impl Panel {
    /// Its heading.
    pub fn heading(&self, canvas: &mut Canvas, text: &str) {
        let text = elide(text, TEXT, self.right - self.left);
        canvas.text((self.left, self.top - 7.0), &text, TEXT, Anchor::Start, Colour::INK);
    }

    /// The upright axis that holds these values, which are to be positive and finite.
    pub fn upright(&self, values: impl IntoIterator<Item = f64>) -> LogAxis {
        LogAxis::around(values, self.bottom, self.top)
    }

    /// The level axis that holds these values.
    pub fn level(&self, values: impl IntoIterator<Item = f64>) -> LogAxis {
        LogAxis::around(values, self.left, self.right)
    }

    /// The level axis of as many blocks.
    pub fn blocks(&self, count: u32) -> BlockAxis {
        BlockAxis { count, start: self.left, end: self.right }
    }

    /// Level grid lines with their numbers, and the axis's name read upwards.
    pub fn upright_grid(&self, canvas: &mut Canvas, axis: &LogAxis, name: &str) {
        for tick in axis.upright_ticks(SMALL) {
            let y = tick.position;
            let colour = if tick.label.is_some() { Colour::GRID } else { Colour::MINOR_GRID };
            canvas.line((self.left, y), (self.right, y), colour, 1.0, None);
            if let Some(label) = tick.label {
                canvas.text((self.left - 5.0, y + DROP * SMALL), &label, SMALL, Anchor::End, Colour::INK);
            }
        }
        let middle = (self.top + self.bottom) / 2.0;
        let name = elide(name, TEXT, self.bottom - self.top + ABOVE);
        canvas.upward((self.left - BESIDE + TEXT, middle), &name, TEXT, Anchor::Middle, Colour::INK);
    }

    /// Upright grid lines with their numbers below, and the axis's name below these.
    pub fn level_grid(&self, canvas: &mut Canvas, axis: &LogAxis, name: &str) {
        for tick in axis.ticks(SMALL) {
            let x = tick.position;
            let colour = if tick.label.is_some() { Colour::GRID } else { Colour::MINOR_GRID };
            canvas.line((x, self.top), (x, self.bottom), colour, 1.0, None);
            if let Some(label) = tick.label {
                canvas.text(self.below(x), &label, SMALL, Anchor::Middle, Colour::INK);
            }
        }
        self.level_name(canvas, name);
    }

    /// Numbers of blocks below the panel, with short lines up to it, and the axis's name.
    pub fn block_grid(&self, canvas: &mut Canvas, axis: &BlockAxis, name: &str) {
        for tick in axis.ticks(SMALL) {
            let x = tick.position;
            canvas.line((x, self.bottom), (x, self.bottom + 3.0), Colour::GREY, 1.0, None);
            if let Some(label) = tick.label {
                canvas.text(self.below(x), &label, SMALL, Anchor::Middle, Colour::INK);
            }
        }
        self.level_name(canvas, name);
    }

    /// The lines at its left and lower edge, last, so that nothing covers them.
    pub fn edges(&self, canvas: &mut Canvas) {
        canvas.line((self.left, self.bottom), (self.right, self.bottom), Colour::GREY, 1.0, None);
        canvas.line((self.left, self.top), (self.left, self.bottom), Colour::GREY, 1.0, None);
    }

    fn below(&self, x: f64) -> Point {
        (x, self.bottom + 6.0 + SMALL)
    }

    fn level_name(&self, canvas: &mut Canvas, name: &str) {
        let at = ((self.left + self.right) / 2.0, self.bottom + 10.0 + SMALL + TEXT);
        let name = elide(name, TEXT, self.right - self.left + BESIDE);
        canvas.text(at, &name, TEXT, Anchor::Middle, Colour::INK);
    }
}
