//! The registry of figures: one file and one line each.

use super::ReportError;
use super::drawing::Drawing;
use crate::record::Contents;

pub mod ablation;
pub mod activation_maxima;
pub mod activation_surfaces;
pub mod alpha_sweep;
pub mod calibration_effects;
pub mod calibration_matrix;
pub mod calibration_sensitivity;
pub mod error_difficulty;
pub mod error_growth;
pub mod frontier;
pub mod layer_difficulties;
pub mod layer_errors;
pub mod layer_profiles;
pub mod outlier_histograms;
pub mod perplexity;
pub mod prefix_ablation;
pub mod quantized_token;
pub mod schemes;
pub mod spike_ratios;
pub mod token_scales;

/// A figure of a report. It reads records and hands over drawings; it never touches a file.
pub trait Figure: Sync {
    /// Its name, as `list figures` prints it.
    fn name(&self) -> &'static str;

    /// What it shows, in a few words, for `list figures`.
    fn about(&self) -> &'static str {
        ""
    }

    /// Whether these records hold what it shows.
    fn applies(&self, contents: &Contents) -> bool;

    /// Its drawings, one for each protocol it finds. The same records give the same drawings.
    ///
    /// # Errors
    /// Where the records contradict what [`Figure::applies`] promised.
    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError>;
}

/// All figures, in alphabetical order of their names.
pub const FIGURES: &[&dyn Figure] = &[
    &ablation::Ablation,
    &activation_maxima::ActivationMaxima,
    &activation_surfaces::ActivationSurfaces,
    &alpha_sweep::AlphaSweep,
    &calibration_effects::CalibrationEffects,
    &calibration_matrix::CalibrationMatrix,
    &calibration_sensitivity::CalibrationSensitivity,
    &error_difficulty::ErrorDifficulty,
    &error_growth::ErrorGrowth,
    &frontier::Frontier,
    &layer_difficulties::LayerDifficulties,
    &layer_errors::LayerErrors,
    &layer_profiles::LayerProfiles,
    &outlier_histograms::OutlierHistograms,
    &perplexity::Perplexity,
    &prefix_ablation::PrefixAblation,
    &quantized_token::QuantizedToken,
    &schemes::Schemes,
    &spike_ratios::SpikeRatios,
    &token_scales::TokenScales,
];

/// All drawings of all figures that apply.
///
/// # Errors
/// Of the first figure that fails.
pub fn draw_all(contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
    let mut drawings: Vec<Drawing> = Vec::new();
    for figure in FIGURES.iter().filter(|figure| figure.applies(contents)) {
        for mut drawing in figure.draw(contents)? {
            // Two metric ids may differ only in characters that a file name cannot hold.
            let plain = drawing.stem.clone();
            let taken = |stem: &str| drawings.iter().any(|other| other.stem == stem);
            let mut n = 1;
            while taken(&drawing.stem) {
                n += 1;
                drawing.stem = format!("{plain}-{n}");
            }
            drawings.push(drawing);
        }
    }
    Ok(drawings)
}

/// A metric id as part of a file name: letters, digits, dots and hyphens.
pub fn file_stem(id: &str) -> String {
    let parts = id.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_registered_alphabetically() {
        assert!(FIGURES.windows(2).all(|pair| pair[0].name() < pair[1].name()));
    }

    #[test]
    fn a_metric_id_becomes_a_file_name() {
        assert_eq!(
            file_stem("perplexity/gptq/wikitext2-test/2048/bos=tokenizer"),
            "perplexity-gptq-wikitext2-test-2048-bos-tokenizer"
        );
    }
}
