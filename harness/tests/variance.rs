//! Variance components: against scipy's quantiles and mean squares, by a simulation that plants them, and by hand.

#![allow(clippy::unwrap_used)]

use harness::paired::variance::{better, components};
use harness::paired::{PairedError, normal, quantile};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

fn golden(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("fixtures/variance.json")).unwrap();
    all[part].as_array().unwrap().clone()
}

fn numbers(row: &Value) -> Vec<f64> {
    row.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

#[track_caller]
fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-12), "{found} and not {expected}");
}

#[test]
fn quantiles_are_scipys() {
    for row in golden("chi_squared").iter().map(numbers) {
        near(quantile::chi_squared(row[0], row[1]), row[2]);
    }
    for row in golden("f").iter().map(numbers) {
        near(quantile::f(row[0], row[1], row[2]), row[3]);
    }
}

#[test]
fn components_are_those_of_mean_squares_and_scipys_quantiles() {
    let rows = golden("components");
    assert_eq!(rows.len(), 3);
    for row in rows {
        let groups: Vec<Vec<f64>> = row["groups"].as_array().unwrap().iter().map(numbers).collect();
        let found = components(&groups, 0.95).unwrap();
        near(found.per_group, row["per_group"].as_f64().unwrap());
        let (within, between) = (numbers(&row["within"]), numbers(&row["between"]));
        near(found.within.variance, within[0]);
        near(found.within.interval.low, within[1]);
        near(found.within.interval.high, within[2]);
        near(found.between.variance, between[0].max(0.0));
        assert_eq!(found.between.floored, between[0] < 0.0);
        near(found.between.interval.low, between[1]);
        near(found.between.interval.high, between[2]);
    }
}

/// Standard normal numbers.
fn normals(seed: u64) -> impl FnMut() -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    move || normal::quantile((rng.next_u64() as f64 + 0.5) / 2f64.powi(64))
}

#[test]
fn planted_components_are_recovered() {
    // 300 studies of 8 sets with 3 seeds each; the variance of an estimate follows from its mean squares.
    const STUDIES: usize = 300;
    for (between, within) in [(1.0f64, 0.5f64), (0.3, 1.0)] {
        let mut normal = normals(7);
        let (mut sums, mut held) = ([0.0, 0.0], [0usize, 0]);
        for _ in 0..STUDIES {
            let groups: Vec<Vec<f64>> = (0..8)
                .map(|_| {
                    let set = 5.0 + between * normal();
                    (0..3).map(|_| set + within * normal()).collect()
                })
                .collect();
            let found = components(&groups, 0.95).unwrap();
            sums[0] += found.within.variance;
            // Without the floor, which would bias the mean: (MS_between − MS_within) / J.
            let means: Vec<f64> = groups.iter().map(|g| g.iter().sum::<f64>() / 3.0).collect();
            let all = means.iter().sum::<f64>() / 8.0;
            let of_means = means.iter().map(|m| (m - all).powi(2)).sum::<f64>() / 7.0;
            let unfloored = of_means - found.within.variance / 3.0;
            assert!((found.between.variance - unfloored.max(0.0)).abs() < 1e-12);
            assert_eq!(found.between.floored, unfloored < 0.0);
            sums[1] += unfloored;
            held[0] += usize::from(found.within.interval.holds(within * within));
            held[1] += usize::from(found.between.interval.holds(between * between));
        }
        let n = STUDIES as f64;
        let (w, b) = (within * within, between * between);
        // var(MS) = 2 E(MS)² / df
        let error_within = (2.0 * w * w / 16.0 / n).sqrt();
        let ms = w + 3.0 * b;
        let error_between = ((2.0 * ms * ms / 7.0 + 2.0 * w * w / 16.0) / 9.0 / n).sqrt();
        assert!((sums[0] / n - w).abs() < 4.0 * error_within, "{} and not {w}", sums[0] / n);
        assert!((sums[1] / n - b).abs() < 4.0 * error_between, "{} and not {b}", sums[1] / n);
        // 95 % less four standard errors of a coverage of 300 trials.
        assert!(held.iter().all(|held| *held as f64 / n > 0.95 - 4.0 * (0.95 * 0.05 / n).sqrt()), "{held:?}");
    }
}

#[test]
fn equal_values_have_no_spread_at_all() {
    // 0.7 three times: summed and divided by three, it is another number.
    let groups = vec![vec![0.7; 3], vec![3.537; 3], vec![1.1]];
    let found = components(&groups, 0.95).unwrap();
    assert_eq!(found.within.variance, 0.0);
    assert!(found.between.variance > 0.0);
}

#[test]
fn what_cannot_be_taken_apart_is_refused() {
    let groups = |sizes: &[usize]| sizes.iter().map(|n| vec![1.0; *n]).collect::<Vec<_>>();
    assert!(matches!(components(&groups(&[3]), 0.95), Err(PairedError::TooFew { what: "groups", .. })));
    assert!(matches!(components(&groups(&[1, 1, 1]), 0.95), Err(PairedError::TooFew { .. })));
    let nan = vec![vec![1.0, f64::NAN], vec![1.0, 2.0]];
    assert!(matches!(components(&nan, 0.95), Err(PairedError::NotFinite { .. })));
    let same = components(&groups(&[2, 2]), 0.95).unwrap();
    assert_eq!((same.within.variance, same.between.variance), (0.0, 0.0));
}

#[test]
fn better_counts_pairs() {
    let pairs = [(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (f64::NAN, 2.0)];
    // One win, one tie, and what is no number never wins.
    assert_eq!(better(&pairs, true), Some(1.5 / 4.0));
    assert_eq!(better(&pairs, false), Some(1.5 / 4.0));
    assert_eq!(better(&[], true), None);
}
