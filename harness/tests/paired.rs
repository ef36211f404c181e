//! Paired statistics against scipy and statsmodels (`scripts/oracle/paired_golden.py`) and hand-computed cases. What
//! must hold for any input stands in `paired_properties.rs`.

#![allow(clippy::unwrap_used)]

use harness::paired::bootstrap::{self, Bootstrap, Ends, RESAMPLES};
use harness::paired::clustered::{self, Cluster, by_label, singles};
use harness::paired::divergence::{Divergences, TokenDivergence, summary, token_divergence};
use harness::paired::floor::{AgainstFloor, against_floor, excess, excess_above};
use harness::paired::mcnemar::{self, Changes, Outcome, changed_items, changes, margin};
use harness::paired::multiplicity::{benjamini_hochberg, holm};
use harness::paired::perplexity::{WindowLoss, log_difference, ratio};
use harness::paired::power::{
    ALPHA, POWER, items_needed, minimum_detectable_effect, minimum_detectable_effect_unpaired, power,
};
use harness::paired::{
    CONFIDENCE, Estimate, Interval, PairedError, difference, normal, proportion, sorted_quantile,
};
use serde_json::Value;

fn golden(part: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("fixtures/paired.json")).unwrap();
    all[part].clone()
}

fn rows(part: &Value) -> &[Value] {
    part.as_array().unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a count: {value}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    rows(value).iter().map(number).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    rows(value).iter().map(|v| number(v) as f32).collect()
}

#[track_caller]
fn near(found: f64, expected: f64, relative: f64) {
    assert!((found - expected).abs() <= relative * expected.abs().max(1e-300), "{found:e}, not {expected:e}");
}

#[track_caller]
fn near_all(found: &[f64], expected: &[f64], relative: f64) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).for_each(|(&f, &e)| near(f, e, relative));
}

fn outcomes(pairs: &[(u32, bool)]) -> Vec<Outcome> {
    pairs.iter().map(|&(decision, correct)| Outcome { decision, correct }).collect()
}

fn table(row: &Value) -> Changes {
    let [both_correct, lost, gained, both_wrong] =
        ["both_correct", "lost", "gained", "both_wrong"].map(|field| count(&row[field]));
    Changes { both_correct, lost, gained, both_wrong, changed: lost + gained }
}

#[test]
fn the_normal_distribution_is_scipys() {
    let part = golden("normal");
    for (x, expected) in numbers(&part["x"]).into_iter().zip(numbers(&part["cdf"])) {
        near(normal::cdf(x), expected, 1e-13);
    }
    for (p, expected) in numbers(&part["p"]).into_iter().zip(numbers(&part["quantile"])) {
        assert!((normal::quantile(p) - expected).abs() <= 1e-13 * expected.abs().max(1.0), "{p}");
    }
    assert_eq!([normal::cdf(f64::NEG_INFINITY), normal::cdf(f64::INFINITY)], [0.0, 1.0]);
    assert!(normal::cdf(f64::NAN).is_nan());
}

#[test]
fn mcnemar_is_statsmodels() {
    let part = golden("mcnemar");
    for row in rows(&part) {
        let (b, c) = (count(&row["lost"]), count(&row["gained"]));
        near(mcnemar::exact(b, c), number(&row["exact"]), 1e-9);
        // scipy's cdf less its pmf has lost some digits itself.
        near(mcnemar::mid_p(b, c), number(&row["mid_p"]), 1e-8);
    }
}

#[test]
fn mcnemar_by_hand() {
    // 2 (C(10,0) + C(10,1)) / 2¹⁰, and half of the last term's two sides less.
    assert_eq!(mcnemar::exact(1, 9), 22.0 / 1024.0);
    assert_eq!(mcnemar::mid_p(1, 9), 12.0 / 1024.0);
    assert_eq!(mcnemar::exact(6, 0), 2.0 / 64.0);
    assert_eq!([mcnemar::exact(0, 0), mcnemar::mid_p(0, 0)], [1.0, 1.0]);
    // A million discordant items, where 2⁻ⁿ is no float: the normal approximation with continuity correction.
    let approximate = 2.0 * normal::cdf(-(2000.0 - 1.0) / 1000.0);
    near(mcnemar::exact(499_000, 501_000), approximate, 1e-3);
    assert_eq!(mcnemar::exact(0, 100_000), 0.0);
}

