//! The registry of a report's tables: one file and one line each, in the order of the report.

use super::table::Table;
use crate::record::Contents;

pub mod ablation;
pub mod accuracy;
pub mod against;
pub mod beside;
pub mod bits;
pub mod cures;
pub mod expectations;
pub mod layers;
pub mod metrics;
pub mod partial;
pub mod robustness;
pub mod speed;

/// A kind of table of a report. It reads records; it never touches a file.
pub trait Section: Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Its tables; none where the records do not hold what it shows. The same records give the same tables.
    fn tables(&self, contents: &Contents) -> Vec<Table>;
}

/// All sections, in the order in which a report prints them.
pub const SECTIONS: &[&dyn Section] = &[
    &accuracy::Accuracy,
    &against::Against,
    &metrics::Metrics,
    &bits::Bits,
    &ablation::Ablation,
    &speed::Speeds,
    &cures::Cures,
    &partial::Partial,
    &layers::Layers,
    &robustness::Robustness,
    &beside::Beside,
    &expectations::Expectations,
];

/// All tables of a report.
pub fn tables(contents: &Contents) -> Vec<Table> {
    SECTIONS.iter().flat_map(|section| section.tables(contents)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_empty_records_have_no_tables() {
        let names: std::collections::BTreeSet<_> = SECTIONS.iter().map(|section| section.name()).collect();
        assert_eq!(names.len(), SECTIONS.len());
        assert!(tables(&Contents::default()).is_empty());
    }
}
