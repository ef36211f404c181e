//! Statistics of small activations against counting by hand, and their laws.

use proptest::prelude::*;

use super::*;

const DEPTH: Depth = Depth { histogram: true, second_moment: true };

/// Of sequences `[tokens][channels]`, numbered from `first`, tokens numbered 100 and up.
fn observed(sequences: &[Vec<Vec<f32>>], first: usize) -> SiteStatistics {
    let channels = sequences[0][0].len();
    let mut statistics = SiteStatistics::new(channels, DEPTH);
    for (i, sequence) in sequences.iter().enumerate() {
        add(&mut statistics, std::slice::from_ref(sequence), &[first + i]);
    }
    statistics
}

fn add(statistics: &mut SiteStatistics, sequences: &[Vec<Vec<f32>>], samples: &[usize]) {
    let values: Vec<f32> = sequences.iter().flatten().flatten().copied().collect();
    let ids: Vec<u32> = (100..100 + sequences[0].len() as u32).collect();
    let tokens = vec![&ids[..]; sequences.len()];
    statistics.observe(&values, &Batch { samples, tokens: &tokens, first_position: 0 }, 2).unwrap();
}

/// One channel, so that the token scales are the magnitudes.
fn tokens(scales: &[f32]) -> Vec<Vec<f32>> {
    scales.iter().map(|&s| vec![s]).collect()
}

#[test]
fn by_hand() {
    let statistics = observed(&[vec![vec![1.0, -4.0], vec![0.5, 2.0], vec![-3.0, 0.0]]], 0);
    assert_eq!((&statistics.min[..], &statistics.max[..]), (&[-3.0, -4.0][..], &[1.0, 2.0][..]));
    assert_eq!(statistics.absmax_by_channel(), [3.0, 4.0]);
    assert_eq!(statistics.mean_magnitude(), [1.5, 2.0]);
    assert_eq!((statistics.tokens, statistics.absmax()), (3, 4.0));
    let sequence = &statistics.sequences[&0];
    assert_eq!((sequence.low, sequence.high, sequence.max, sequence.median), (-4.0, 2.0, 4.0, 3.0));
    let top: Vec<_> = sequence.top.iter().map(|t| (t.scale, t.position, t.token)).collect();
    assert_eq!(top, [(4.0, 0, 100), (3.0, 2, 102), (2.0, 1, 101)]);
    assert_eq!(statistics.token_scales[&0], [4.0, 2.0, 3.0]);
    assert_eq!(statistics.second_moment.as_ref().unwrap().sums, [10.25, -3.0, -3.0, 20.0]);
    let bins = statistics.histogram.as_ref().unwrap().bins();
    let found: Vec<_> = bins.iter().map(|b| (b.lower, b.count)).collect();
    assert_eq!(found, [(0.0, 1), (0.5, 1), (1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1)]);
    assert_eq!(statistics.ratio(), Ok(4.0 / 3.0));
}

#[test]
fn the_median_of_an_even_number_is_the_lower_one() {
    assert_eq!(observed(&[tokens(&[4.0, 1.0, 3.0, 2.0])], 0).sequences[&0].median, 2.0);
    assert_eq!(observed(&[tokens(&[5.0, 7.0])], 0).sequences[&0].median, 5.0);
    assert_eq!(observed(&[tokens(&[5.0])], 0).sequences[&0].median, 5.0);
    let medians = observed(&[tokens(&[2.0]), tokens(&[9.0]), tokens(&[4.0]), tokens(&[3.0])], 0);
    assert_eq!(medians.median(), Some(3.0));
}

#[test]
fn the_mean_of_ratios_is_not_the_ratio_of_the_pool() {
    // Ratios 10 and 2; in the pool, 80 over a median of 8.
    let statistics = observed(&[tokens(&[1.0, 1.0, 10.0]), tokens(&[40.0, 40.0, 80.0, 8.0])], 0);
    assert_eq!(statistics.ratio(), Ok((10.0 + 80.0 / 40.0) / 2.0));
    // 1, 1, 8, 10, 40, 40, 80: the lower median is 10.
    let pooled = statistics.ratio_pooled().unwrap();
    assert!((pooled / 8.0 - 1.0).abs() < 0.008, "{pooled}");
}

#[test]
fn a_median_of_zero_is_reported_and_not_divided_by() {
    let statistics = observed(&[tokens(&[1.0, 2.0, 3.0]), tokens(&[0.0, 0.0, 3.0])], 4);
    assert_eq!(statistics.ratio(), Err(ZeroMedian { sample: 5 }));
    assert_eq!(statistics.zero_medians(), 1);
    let site = Site::block(3, Port::DownIn);
    let all = Statistics { sites: [(site, statistics)].into(), ..Statistics::default() };
    let message = all.ratios().unwrap_err().to_string();
    assert!(message.contains("layers.3.down_in") && message.contains("sample 5"), "{message}");
}

#[test]
fn what_is_not_finite_is_refused_with_its_sample() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut statistics = SiteStatistics::new(1, DEPTH);
        let batch = Batch { samples: &[3, 4], tokens: &[&[1, 2], &[1, 2]], first_position: 0 };
        let found = statistics.observe(&[1.0, 2.0, 3.0, bad], &batch, 0);
        assert_eq!(found, Err(NotFinite { sample: 4 }));
    }
}