#[test]
fn changes_are_counted_by_field() {
    // Right, right → wrong, wrong → right, wrong → other wrong, the same wrong twice.
    let original = outcomes(&[(0, true), (1, true), (2, false), (3, false), (2, false)]);
    let reading = outcomes(&[(0, true), (2, false), (1, true), (0, false), (2, false)]);
    let found = changes(&original, &reading).unwrap();
    assert_eq!(found, Changes { both_correct: 1, lost: 1, gained: 1, both_wrong: 2, changed: 3 });
    assert_eq!((found.items(), found.discordant(), found.flips(), found.all_flips()), (5, 2, 0.4, 0.6));
    assert_eq!(changed_items(&original, &reading).unwrap(), [1, 2, 3]);
    // Correctness can change under one decision: LAMBADA's text has no choices.
    let found = changes(&outcomes(&[(0, true)]), &outcomes(&[(0, false)])).unwrap();
    assert_eq!((found.lost, found.changed), (1, 1));
}

#[test]
fn the_margin_is_of_the_two_best() {
    assert_eq!(margin(&[-3.0, -1.0, -1.5]), Some(0.5));
    assert_eq!(margin(&[-1.0, -1.0, -2.0]), Some(0.0));
    assert_eq!(margin(&[f64::NEG_INFINITY, f64::NEG_INFINITY]), Some(0.0));
    assert_eq!(margin(&[-1.0]), None);
    assert!(margin(&[-1.0, f64::NAN]).unwrap().is_nan());
}

#[test]
fn wilson_is_statsmodels() {
    let part = golden("wilson");
    for row in rows(&part) {
        let (correct, n) = (count(&row["correct"]), count(&row["n"]));
        let Interval { low, high } = proportion::wilson(correct, n, number(&row["confidence"])).unwrap();
        assert!(
            (low - number(&row["low"])).abs() < 1e-12 && (high - number(&row["high"])).abs() < 1e-12,
            "{row}"
        );
    }
}

#[test]
fn one_accuracy_has_the_standard_error_of_lm_eval() {
    // 3 of 4: sample standard deviation 0.5, over √4.
    let found = proportion::accuracy(3, 4).unwrap();
    assert_eq!((found.value, found.stderr, found.n), (0.75, Some(0.25), 4));
    let items = difference::mean(&[1.0, 0.0, 1.0, 1.0]).unwrap();
    near(items.stderr.unwrap(), 0.25, 1e-15);
    assert_eq!(proportion::accuracy(1, 1).unwrap().stderr, None);
}

#[test]
fn differences_of_accuracies_and_newcombes_interval() {
    let part = golden("accuracies");
    for row in rows(&part) {
        let changes = table(row);
        let found = difference::accuracies(&changes).unwrap();
        assert!((found.value - number(&row["value"])).abs() < 1e-14);
        assert!((found.stderr.unwrap() - number(&row["stderr"])).abs() < 1e-14);
        let Interval { low, high } = difference::newcombe(&changes, CONFIDENCE).unwrap();
        let expected = numbers(&row["newcombe"]);
        assert!((low - expected[0]).abs() < 1e-12 && (high - expected[1]).abs() < 1e-12, "{row}");
    }
    // Newcombe (1998), table II, method 10, fields 36, 12, 2, 0: 0.0569 to 0.3404, of original − reading.
    let published = Changes { both_correct: 36, lost: 12, gained: 2, both_wrong: 0, changed: 14 };
    let Interval { low, high } = difference::newcombe(&published, CONFIDENCE).unwrap();
    assert_eq!((format!("{low:.4}"), format!("{high:.4}")), ("-0.3404".into(), "-0.0569".into()));
    // √(14 − 10²/50) / 50 = √12 / 50.
    near(difference::accuracies(&published).unwrap().stderr.unwrap(), 12f64.sqrt() / 50.0, 1e-15);
}

#[test]
fn differences_of_means_are_those_of_a_paired_t_test() {
    let part = golden("means");
    let (original, reading) = (numbers(&part["original"]), numbers(&part["reading"]));
    let found = difference::means(&original, &reading).unwrap();
    near(found.value, number(&part["value"]), 1e-11);
    near(found.stderr.unwrap(), number(&part["stderr"]), 1e-11);
    near(found.p_value().unwrap(), number(&part["p"]), 1e-10);
    let Interval { low, high } = found.interval(CONFIDENCE).unwrap();
    near_all(&[low, high], &numbers(&part["interval"]), 1e-10);
    near(difference::mean(&original).unwrap().stderr.unwrap(), number(&part["sem"]), 1e-12);
}

