//! What must hold of paired statistics for any input: identity, merging, order, monotonicity, and the coverage of
//! intervals by simulation.

#![allow(clippy::unwrap_used)]

use harness::paired::bootstrap::{self, Bootstrap, Ends};
use harness::paired::clustered::{self, Cluster, by_label, singles};
use harness::paired::divergence::{Divergences, TokenDivergence, summary, token_divergence};
use harness::paired::mcnemar::{self, Changes, Outcome, changed_items, changes};
use harness::paired::multiplicity::{benjamini_hochberg, holm};
use harness::paired::perplexity::{WindowLoss, log_difference, ratio};
use harness::paired::power::{ALPHA, POWER, minimum_detectable_effect, power};
use harness::paired::{CONFIDENCE, Interval, difference, normal, proportion};
use proptest::collection::vec;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn outcome() -> impl Strategy<Value = Outcome> {
    (0u32..4, any::<bool>()).prop_map(|(decision, correct)| Outcome { decision, correct })
}

fn logits() -> impl Strategy<Value = Vec<(f32, f32)>> {
    vec((-60f32..60.0, -60f32..60.0), 1..40)
}

fn tokens() -> impl Strategy<Value = Vec<TokenDivergence>> {
    let token = (0f64..3.0, 0f64..=1.0, any::<bool>());
    vec(token.prop_map(|(kl, confidence, same_top)| TokenDivergence { kl, confidence, same_top }), 1..9)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn a_reading_equals_itself(items in vec(outcome(), 1..50), row in logits(), losses in vec(0f64..20.0, 2..20)) {
        let same = changes(&items, &items).unwrap();
        prop_assert_eq!((same.flips(), same.all_flips(), same.discordant()), (0.0, 0.0, 0));
        prop_assert_eq!([mcnemar::exact(same.lost, same.gained), mcnemar::mid_p(same.lost, same.gained)], [1.0, 1.0]);
        prop_assert!(changed_items(&items, &items).unwrap().is_empty());
        let estimate = difference::accuracies(&same).unwrap();
        prop_assert_eq!((estimate.value, estimate.stderr, estimate.p_value()), (0.0, Some(0.0), Some(1.0)));
        prop_assert!(difference::newcombe(&same, CONFIDENCE).unwrap().holds(0.0));

        let row: Vec<f32> = row.into_iter().map(|(x, _)| x).collect();
        let token = token_divergence(&row, &row).unwrap();
        prop_assert!(token.kl == 0.0 && token.same_top);
        let mut all = Divergences::default();
        all.push_window([token]);
        let found = summary(&all).unwrap();
        prop_assert_eq!((found.mean.value, found.max, found.same_top.value), (0.0, 0.0, 1.0));

        let windows: Vec<_> = losses.iter().map(|&mean| WindowLoss { mean, tokens: 7 }).collect();
        let delta = log_difference(&windows, &windows).unwrap();
        prop_assert_eq!((delta.value, delta.stderr, delta.p_value()), (0.0, Some(0.0), Some(1.0)));
        prop_assert_eq!(ratio(&delta, CONFIDENCE).interval, Some(Interval { low: 1.0, high: 1.0 }));
    }

    #[test]
    fn parts_add_up_to_the_whole(pairs in vec((outcome(), outcome()), 2..60), at in 0.0f64..1.0) {
        let (original, reading): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let at = 1 + (at * (original.len() - 1) as f64) as usize;
        let at = at.min(original.len() - 1);
        let whole = changes(&original, &reading).unwrap();
        let first = changes(&original[..at], &reading[..at]).unwrap();
        let second = changes(&original[at..], &reading[at..]).unwrap();
        prop_assert_eq!(first + second, whole);
        prop_assert_eq!(first + Changes::default(), first);
        prop_assert_eq!(whole.items(), original.len() as u64);
        prop_assert!(whole.changed >= whole.discordant());
        prop_assert_eq!(whole.changed, changed_items(&original, &reading).unwrap().len() as u64);

        // The other way round, what was lost is gained.
        let back = changes(&reading, &original).unwrap();
        prop_assert_eq!((back.lost, back.gained, back.changed), (whole.gained, whole.lost, whole.changed));
    }

    #[test]
    fn batches_of_windows_are_one_batch(windows in vec(tokens(), 1..12), at in 0usize..12) {
        let at = at.min(windows.len());
        let gather = |windows: &[Vec<TokenDivergence>]| {
            let mut all = Divergences::default();
            windows.iter().for_each(|window| all.push_window(window.iter().copied()));
            all
        };
        let whole = gather(&windows);
        let mut merged = gather(&windows[..at]);
        merged.append(&gather(&windows[at..]));
        prop_assert_eq!(&merged, &whole);
        prop_assert_eq!(summary(&merged).unwrap(), summary(&whole).unwrap());
        prop_assert_eq!(whole.windows().map(<[_]>::len).collect::<Vec<_>>(), windows.iter().map(Vec::len).collect::<Vec<_>>());

        let found = summary(&whole).unwrap();
        prop_assert!(0.0 <= found.median && found.median <= found.p90 && found.p90 <= found.p99 && found.p99 <= found.max);
        prop_assert_eq!(found.buckets.iter().map(|bucket| bucket.tokens).sum::<u64>(), found.mean.n);
    }

    #[test]
    fn a_divergence_is_not_negative_and_no_shift_matters(pairs in logits(), shift in -30f32..30.0) {
        let (original, reading): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        let found = token_divergence(&original, &reading).unwrap();
        prop_assert!(found.kl >= 0.0 && found.kl.is_finite());
        prop_assert!(found.confidence >= 1.0 / original.len() as f64 * (1.0 - 1e-12) && found.confidence <= 1.0);
        let shifted: Vec<f32> = reading.iter().map(|x| x + shift).collect();
        // The shift is rounded in f32.
        prop_assert!((token_divergence(&original, &shifted).unwrap().kl - found.kl).abs() < 1e-4);
        // A row and its own shift, each logit rounded by at most 2⁻¹⁸.
        prop_assert!(token_divergence(&reading, &shifted).unwrap().kl < 1e-10);
    }

    #[test]
    fn adjusting_only_raises_and_keeps_order(p in vec(0f64..=1.0, 1..30)) {
        let (holm_p, bh) = (holm(&p).unwrap(), benjamini_hochberg(&p).unwrap());
        for i in 0..p.len() {
            prop_assert!(p[i] <= bh[i] && bh[i] <= holm_p[i] + 1e-15 && holm_p[i] <= 1.0);
            for j in 0..p.len() {
                prop_assert!(p[i] > p[j] || (holm_p[i] <= holm_p[j] && bh[i] <= bh[j]));
            }
        }
        // The order of rows in a table changes nothing.
        let reversed: Vec<f64> = p.iter().rev().copied().collect();
        let back: Vec<f64> = holm(&reversed).unwrap().into_iter().rev().collect();
        prop_assert_eq!(back, holm_p);
    }

    #[test]
    fn mcnemar_is_symmetric_and_falls_with_imbalance(b in 0u64..80, c in 0u64..80) {
        prop_assert_eq!(mcnemar::exact(b, c), mcnemar::exact(c, b));
        let (exact, mid) = (mcnemar::exact(b, c), mcnemar::mid_p(b, c));
        prop_assert!(0.0 < mid && mid <= exact && exact <= 1.0);
        if b > 0 && b <= c {
            // One item more on the heavier side.
            prop_assert!(mcnemar::exact(b - 1, c + 1) < exact);
        }
    }

    #[test]
    fn clusters_of_one_are_items_and_order_is_nothing(pairs in vec((-5f64..5.0, -5f64..5.0), 2..40)) {
        let (original, reading): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        let items = difference::means(&original, &reading).unwrap();
        let labels: Vec<usize> = (0..original.len()).collect();
        prop_assert_eq!(clustered::difference(&original, &reading, &labels).unwrap(), items);
        let reversed: Vec<usize> = labels.iter().rev().copied().collect();
        let other = clustered::difference(&original, &reading, &reversed).unwrap();
        prop_assert!((other.value - items.value).abs() < 1e-12);
        prop_assert!((other.stderr.unwrap() - items.stderr.unwrap()).abs() < 1e-12);

        // Every item twice, as clusters of two: the same estimate, and no more certainty.
        let [twice_original, twice_reading] = [&original, &reading].map(|column| [&column[..], &column[..]].concat());
        let twice = [&labels[..], &labels[..]].concat();
        let doubled = clustered::difference(&twice_original, &twice_reading, &twice).unwrap();
        prop_assert!((doubled.stderr.unwrap() - items.stderr.unwrap()).abs() < 1e-12);
        prop_assert_eq!((doubled.units, doubled.n), (items.units, 2 * items.n));
    }

    #[test]
    fn wald_is_the_paired_standard_error_but_for_n(a in 0u64..30, b in 0u64..30, c in 0u64..30, d in 2u64..30) {
        let table = Changes { both_correct: a, lost: b, gained: c, both_wrong: d, changed: b + c };
        let wald = difference::accuracies(&table).unwrap();
        let column = |ones: [(u64, f64); 4]| -> Vec<f64> {
            ones.iter().flat_map(|&(n, x)| std::iter::repeat_n(x, n as usize)).collect()
        };
        let original = column([(a, 1.0), (b, 1.0), (c, 0.0), (d, 0.0)]);
        let reading = column([(a, 1.0), (b, 0.0), (c, 1.0), (d, 0.0)]);
        let means = difference::means(&original, &reading).unwrap();
        let n = table.items() as f64;
        prop_assert!((wald.value - means.value).abs() < 1e-12);
        prop_assert!((wald.stderr.unwrap() - means.stderr.unwrap() * ((n - 1.0) / n).sqrt()).abs() < 1e-12);
        let Interval { low, high } = difference::newcombe(&table, CONFIDENCE).unwrap();
        prop_assert!(-1.0 - 1e-12 <= low && low <= wald.value && wald.value <= high && high <= 1.0 + 1e-12);
    }

    #[test]
    fn intervals_of_one_accuracy_hold_it(n in 1u64..500, part in 0f64..=1.0) {
        let correct = (part * n as f64) as u64;
        let narrow = proportion::wilson(correct, n, 0.8).unwrap();
        let wide = proportion::wilson(correct, n, 0.99).unwrap();
        let accuracy = proportion::accuracy(correct, n).unwrap().value;
        prop_assert!(narrow.holds(accuracy) && wide.low <= narrow.low && narrow.high <= wide.high);
        prop_assert!(0.0 <= wide.low && wide.high <= 1.0 && narrow.low < narrow.high);
    }

    #[test]
    fn more_items_see_more(items in 10u64..20_000, rate in 0.005f64..0.3) {
        let mde = minimum_detectable_effect(items, rate, ALPHA, POWER).unwrap();
        prop_assert!(minimum_detectable_effect(items + 1, rate, ALPHA, POWER).unwrap() < mde);
        prop_assert!(minimum_detectable_effect(items, rate * 1.1, ALPHA, POWER).unwrap() > mde);
        // The bound is one: at it, the power is at least what was asked for.
        if mde <= rate {
            prop_assert!(power(items, rate, mde, ALPHA).unwrap() >= POWER - 1e-9);
        }
    }

    #[test]
    fn quantiles_undo_the_distribution(x in -6f64..6.0) {
        prop_assert!((normal::quantile(normal::cdf(x)) - x).abs() < 1e-13 * (0.5 * x * x).exp().max(10.0));
        prop_assert!((normal::cdf(x) + normal::cdf(-x) - 1.0).abs() < 1e-15);
        prop_assert!(normal::cdf(x) <= normal::cdf(x + 1e-9));
    }
}

