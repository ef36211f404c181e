//! `keep`: what stays in floating point; one file per method.

use models::{Decoder, Site};

use crate::calibrate::statistics::{RatioError, Statistics, ZeroMedian};
use crate::quantize::StepError;
use crate::quantize::steps::activations::PORTS;

pub mod channels;
pub mod qfem;
pub mod ranked;

/// How token scales of several sequences become one ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ratio {
    /// The mean over sequences of max/median, as the released code of QFeM computes it.
    #[default]
    Sequences,
    /// Max over median of all tokens of all sequences.
    Pooled,
}

/// The groups of every block with their ratios, largest first; equal ratios stand in the order of the forward pass.
///
/// # Errors
/// A site whose median token scale is zero in some sequence, or that was not seen.
pub fn ranked_groups(
    decoder: &Decoder,
    statistics: &Statistics,
    ratio: Ratio,
) -> Result<Vec<(Site, f64)>, StepError> {
    let mut ranked = Vec::new();
    for (site, _) in decoder.groups().into_iter().filter(|(site, _)| PORTS.contains(&site.port)) {
        let seen = statistics.sites.get(&site).ok_or_else(|| {
            StepError::Statistics(format!("{site}: the calibration pass did not look here"))
        })?;
        let r = match ratio {
            Ratio::Sequences => seen.ratio(),
            Ratio::Pooled => seen.ratio_pooled().ok_or(ZeroMedian { sample: 0 }),
        };
        let undefined = |ZeroMedian { sample }| RatioError { site: site.to_string(), sample };
        ranked.push((site, r.map_err(undefined).map_err(|e| StepError::Statistics(e.to_string()))?));
    }
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(ranked)
}
