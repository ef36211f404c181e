//! P-values of a whole table.
//!
//! A sweep makes dozens of comparisons, and at level 0.05 one in twenty of those that compare nothing with nothing is
//! "significant". Adjusted p-values stand beside the raw ones and are compared with the same level. Which family they
//! were adjusted over, a column or a table, belongs in the caption.

use super::PairedError;

/// Holm's adjusted p-values, in the order given: with p₍₁₎ ≤ … ≤ p₍ₘ₎,
///
/// ```text
/// p̃₍ᵢ₎ = max_{j ≤ i} min(1, (m − j + 1) p₍ⱼ₎)
/// ```
///
/// Controls the probability of even one false difference, under any dependence. S. Holm (1979), Scandinavian Journal of
/// Statistics 6:65–70. An empty table has none.
///
/// # Errors
/// A p-value outside [0, 1], or NaN.
pub fn holm(p: &[f64]) -> Result<Vec<f64>, PairedError> {
    let order = ascending(p)?;
    let mut adjusted = vec![0.0; p.len()];
    let mut greatest = 0.0f64;
    for (i, &place) in order.iter().enumerate() {
        greatest = greatest.max(((p.len() - i) as f64 * p[place]).min(1.0));
        adjusted[place] = greatest;
    }
    Ok(adjusted)
}

/// Benjamini and Hochberg's adjusted p-values, in the order given: with p₍₁₎ ≤ … ≤ p₍ₘ₎,
///
/// ```text
/// p̃₍ᵢ₎ = min_{j ≥ i} min(1, m p₍ⱼ₎ / j)
/// ```
///
/// Controls the expected share of false ones among the differences that are called, for p-values that are independent or
/// positively dependent, as those of recipes on the same items are. Y. Benjamini, Y. Hochberg (1995),
/// doi:10.1111/j.2517-6161.1995.tb02031.x. An empty table has none.
///
/// # Errors
/// A p-value outside [0, 1], or NaN.
pub fn benjamini_hochberg(p: &[f64]) -> Result<Vec<f64>, PairedError> {
    let order = ascending(p)?;
    let mut adjusted = vec![0.0; p.len()];
    let mut least = 1.0f64;
    for (i, &place) in order.iter().enumerate().rev() {
        // p · m / j in this order: with j = m it is p exactly.
        least = least.min(p[place] * (p.len() as f64 / (i + 1) as f64));
        adjusted[place] = least;
    }
    Ok(adjusted)
}

/// Places in ascending order of p-values; equal ones in the order given.
fn ascending(p: &[f64]) -> Result<Vec<usize>, PairedError> {
    if let Some(&value) = p.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        return Err(PairedError::OutOfRange { what: "a p-value", value, range: "between 0 and 1" });
    }
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    Ok(order)
}