#[test]
fn a_bootstrap_is_its_seed_whatever_the_threads() {
    let values: Vec<f64> = (0..50).map(|i| f64::from(i * i % 17)).collect();
    let clusters = singles(&values);
    let with = |threads, seed| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bootstrap::resampled_means(&clusters, 300, seed).unwrap())
    };
    assert_eq!(with(1, 4), with(3, 4));
    assert_ne!(with(1, 4), with(1, 5));
    assert!(with(1, 4).is_sorted());
    // Frozen: intervals in stored reports must come out again.
    let how = Bootstrap { resamples: 300, seed: 4, ends: Ends::Percentile };
    let found = bootstrap::interval(&clusters, CONFIDENCE, &how).unwrap();
    assert_eq!(format!("{:.6} {:.6}", found.low, found.high), "6.569500 9.490500");
    // Nothing to vary: no extent, and not NaN.
    for ends in [Ends::Percentile, Ends::Corrected] {
        let how = Bootstrap { resamples: 50, seed: 0, ends };
        let found = bootstrap::interval(&singles(&[0.25; 8]), CONFIDENCE, &how).unwrap();
        assert_eq!(found, Interval { low: 0.25, high: 0.25 });
    }
}

/// Uniform in [0, 1).
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Near enough to a normal variable: mean 0, variance 1.
fn bell(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| uniform(rng)).sum::<f64>() - 6.0
}

