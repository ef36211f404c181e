//! Items' contributions as one value with its standard error: means, weighted perplexities, groups of parts.

use std::f64::consts::LN_2;

use rayon::prelude::*;

use super::{Contribution, Judgement, Metric};
use crate::evaluate::items::Item;
use crate::evaluate::python::random::Random;
use crate::evaluate::tasks::Task;

/// A metric of several items.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The value.
    pub value: f64,
    /// As the reference computes it: √(sample variance / n) of means; none for weighted perplexities, for which it has
    /// none either, and none below two items. Of `perplexity` the reference's is a bootstrap of its own, which
    /// [`bootstrap`] gives; here it is the delta method, perplexity · √(sample variance / n), without resampling.
    pub stderr: Option<f64>,
    /// Items.
    pub n: usize,
}

/// A metric of a task, of a part, or of a group of parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// The reference's name: the task's, `<task>_<part>`, or the group's.
    pub name: String,
    /// The reference's version.
    pub version: &'static str,
    /// The metric.
    pub score: Score,
}

/// The metric of the judged items; `None` where there are none or it does not apply to them.
pub fn score(metric: Metric, judgements: &[Judgement]) -> Option<Score> {
    let contributions: Option<Vec<Contribution>> =
        judgements.iter().map(|judgement| judgement.contribution(metric)).collect();
    let contributions = contributions.filter(|contributions| !contributions.is_empty())?;
    let n = contributions.len();
    if let Metric::WordPerplexity | Metric::BytePerplexity | Metric::BitsPerByte | Metric::TokenPerplexity =
        metric
    {
        let (mut sum, mut units) = (0.0, 0usize);
        for contribution in contributions {
            if let Contribution::Weighted(log_likelihood, weight) = contribution {
                sum += log_likelihood;
                units += weight;
            }
        }
        let loss = -(sum / units as f64);
        let value = if metric == Metric::BitsPerByte { loss / LN_2 } else { loss.exp() };
        return Some(Score { value, stderr: None, n });
    }
    let values: Vec<f64> = contributions
        .iter()
        .map(|contribution| match contribution {
            Contribution::Value(value) | Contribution::Weighted(value, _) => *value,
        })
        .collect();
    let (mean, stderr) = (mean(&values), mean_stderr(&values));
    Some(if metric == Metric::Perplexity {
        let value = (-mean).exp();
        Score { value, stderr: stderr.map(|stderr| value * stderr), n }
    } else {
        Score { value: mean, stderr, n }
    })
}

