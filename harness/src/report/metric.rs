//! What a metric id says: its name, its protocol, and which direction is better.
//!
//! A full metric id is `name/protocol…`, e.g. `perplexity/gptq/wikitext2-test/2048/bos=tokenizer`. Everything after the
//! name is protocol, and two protocols never share a column.

/// Which way a metric improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Smaller values are better.
    LowerIsBetter,
    /// Larger values are better.
    HigherIsBetter,
    /// Neither is known of this metric.
    Unstated,
}

impl Direction {
    /// The words under a table or along an axis; `None` where nothing is known.
    pub fn words(self) -> Option<&'static str> {
        match self {
            Direction::LowerIsBetter => Some("lower is better"),
            Direction::HigherIsBetter => Some("higher is better"),
            Direction::Unstated => None,
        }
    }
}

/// Metric names whose direction is known, alphabetical.
const DIRECTIONS: &[(&str, Direction)] = &[
    ("acc", Direction::HigherIsBetter),
    ("acc_bytes", Direction::HigherIsBetter),
    ("acc_norm", Direction::HigherIsBetter),
    ("accuracy", Direction::HigherIsBetter),
    ("kl-divergence", Direction::LowerIsBetter),
    ("layer-error", Direction::LowerIsBetter),
    ("log-perplexity-difference", Direction::LowerIsBetter),
    ("perplexity", Direction::LowerIsBetter),
    ("top1-agreement", Direction::HigherIsBetter),
    ("weight-bytes", Direction::LowerIsBetter),
];

/// Splits a metric id into its name (the first segment) and its protocol (the rest, possibly empty).
pub fn split(id: &str) -> (&str, &str) {
    id.split_once('/').unwrap_or((id, ""))
}

/// The direction in which the metric of this id improves.
pub fn direction(id: &str) -> Direction {
    let name = split(id).0;
    DIRECTIONS
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(Direction::Unstated, |(_, direction)| *direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment_is_the_name_and_the_rest_is_protocol() {
        assert_eq!(
            split("perplexity/gptq/wikitext2-test/2048/bos=tokenizer"),
            ("perplexity", "gptq/wikitext2-test/2048/bos=tokenizer")
        );
        assert_eq!(split("accuracy"), ("accuracy", ""));
        assert_eq!(direction("perplexity/gptq/x"), Direction::LowerIsBetter);
        assert_eq!(direction("wall-time/s"), Direction::Unstated);
    }
}
