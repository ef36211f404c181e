//! `layer-difficulties`: quantization difficulty of every group's activation and weights, one line for each transform.
//!
//! Two drawings for each model and protocol. The figure "quantization difficulty" of arXiv:2506.01967.
//!
//! # Equation
//! D(X) = std over channels j of ‖X_·j‖₂, with the denominator n − 1.

use super::Figure;
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::drawing::Drawing;
use crate::report::layers::chart::{Quantity, chart};
use crate::report::layers::{analyses, applies};

/// See the module.
pub struct LayerDifficulties;

const QUANTITIES: [Quantity; 2] = [
    Quantity {
        stem: "layer-difficulties-activation",
        title: "Difficulty of the activation",
        axis: "D(X)",
        about: "D is the standard deviation of the channels' norms.",
        of: |row| row.x_difficulty,
    },
    Quantity {
        stem: "layer-difficulties-weights",
        title: "Difficulty of the weights",
        axis: "D(W)",
        about: "D is the standard deviation of the input channels' norms.",
        of: |row| row.w_difficulty,
    },
];

impl Figure for LayerDifficulties {
    fn name(&self) -> &'static str {
        "layer-difficulties"
    }

    fn about(&self) -> &'static str {
        "quantization difficulty of every group's activation and weights"
    }

    fn applies(&self, contents: &Contents) -> bool {
        applies(contents)
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let analyses = analyses(contents)?;
        let of = |analysis| QUANTITIES.iter().filter_map(move |quantity| chart(analysis, quantity));
        Ok(analyses.iter().flat_map(of).collect())
    }
}