#[test]
fn outliers_are_kept_as_far_as_they_reach_and_say_when_they_are_cut() {
    let mut scales = vec![1.0f32; 200];
    scales.iter_mut().step_by(10).enumerate().for_each(|(i, s)| *s = 100.0 + i as f32);
    let statistics = observed(&[tokens(&scales)], 0);
    let sequence = &statistics.sequences[&0];
    assert_eq!((sequence.outliers, sequence.top.len()), (20, 20));
    let found = sequence.outliers(64.0);
    assert_eq!((found.tokens.len(), found.capped, found.tokens[0].position), (20, false, 190));
    assert_eq!(sequence.outliers(110.0).tokens.len(), 9);

    scales.iter_mut().step_by(5).for_each(|s| *s = 50.0);
    let statistics = observed(&[tokens(&scales)], 0);
    let sequence = &statistics.sequences[&0];
    assert_eq!((sequence.outliers, sequence.top.len()), (40, MOST_TOKENS));
    assert!(sequence.outliers(8.0).capped && !sequence.outliers(64.0).capped);
    // Of equal scales the earlier token comes first.
    assert!(sequence.top.is_sorted_by_key(|t| t.position));
}

/// Up to 7 sequences of one length, around the block of rows that tasks share, and of channels around the vector's width.
fn activations() -> impl Strategy<Value = Vec<Vec<Vec<f32>>>> {
    (1usize..7, 1usize..150, 1usize..40).prop_flat_map(|(sequences, tokens, channels)| {
        let value = (-20i32..10, -2f32..2f32).prop_map(|(e, m)| m * 2f32.powi(e));
        let row = proptest::collection::vec(value, channels);
        proptest::collection::vec(proptest::collection::vec(row, tokens), sequences)
    })
}

/// All but the second moments, which are compared apart.
fn exact(mut statistics: SiteStatistics) -> (SiteStatistics, SecondMoment) {
    let moment = statistics.second_moment.take().unwrap();
    (statistics, moment)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_order_and_any_split_give_the_same(
        x in activations(),
        order in any::<prop::sample::Index>(),
        cuts in proptest::collection::vec(1usize..4, 7),
    ) {
        let (whole, moment) = exact(observed(&x, 0));
        // Rotated, in batches of several sizes, each its own statistics, merged from the last to the first.
        let mut samples: Vec<usize> = (0..x.len()).collect();
        samples.rotate_left(order.index(x.len()));
        samples.reverse();
        let mut merged = SiteStatistics::new(x[0][0].len(), DEPTH);
        let mut rest = &samples[..];
        for cut in cuts {
            let (batch, after) = rest.split_at(cut.min(rest.len()));
            rest = after;
            if !batch.is_empty() {
                let mut part = SiteStatistics::new(x[0][0].len(), DEPTH);
                let sequences: Vec<_> = batch.iter().map(|&s| x[s].clone()).collect();
                add(&mut part, &sequences, batch);
                part.merge(&merged);
                merged = part;
            }
        }
        let (merged, other_moment) = exact(merged);
        prop_assert_eq!(&merged, &whole);
        prop_assert_eq!(merged.mean_magnitude(), whole.mean_magnitude());
        let scale = moment.sums.iter().fold(1e-300f64, |a, b| a.max(b.abs()));
        for (a, b) in moment.sums.iter().zip(&other_moment.sums) {
            prop_assert!((a - b).abs() <= 1e-12 * scale);
        }
    }

    #[test]
    fn every_number_is_what_a_plain_loop_finds(x in activations()) {
        let statistics = observed(&x, 0);
        let channels = x[0][0].len();
        for c in 0..channels {
            let column: Vec<f32> = x.iter().flatten().map(|row| row[c]).collect();
            prop_assert_eq!(statistics.min[c], column.iter().copied().fold(f32::INFINITY, f32::min));
            prop_assert_eq!(statistics.max[c], column.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mean = column.iter().map(|v| f64::from(v.abs())).sum::<f64>() / column.len() as f64;
            prop_assert!((statistics.mean_magnitude()[c] - mean).abs() <= 1e-5 * mean + 1e-18);
        }
        let values = (x.len() * x[0].len() * channels) as u64;
        prop_assert_eq!(statistics.histogram.as_ref().unwrap().total(), values);
        prop_assert_eq!(statistics.scales.total(), statistics.tokens);
        for (s, sequence) in x.iter().enumerate() {
            let scales: Vec<f32> =
                sequence.iter().map(|row| row.iter().fold(0.0f32, |a, v| a.max(v.abs()))).collect();
            let found = &statistics.sequences[&s];
            let mut sorted = scales.clone();
            sorted.sort_by(f32::total_cmp);
            prop_assert_eq!(found.median, sorted[(sorted.len() - 1) / 2]);
            prop_assert_eq!(found.max, sorted[sorted.len() - 1]);
            prop_assert!(found.ratio().is_none_or(|r| r >= 1.0));
            prop_assert_eq!(found.top.len(), found.top.iter().map(|t| t.position).collect::<std::collections::BTreeSet<_>>().len());
            for (rank, top) in found.top.iter().enumerate() {
                prop_assert_eq!(top.scale, sorted[sorted.len() - 1 - rank]);
                prop_assert_eq!(top.scale, scales[top.position as usize]);
                prop_assert_eq!(top.token, 100 + top.position);
            }
            match statistics.token_scales.get(&s) {
                Some(kept) => prop_assert_eq!(kept, &scales),
                None => prop_assert!(s >= 2),
            }
        }
    }

    #[test]
    fn the_ratio_does_not_change_with_scale_or_the_order_of_tokens(x in activations(), power in -8i32..8) {
        let statistics = observed(&x, 0);
        let factor = 2f32.powi(power);
        let scaled: Vec<Vec<Vec<f32>>> = x
            .iter()
            .map(|s| s.iter().rev().map(|row| row.iter().map(|v| v * factor).collect()).collect())
            .collect();
        prop_assert_eq!(observed(&scaled, 0).ratio(), statistics.ratio());
    }
}