#[test]
fn clustered_standard_errors_are_statsmodels() {
    let part = golden("clustered");
    let labels: Vec<u64> = rows(&part["labels"]).iter().map(count).collect();
    let (original, reading) = (numbers(&part["original"]), numbers(&part["reading"]));
    let found = clustered::difference(&original, &reading, &labels).unwrap();
    near(found.value, number(&part["value"]), 1e-11);
    near(found.stderr.unwrap(), number(&part["stderr"]), 1e-11);
    assert_eq!((found.n, found.units), (labels.len() as u64, 23));

    let clusters = by_label(&difference::differences(&original, &reading).unwrap(), &labels).unwrap();
    for (ends, name) in [(Ends::Percentile, "percentile"), (Ends::Corrected, "BCa")] {
        let how = Bootstrap { resamples: RESAMPLES, seed: 1, ends };
        let Interval { low, high } = bootstrap::interval(&clusters, CONFIDENCE, &how).unwrap();
        let expected = numbers(&part["bootstrap"][name]);
        // The Monte-Carlo error of an end is about 0.03 standard errors.
        let allowed = 0.12 * found.stderr.unwrap();
        assert!(
            (low - expected[0]).abs() < allowed && (high - expected[1]).abs() < allowed,
            "{name}: {low} {high}"
        );
    }
}

#[test]
fn bootstrap_intervals_are_scipys_within_monte_carlo_error() {
    let part = golden("bootstrap");
    let (values, stderr) = (numbers(&part["values"]), number(&part["stderr"]));
    let [percentile, corrected] =
        [(Ends::Percentile, "percentile"), (Ends::Corrected, "BCa")].map(|(ends, name)| {
            let how = Bootstrap { resamples: RESAMPLES, seed: 7, ends };
            let found = bootstrap::interval(&singles(&values), CONFIDENCE, &how).unwrap();
            let expected = numbers(&part[name]);
            // Upper ends of a skewed distribution are the noisiest.
            assert!((found.low - expected[0]).abs() < 0.1 * stderr, "{name}: {found:?}, not {expected:?}");
            assert!((found.high - expected[1]).abs() < 0.2 * stderr, "{name}: {found:?}, not {expected:?}");
            found
        });
    // The two differ by more than that on skewed values, so neither passes for the other.
    assert!(
        corrected.low > percentile.low + 0.15 * stderr && corrected.high > percentile.high + 0.25 * stderr
    );
}

#[test]
fn log_perplexities_differ_with_windows_as_units() {
    let part = golden("perplexity");
    let tokens: Vec<u64> = rows(&part["tokens"]).iter().map(count).collect();
    let losses = |name: &str| -> Vec<WindowLoss> {
        let means = numbers(&part[name]);
        means.iter().zip(&tokens).map(|(&mean, &tokens)| WindowLoss { mean, tokens }).collect()
    };
    let (original, reading) = (losses("original"), losses("reading"));
    let found = log_difference(&original, &reading).unwrap();
    near(found.value, number(&part["value"]), 1e-11);
    near(found.stderr.unwrap(), number(&part["stderr"]), 1e-10);
    let quotient = ratio(&found, CONFIDENCE);
    near(quotient.value, number(&part["ratio"]), 1e-12);
    let Interval { low, high } = quotient.interval.unwrap();
    near_all(&[low, high], &numbers(&part["ratio_interval"]), 1e-12);
    near(quotient.stderr.unwrap(), quotient.value * found.stderr.unwrap(), 1e-15);

    // By hand: differences of 0.1 and 0.3 nats of equally many tokens.
    let window = |mean| WindowLoss { mean, tokens: 10 };
    let by_hand = log_difference(&[window(1.0), window(2.0)], &[window(1.1), window(2.3)]).unwrap();
    near(by_hand.value, 0.2, 1e-12);
    near(by_hand.stderr.unwrap(), 0.1, 1e-12);

    let mut other = reading.clone();
    other[3].tokens += 1;
    let error = log_difference(&original, &other).unwrap_err();
    assert_eq!(error, PairedError::Window { window: 3, original: 12, reading: 13 });
    other = reading;
    other[4].mean = f64::INFINITY;
    assert!(log_difference(&original, &other).unwrap_err().to_string().contains("window 4 is inf"));
}