/// The sum in order, divided: what the reference does, so that the last bit agrees.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard deviation with Bessel's correction; `None` below two values.
pub fn sample_stddev(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Standard error of the mean.
pub fn mean_stderr(values: &[f64]) -> Option<f64> {
    sample_stddev(values).map(|stddev| stddev / (values.len() as f64).sqrt())
}

/// The reference's standard error of `perplexity`: the sample standard deviation of exp(−mean) over resamples, in chunks of
/// at most 1000 draws, chunk `i` drawn by `random.Random(i)`. The reference takes 100 000 draws. Biased low by a factor
/// √((n − 1) / n), as its own comment says. `None` without values or with less than two draws.
pub fn bootstrap(log_likelihoods: &[f64], draws: usize) -> Option<f64> {
    if log_likelihoods.is_empty() || draws < 2 {
        return None;
    }
    let (n, chunk) = (log_likelihoods.len(), draws.min(1000));
    let values: Vec<f64> = (0..draws / chunk)
        .into_par_iter()
        .flat_map_iter(|seed| {
            let mut random = Random::new(seed as u64);
            (0..chunk).map(move |_| {
                let sum: f64 = (0..n).map(|_| log_likelihoods[random.choice(n)]).sum();
                (-(sum / n as f64)).exp()
            })
        })
        .collect();
    sample_stddev(&values)
}

/// Several parts as one, weighted by their items, with the pooled standard error. `None` without parts; no standard error
/// where a part has none.
pub fn pooled(parts: &[Score]) -> Option<Score> {
    let n: usize = parts.iter().map(|part| part.n).sum();
    if parts.is_empty() {
        return None;
    }
    let value = parts.iter().map(|part| part.value * part.n as f64).sum::<f64>() / n as f64;
    let squares: Option<f64> = parts
        .iter()
        .map(|part| {
            let stderr = part.stderr?;
            Some((part.n - 1) as f64 * (stderr * stderr) * part.n as f64)
        })
        .sum();
    let stderr = squares
        .filter(|_| n > parts.len())
        .map(|squares| (squares / (n - parts.len()) as f64 / n as f64).sqrt());
    Some(Score { value, stderr, n })
}

/// A metric of a task with all that the reference reports of it: its parts, their groups and the whole; for a task
/// without parts the one value. Parts without items are left out.
pub fn report(task: &dyn Task, metric: Metric, items: &[Item], judgements: &[Judgement]) -> Vec<Named> {
    let groups = task.groups();
    let Some(all) = groups.last() else {
        let score = score(metric, judgements);
        let named = |score| Named { name: task.name().to_owned(), version: task.version(), score };
        return score.map(named).into_iter().collect();
    };
    let of_part = |part: &str| {
        let own = items.iter().zip(judgements).filter(|(item, _)| item.part.as_deref() == Some(part));
        score(metric, &own.map(|(_, judgement)| *judgement).collect::<Vec<_>>())
    };
    let scores: Vec<(&str, Score)> =
        all.parts.iter().filter_map(|part| Some((*part, of_part(part)?))).collect();
    let parts = scores.iter().map(|(part, score)| Named {
        name: format!("{}_{part}", task.name()),
        version: PART_VERSION,
        score: *score,
    });
    let groups = groups.iter().filter_map(|group| {
        let own = scores.iter().filter(|(part, _)| group.parts.contains(part));
        let score = pooled(&own.map(|(_, score)| *score).collect::<Vec<_>>())?;
        Some(Named { name: group.name.to_owned(), version: group.version, score })
    });
    parts.chain(groups).collect()
}

/// The version of the reference's tasks that are parts of a group here (`mmlu_*`).
const PART_VERSION: &str = "1.0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_errors_by_hand() {
        // 1, 0, 1, 1: mean 3/4, sample variance (3 · 1/16 + 9/16) / 3 = 1/4, standard error 1/4.
        let values = [1.0, 0.0, 1.0, 1.0];
        assert_eq!((mean(&values), mean_stderr(&values)), (0.75, Some(0.25)));
        assert_eq!(mean_stderr(&[1.0]), None);
        assert_eq!(bootstrap(&[], 100), None);
    }

    #[test]
    fn groups_weigh_by_items() {
        let parts =
            [Score { value: 1.0, stderr: Some(0.0), n: 3 }, Score { value: 0.5, stderr: Some(0.5), n: 2 }];
        let whole = pooled(&parts).unwrap();
        assert_eq!((whole.value, whole.n), (0.8, 5));
        // (2·0·3 + 1·¼·2) / (5 − 2) / 5 = 1/30.
        assert!((whole.stderr.unwrap() - (1f64 / 30.0).sqrt()).abs() < 1e-15);
        assert_eq!(pooled(&[]), None);
        assert_eq!(pooled(&[Score { value: 1.0, stderr: None, n: 1 }]).unwrap().stderr, None);
    }

    #[test]
    fn texts_are_weighted_by_their_units() {
        let text =
            |log_likelihood, words| Judgement::Text { log_likelihood, words, bytes: 2 * words, tokens: 1 };
        let judged = [text(-1.0, 1), text(-5.0, 2)];
        let of = |metric| score(metric, &judged).unwrap().value;
        assert_eq!(of(Metric::WordPerplexity), 2f64.exp());
        assert_eq!(of(Metric::BytePerplexity), 1f64.exp());
        assert_eq!(of(Metric::BitsPerByte), 1.0 / LN_2);
        assert_eq!(of(Metric::TokenPerplexity), 3f64.exp());
        assert_eq!(score(Metric::Acc, &judged), None);
    }
}
