//! A chart of grouped bars: for each group a row for each thing, a bar for each series from the baseline to the value, and
//! a dot for each of the values that it is the mean of.
//!
//! Bars are level, because names are long, and begin at the baseline, which is what values are compared with: so their
//! length is the difference, and a difference of nothing has no length.

use super::palette;
use super::scale::ValueAxis;
use super::sheet::{DASH, DROP, MARGIN, STROKE, Sample, Sheet, TEXT, WIDTH};
use super::{Anchor, Colour, Drawing, Mark, Shape, elide, text_width};

/// Room of one bar, air of a row besides, and room of a group's heading.
const LANE: f64 = 11.0;
const AIR: f64 = 7.0;
const HEADING: f64 = 24.0;
/// Most room that the names of rows may take.
const NAMES: f64 = 0.34 * WIDTH;

/// A bar of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Index of the series.
    pub series: usize,
    /// The values; the bar ends at their mean.
    pub values: Vec<f64>,
}

/// A named row of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its bars.
    pub bars: Vec<Bar>,
}

/// What is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// Above everything.
    pub title: String,
    /// What a colour stands for.
    pub series: Vec<String>,
    /// Groups with their names, one below the other.
    pub groups: Vec<(String, Vec<Row>)>,
    /// Where bars begin.
    pub baseline: f64,
    /// What the baseline is.
    pub baseline_name: String,
    /// What stands along the axis, and in grey below it.
    pub axis: (String, String),
}

impl Bars {
    /// The chart.
    pub fn draw(&self, stem: String, caption: String) -> Drawing {
        let mut sheet = Sheet::default();
        let rows = || self.groups.iter().flat_map(|(_, rows)| rows);
        let widest = rows().map(|row| text_width(&elide(&row.name, TEXT, NAMES), TEXT)).fold(0.0, f64::max);
        let (left, right) = (MARGIN + widest + 10.0, WIDTH - MARGIN - 8.0);
        let values = rows().flat_map(|row| &row.bars).flat_map(|bar| bar.values.iter().copied());
        let values: Vec<f64> = values.chain([self.baseline]).filter(|value| value.is_finite()).collect();
        let axis = ValueAxis::around(&values, left, right);
        let mut entries: Vec<_> = self
            .series
            .iter()
            .enumerate()
            .map(|(i, name)| (Sample::Mark(Mark::Square), palette::series(i).0, name.clone()))
            .collect();
        entries.push((Sample::Dashes, Colour::GREY, self.baseline_name.clone()));
        if rows().flat_map(|row| &row.bars).any(|bar| bar.values.len() > 1) {
            entries.push((Sample::Mark(Mark::Circle), Colour::INK, "one seed".to_owned()));
        }
        let top = sheet.head(&self.title, &entries) + 8.0;
        let height = |row: &Row| LANE * row.bars.len().max(1) as f64 + AIR;
        let bottom = top
            + self.groups.iter().map(|(_, rows)| HEADING + rows.iter().map(height).sum::<f64>()).sum::<f64>();

        let mut y = top;
        for (_, rows) in &self.groups {
            y += HEADING;
            for (i, row) in rows.iter().enumerate() {
                if i % 2 == 0 {
                    let (from, to) = ((left, y), (right, y + height(row)));
                    sheet.shapes.push(Shape::Fill { from, to, colour: Colour::BAND });
                }
                y += height(row);
            }
        }
        for tick in axis.ticks(TEXT) {
            let x = tick.position;
            match tick.label {
                Some(label) => {
                    sheet.line((x, top), (x, bottom + 5.0), Colour::GRID, 1.0, None);
                    sheet.text((x, bottom + 8.0 + TEXT), &label, TEXT, Anchor::Middle, Colour::INK);
                }
                None => sheet.line((x, top), (x, bottom), Colour::MINOR_GRID, 1.0, None),
            }
        }
        sheet.line((left, bottom), (right, bottom), Colour::GREY, 1.0, None);
        let base = axis.place(self.baseline);
        let mut y = top;
        for (_, rows) in &self.groups {
            y += HEADING;
            for row in rows {
                let middle = y + height(row) / 2.0;
                let name = elide(&row.name, TEXT, NAMES);
                sheet.text((left - 10.0, middle + DROP), &name, TEXT, Anchor::End, Colour::INK);
                for (lane, bar) in row.bars.iter().enumerate() {
                    let centre = y + AIR / 2.0 + LANE * (lane as f64 + 0.5);
                    draw_bar(&mut sheet, bar, &axis, base, centre);
                }
                y += height(row);
            }
        }
        sheet.line((base, top), (base, bottom), Colour::GREY, STROKE, Some(DASH));
        let mut y = top;
        for (name, rows) in &self.groups {
            // White behind the heading, so that no line runs through it.
            let (heading, from) = (elide(name, TEXT, right - left - 8.0), (left + 4.0, y + 3.0));
            let to = (left + 12.0 + text_width(&heading, TEXT), y + HEADING - 3.0);
            sheet.shapes.push(Shape::Fill { from, to, colour: Colour::WHITE });
            sheet.text((left + 8.0, y + HEADING / 2.0 + DROP), &heading, TEXT, Anchor::Start, Colour::GREY);
            y += HEADING + rows.iter().map(height).sum::<f64>();
        }
        let (first, second) = (bottom + 28.0 + TEXT, bottom + 33.0 + 2.0 * TEXT);
        sheet.centred(left, right, first, &format!("{}{}", self.axis.0, axis.words()), Colour::INK);
        sheet.centred(left, right, second, &self.axis.1, Colour::GREY);
        let height = (second + 0.24 * TEXT + MARGIN).ceil();
        Drawing { stem, caption, width: WIDTH, height, shapes: sheet.shapes }
    }
}

fn draw_bar(sheet: &mut Sheet, bar: &Bar, axis: &ValueAxis, base: f64, y: f64) {
    let finite: Vec<f64> = bar.values.iter().copied().filter(|value| value.is_finite()).collect();
    if finite.is_empty() {
        return;
    }
    let end = axis.place(finite.iter().sum::<f64>() / finite.len() as f64);
    // A bar of no length is still to be seen.
    let (from, to) = (end.min(base) - 0.75, end.max(base) + 0.75);
    let colour = palette::series(bar.series).0;
    let half = LANE / 2.0 - 1.5;
    sheet.shapes.push(Shape::Fill { from: (from, y - half), to: (to, y + half), colour });
    if finite.len() > 1 {
        for value in finite {
            let at = (axis.place(value), y);
            sheet.shapes.push(Shape::Mark { at, form: Mark::Circle, radius: 1.8, colour: Colour::INK });
        }
    }
}