#[test]
fn power_is_statsmodels() {
    let part = golden("power");
    for row in rows(&part) {
        let (items, rate) = (count(&row["items"]), number(&row["discordance"]));
        let found = minimum_detectable_effect(items, rate, ALPHA, POWER).unwrap();
        // statsmodels solves numerically, to about 1e-4, and counts rejections on the wrong side.
        near(found, number(&row["mde"]), 1e-4);
        let approximate = power(items, rate, number(&row["mde"]), ALPHA).unwrap();
        near(approximate, number(&row["power"]), 1e-9);
        // What the exact test finds in truth, by enumeration: less, by at most 0.035 here.
        let excess = approximate - number(&row["exact_power"]);
        assert!((0.0..0.035).contains(&excess), "{row}");
        assert!(items_needed(found, rate, ALPHA, POWER).unwrap().abs_diff(items) <= 1);
    }
}

#[test]
fn minimum_detectable_effects_of_well_known_tasks() {
    // Percentage points at discordance 2 %, 5 % and 10 %, and unpaired at accuracy 0.7.
    let table = [
        (100, [4.0, 6.3, 8.9, 18.2]),
        (500, [1.8, 2.8, 4.0, 8.1]),
        (1267, [1.1, 1.8, 2.5, 5.1]),
        (1838, [0.92, 1.5, 2.1, 4.2]),
        (10042, [0.40, 0.63, 0.88, 1.8]),
        (14042, [0.33, 0.53, 0.75, 1.5]),
    ];
    for (items, expected) in table {
        let mut found: Vec<f64> = [0.02, 0.05, 0.1]
            .map(|rate| 100.0 * minimum_detectable_effect(items, rate, ALPHA, POWER).unwrap())
            .into();
        found.push(100.0 * minimum_detectable_effect_unpaired(items, 0.7, ALPHA, POWER).unwrap());
        for (found, expected) in found.into_iter().zip(expected) {
            assert!(
                (found - expected).abs() <= if expected < 1.0 { 0.0051 } else { 0.051 },
                "{items}: {found}"
            );
        }
    }
}

#[test]
fn power_at_its_limits() {
    assert_eq!(minimum_detectable_effect(100, 0.0, ALPHA, POWER).unwrap(), 0.0);
    near(power(500, 0.05, 0.0, ALPHA).unwrap(), 0.025, 1e-12);
    assert_eq!(power(1000, 0.1, 0.1, ALPHA).unwrap(), 1.0);
    // (0.1 √10 − 1.96 √0.1) / √(0.1 − 0.01) = −1.012, whichever way.
    near(power(10, 0.1, -0.1, ALPHA).unwrap(), normal::cdf(-1.011_9), 1e-4);
    assert_eq!(power(10, 0.1, -0.1, ALPHA), power(10, 0.1, 0.1, ALPHA));
    // Without any spread it is all or nothing: 3 items all lost are no evidence, 4 are, by the approximation.
    assert_eq!([0.0, 1.0], [3, 4].map(|items| power(items, 1.0, -1.0, ALPHA).unwrap()));
    assert_eq!(power(10, 0.0, 0.0, ALPHA).unwrap(), 0.0);
    assert!(power(10, 0.1, 0.2, ALPHA).unwrap_err().to_string().contains("at most the discordance rate"));
    assert!(power(10, 0.1, f64::NAN, ALPHA).is_err());
    assert!(minimum_detectable_effect(10, 1.5, ALPHA, POWER).is_err());
    assert!(minimum_detectable_effect(10, 0.1, 0.0, POWER).is_err());
    assert!(minimum_detectable_effect(10, 0.1, ALPHA, 1.0).is_err());
    assert!(minimum_detectable_effect(0, 0.1, ALPHA, POWER).is_err());
    assert!(items_needed(0.0, 0.1, ALPHA, POWER).is_err());
}

#[test]
fn adjusted_p_values_are_statsmodels() {
    let part = golden("multiplicity");
    for row in rows(&part) {
        let p = numbers(&row["p"]);
        near_all(&holm(&p).unwrap(), &numbers(&row["holm"]), 1e-14);
        near_all(&benjamini_hochberg(&p).unwrap(), &numbers(&row["benjamini_hochberg"]), 1e-14);
    }
    // By hand, in no order.
    near_all(&holm(&[0.03, 0.01, 0.04]).unwrap(), &[0.06, 0.03, 0.06], 1e-15);
    near_all(&benjamini_hochberg(&[0.03, 0.01, 0.04]).unwrap(), &[0.04, 0.03, 0.04], 1e-15);
    assert_eq!(holm(&[]).unwrap(), [0.0; 0]);
    for bad in [1.1, -0.1, f64::NAN] {
        assert!(holm(&[0.5, bad]).is_err() && benjamini_hochberg(&[bad]).is_err(), "{bad}");
    }
}

