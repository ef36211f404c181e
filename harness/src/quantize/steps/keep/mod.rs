//! `keep`: what stays in floating point; one file per method.

use models::{Decoder, Site};

use crate::calibrate::statistics::{RatioError, Statistics, ZeroMedian};
use crate::quantize::StepError;
use crate::quantize::fake_quant::Kept;
use crate::quantize::steps::Step;
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

/// Whether one of the steps may except from a later one what is named, as its calibration set decides.
pub fn may_except(earlier: &[Step], what: &[Kept]) -> bool {
    earlier.iter().any(|step| step.method().exempts().is_some_and(|kept| what.contains(&kept)))
}

/// How many of a site's channels the steps leave to the groups of a later one; `None` where the calibration set decides: an
/// expert that no token reaches keeps its channels as they are.
pub fn left(earlier: &[Step], site: Site, channels: usize) -> Option<usize> {
    let mut left = channels;
    for step in earlier {
        if let Step::KeepChannels(kept) = step
            && let Some(apart) = kept.apart(site.port, channels)
        {
            if site.expert.is_some() {
                return None;
            }
            left = left.saturating_sub(apart);
        }
    }
    Some(left)
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