const SIMULATIONS: usize = 400;

/// Coverage of 95 % intervals by 400 simulations: four binomial standard errors, 0.044, and on the lower side 0.015
/// for what so few units cost.
#[track_caller]
fn covers(what: &str, held: usize) {
    let share = held as f64 / SIMULATIONS as f64;
    assert!((0.95 - 0.044 - 0.015..=0.95 + 0.044).contains(&share), "{what}: {share}");
}

#[test]
fn intervals_of_accuracies_cover_the_truth() {
    // 80 items, of which 12 % are lost and 7 % gained.
    const TRUTH: f64 = 0.07 - 0.12;
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut held = [0; 4];
    for seed in 0..SIMULATIONS as u64 {
        let mut table = Changes::default();
        let values: Vec<f64> = (0..80)
            .map(|_| match uniform(&mut rng) {
                u if u < 0.12 => (table.lost += 1, -1.0).1,
                u if u < 0.19 => (table.gained += 1, 1.0).1,
                u if u < 0.7 => (table.both_correct += 1, 0.0).1,
                _ => (table.both_wrong += 1, 0.0).1,
            })
            .collect();
        let drawn = [Ends::Percentile, Ends::Corrected].map(|ends| {
            let how = Bootstrap { resamples: 400, seed, ends };
            bootstrap::interval(&singles(&values), CONFIDENCE, &how).unwrap()
        });
        let wald = difference::accuracies(&table).unwrap().interval(CONFIDENCE).unwrap();
        let newcombe = difference::newcombe(&table, CONFIDENCE).unwrap();
        for (held, interval) in held.iter_mut().zip([drawn[0], drawn[1], wald, newcombe]) {
            *held += usize::from(interval.holds(TRUTH));
        }
    }
    for (what, held) in ["percentile", "BCa", "Wald", "Newcombe"].into_iter().zip(held) {
        covers(what, held);
    }
}