#[test]
fn divergences_are_scipys() {
    let part = golden("divergence");
    let mut all = Divergences::default();
    let window = count(&part["window"]) as usize;
    for window in rows(&part["rows"]).chunks(window) {
        all.push_window(window.iter().map(|row| {
            let found = token_divergence(&floats(&row["original"]), &floats(&row["reading"])).unwrap();
            assert!((found.kl - number(&row["kl"])).abs() < 1e-13 * number(&row["kl"]).max(1.0), "{row}");
            near(found.confidence, number(&row["confidence"]), 1e-13);
            assert_eq!(found.same_top, row["same_top"].as_bool().unwrap());
            found
        }));
    }
    let found = summary(&all).unwrap();
    let pair = |estimate: &Estimate| [estimate.value, estimate.stderr.unwrap()];
    near_all(&pair(&found.mean), &numbers(&part["mean"]), 1e-11);
    near_all(&pair(&found.same_top), &numbers(&part["same_top"]), 1e-11);
    assert_eq!((found.mean.n, found.mean.units, found.not_finite), (40, 8, 0));
    for (found, name) in
        [(found.median, "median"), (found.p90, "p90"), (found.p99, "p99"), (found.max, "max")]
    {
        near(found, number(&part[name]), 1e-11);
    }
    for (bucket, expected) in found.buckets.iter().zip(rows(&part["buckets"])) {
        assert_eq!(bucket.tokens, count(&expected["tokens"]));
        near(bucket.mean.unwrap(), number(&expected["mean"]), 1e-10);
        near(bucket.median.unwrap(), number(&expected["median"]), 1e-6);
        near(bucket.same_top.unwrap(), number(&expected["same_top"]), 1e-14);
    }
}

#[test]
fn a_divergence_by_hand_and_at_its_limits() {
    // p = (3/4, 1/4), q = (1/2, 1/2): ¾ ln 3/2 + ¼ ln 1/2.
    let found = token_divergence(&[3f32.ln(), 0.0], &[5.0, 5.0]).unwrap();
    assert!((found.kl - (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln())).abs() < 1e-7);
    assert!((found.confidence - 0.75).abs() < 1e-7 && found.same_top, "ties go to the first");

    // Logits far beyond exp's range, and equal rows however large.
    let large = [1e30f32, -1e30, 0.0];
    assert_eq!(token_divergence(&large, &large).unwrap().kl, 0.0);
    assert_eq!(token_divergence(&[700.0, 800.0], &[700.0, 800.0]).unwrap().kl, 0.0);
    near(token_divergence(&[0.0, 0.0], &[0.0, -1000.0]).unwrap().kl, 500.0 - 2f64.ln(), 1e-12);

    let excluded = f32::NEG_INFINITY;
    assert_eq!(token_divergence(&[1.0, excluded], &[1.0, excluded]).unwrap().kl, 0.0);
    near(token_divergence(&[1.0, excluded], &[1.0, 1.0]).unwrap().kl, 2f64.ln(), 1e-15);
    assert_eq!(token_divergence(&[1.0, 1.0], &[1.0, excluded]).unwrap().kl, f64::INFINITY);
    for bad in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [excluded, excluded]] {
        assert!(token_divergence(&bad, &[0.0, 0.0]).unwrap().kl.is_nan());
        assert!(token_divergence(&[0.0, 0.0], &bad).unwrap().kl.is_nan());
    }
    assert!(token_divergence(&[1.0], &[1.0, 2.0]).is_err() && token_divergence(&[], &[]).is_err());
}

#[test]
fn tokens_without_a_divergence_are_counted_and_in_no_mean() {
    let token = |kl, confidence| TokenDivergence { kl, confidence, same_top: true };
    let mut all = Divergences::default();
    all.push_window([token(1.0, 0.25), token(f64::NAN, f64::NAN), token(3.0, 1.0)]);
    all.push_window([token(f64::INFINITY, 0.5)]);
    let found = summary(&all).unwrap();
    assert_eq!((found.mean.value, found.mean.n, found.mean.units, found.not_finite), (2.0, 2, 1, 2));
    assert_eq!(found.mean.stderr, None, "one window is left");
    // Edges belong to the bucket above, 1 to the last.
    assert_eq!(found.buckets.iter().map(|b| b.tokens).collect::<Vec<_>>(), [0, 1, 0, 0, 1]);
    assert_eq!(found.buckets[0].mean, None);
    let mut none = Divergences::default();
    assert!(summary(&none).is_err());
    none.push_window([token(f64::NAN, 0.5)]);
    assert!(summary(&none).is_err());
}

