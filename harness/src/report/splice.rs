//! The generated block inside a README that people write around.

use std::path::Path;

use super::ReportError;

/// Begins the generated block.
pub const BEGIN: &str = "<!-- quantscope:begin -->";
/// Ends it.
pub const END: &str = "<!-- quantscope:end -->";

/// The README with `block` between its markers and everything else untouched. Without a README a short one titled
/// `title` is begun; without markers the block goes to the end.
///
/// # Errors
/// Where the markers are not one pair in order.
pub fn splice(path: &Path, readme: Option<&str>, title: &str, block: &str) -> Result<String, ReportError> {
    let block = format!("{BEGIN}\n{block}{END}");
    let Some(readme) = readme else {
        return Ok(format!("# {title}\n\n{block}\n"));
    };
    let (begins, ends) = (readme.matches(BEGIN).count(), readme.matches(END).count());
    match (readme.find(BEGIN), readme.find(END)) {
        (None, None) => {
            let gap = if readme.is_empty() || readme.ends_with("\n\n") {
                ""
            } else if readme.ends_with('\n') {
                "\n"
            } else {
                "\n\n"
            };
            Ok(format!("{readme}{gap}{block}\n"))
        }
        (Some(begin), Some(end)) if begin < end && begins == 1 && ends == 1 => {
            Ok(format!("{}{block}{}", &readme[..begin], &readme[end + END.len()..]))
        }
        _ => Err(ReportError::Markers { path: path.to_owned(), begins, ends }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spliced(readme: Option<&str>) -> String {
        splice(Path::new("README.md"), readme, "quickstart", "new\n").unwrap()
    }

    #[test]
    fn text_around_the_block_is_kept_to_the_byte() {
        let readme = format!("# Mine\r\n\nbefore {BEGIN}\nold\n{END} after\n\n");
        assert_eq!(spliced(Some(&readme)), format!("# Mine\r\n\nbefore {BEGIN}\nnew\n{END} after\n\n"));
    }

    #[test]
    fn a_readme_without_a_block_gets_one_at_its_end_and_splicing_again_changes_nothing() {
        for readme in [None, Some(""), Some("# Mine"), Some("# Mine\n"), Some("# Mine\n\n")] {
            let once = spliced(readme);
            assert!(once.starts_with(readme.unwrap_or("# quickstart\n\n")));
            assert!(once.ends_with(&format!("{BEGIN}\nnew\n{END}\n")));
            assert_eq!(spliced(Some(&once)), once);
        }
    }

    #[test]
    fn markers_that_are_not_one_pair_are_refused() {
        let (twice, reversed) = (format!("{BEGIN}{END}{BEGIN}{END}"), format!("{END}{BEGIN}"));
        for readme in [BEGIN, END, &twice, &reversed] {
            let error = splice(Path::new("x/README.md"), Some(readme), "x", "new\n").unwrap_err();
            assert!(error.to_string().contains("x/README.md"), "{error}");
        }
    }
}