#[test]
fn only_clustered_intervals_cover_the_truth_of_clusters() {
    // 50 windows of 4 to 8 tokens, with an offset a window: a mean of 0.3.
    const TRUTH: f64 = 0.3;
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let (mut clustered_held, mut drawn_held, mut naive_held) = (0, 0, 0);
    for seed in 0..SIMULATIONS as u64 {
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for window in 0..50 {
            let offset = bell(&mut rng);
            for _ in 0..4 + window % 5 {
                values.push(TRUTH + offset + 0.5 * bell(&mut rng));
                labels.push(window);
            }
        }
        let clusters: Vec<Cluster> = by_label(&values, &labels).unwrap();
        let how = Bootstrap { resamples: 400, seed, ends: Ends::Percentile };
        let drawn = bootstrap::interval(&clusters, CONFIDENCE, &how).unwrap();
        let robust = clustered::mean(&clusters).unwrap().interval(CONFIDENCE).unwrap();
        let naive = difference::mean(&values).unwrap().interval(CONFIDENCE).unwrap();
        clustered_held += usize::from(robust.holds(TRUTH));
        drawn_held += usize::from(drawn.holds(TRUTH));
        naive_held += usize::from(naive.holds(TRUTH));
    }
    covers("clustered", clustered_held);
    covers("bootstrap of clusters", drawn_held);
    assert!(naive_held < SIMULATIONS * 8 / 10, "tokens as units would cover {naive_held} of {SIMULATIONS}");
}

#[test]
fn mcnemar_keeps_its_level() {
    // 300 items, 4 % lost and 4 % gained: no difference. 2000 tables are cheap.
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let (mut exact, mut mid) = (0, 0);
    for _ in 0..2000 {
        let (mut b, mut c) = (0, 0);
        for _ in 0..300 {
            match uniform(&mut rng) {
                u if u < 0.04 => b += 1,
                u if u < 0.08 => c += 1,
                _ => {}
            }
        }
        exact += u32::from(mcnemar::exact(b, c) <= 0.05);
        mid += u32::from(mcnemar::mid_p(b, c) <= 0.05);
    }
    // Four binomial standard errors above 0.05 is 0.0695; the exact test is conservative, the mid-p one is near it.
    assert!(exact < mid && (61..=139).contains(&mid), "{exact} {mid}");
}