#[test]
fn only_what_rises_above_the_noise_floor_is_above_it() {
    let estimate = |value, stderr: f64| Estimate { value, stderr: Some(stderr), n: 100, units: 100 };
    // z one-sided at 0.95 is 1.645, and √(3² + 4²) = 5: the border is at 8.22.
    let floor = estimate(-10.0, 3.0);
    assert_eq!(against_floor(&estimate(18.3, 4.0), &floor, 0.95), AgainstFloor::Above);
    assert_eq!(against_floor(&estimate(-18.3, 4.0), &floor, 0.95), AgainstFloor::Above);
    assert_eq!(against_floor(&estimate(18.1, 4.0), &floor, 0.95), AgainstFloor::Within);
    assert_eq!(against_floor(&floor, &floor, 0.95), AgainstFloor::Within);
    let none = Estimate { stderr: None, ..floor };
    assert_eq!(against_floor(&estimate(99.0, 1.0), &none, 0.95), AgainstFloor::Unknown);
    // Without any noise: equal is within, more is above.
    let exact = estimate(0.0, 0.0);
    assert_eq!(against_floor(&exact, &exact, 0.95), AgainstFloor::Within);
    assert_eq!(against_floor(&estimate(0.1, 0.0), &exact, 0.95), AgainstFloor::Above);

    // Item by item: what both share drops out, which the unpaired comparison cannot see.
    let labels: Vec<usize> = (0..40).collect();
    let shared: Vec<f64> = labels.iter().map(|&i| (i * 7 % 40) as f64).collect();
    let reading: Vec<f64> = shared.iter().zip(&labels).map(|(x, i)| x + 0.5 + 0.1 * (i % 3) as f64).collect();
    let found = excess(&reading, &shared, &labels).unwrap();
    assert_eq!(excess_above(&found, 0.95), AgainstFloor::Above);
    let [reading_mean, floor_mean] = [&reading, &shared].map(|column| difference::mean(column).unwrap());
    assert_eq!(against_floor(&reading_mean, &floor_mean, 0.95), AgainstFloor::Within);
    assert_eq!(excess_above(&excess(&shared, &shared, &labels).unwrap(), 0.95), AgainstFloor::Within);
}

#[test]
fn a_suite_averages_its_tasks() {
    let task = |value, stderr| Estimate { value, stderr, n: 10, units: 5 };
    let found = difference::suite(&[task(0.1, Some(0.03)), task(0.3, Some(0.04))]).unwrap();
    near(found.value, 0.2, 1e-15);
    near(found.stderr.unwrap(), 0.025, 1e-15);
    assert_eq!((found.n, found.units), (20, 10));
    assert_eq!(difference::suite(&[task(0.1, Some(0.03)), task(0.3, None)]).unwrap().stderr, None);
    assert!(difference::suite(&[]).is_err());
}

#[test]
fn what_cannot_be_computed_is_refused_with_its_place() {
    let error = changes(&outcomes(&[(0, true)]), &[]).unwrap_err();
    assert!(error.to_string().contains("1 of the original and 0 of what is compared"), "{error}");
    assert!(changes(&[], &[]).is_err());
    let error = difference::means(&[1.0, 2.0], &[1.0, f64::NAN]).unwrap_err();
    assert!(error.to_string().starts_with("difference 1 is NaN"), "{error}");
    assert!(by_label(&[1.0], &["a", "b"]).is_err());
    assert!(clustered::mean(&[Cluster { sum: 0.0, n: 0 }]).is_err());
    let how = Bootstrap { resamples: 10, seed: 0, ends: Ends::Percentile };
    let error = bootstrap::interval(&singles(&[1.0]), CONFIDENCE, &how).unwrap_err();
    assert_eq!(error, PairedError::TooFew { what: "units to draw from", n: 1 });
    assert!(
        bootstrap::interval(&singles(&[1.0, 2.0]), CONFIDENCE, &Bootstrap { resamples: 0, ..how }).is_err()
    );
    assert!(proportion::wilson(3, 2, CONFIDENCE).is_err() && proportion::accuracy(0, 0).is_err());
    assert!(difference::accuracies(&Changes::default()).is_err());
    assert!(difference::newcombe(&Changes::default(), CONFIDENCE).is_err());
    assert_eq!(clustered::difference(&[1.0, 2.0], &[2.0, 4.0], &["one", "one"]).unwrap().stderr, None);
    assert_eq!(sorted_quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
}
