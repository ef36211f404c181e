//! `expectations`: what the experiment expects, beside what was measured.

use super::Section;
use crate::record::Contents;
use crate::report::expectations;
use crate::report::table::Table;

/// See the module.
pub struct Expectations;

impl Section for Expectations {
    fn name(&self) -> &'static str {
        "expectations"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        expectations::table(contents).into_iter().collect()
    }
}
