//! `layer-errors`: what rounding costs at the output of every linear group, one line for each transform.
//!
//! One drawing for each model and protocol, one panel for each port, logarithmic. The figure "quantization error" of
//! arXiv:2506.01967, whose axis is linear and hides all layers but the massive ones.

use super::Figure;
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::drawing::Drawing;
use crate::report::layers::chart::{Quantity, chart};
use crate::report::layers::{analyses, applies};

/// See the module.
pub struct LayerErrors;

const QUANTITY: Quantity = Quantity {
    stem: "layer-errors",
    title: "Error of the rounded product",
    axis: "E",
    about: "E = ‖XW' − Q(X)Q(W)'‖², summed over all tokens and outputs.",
    of: |row| row.error,
};

impl Figure for LayerErrors {
    fn name(&self) -> &'static str {
        "layer-errors"
    }

    fn about(&self) -> &'static str {
        "error of every linear group's rounded product, under smoothing and rotation"
    }

    fn applies(&self, contents: &Contents) -> bool {
        applies(contents)
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        Ok(analyses(contents)?.iter().filter_map(|analysis| chart(analysis, &QUANTITY)).collect())
    }
}
