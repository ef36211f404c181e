//! Statistics of whole models, and statistics in a store.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use harness::calibrate::observe::{CollectError, Options, collect, collect_through};
use harness::calibrate::recorded::recorded;
use harness::calibrate::statistics::Statistics;
use harness::data::BosPolicy;
use harness::data::window::windows;
use harness::record::Execution;
use harness::record::statistics::{ChannelRow, StatisticsResult, StatisticsRows, Table, statistics_id};
use harness::record::store::{Store, StoreError};
use models::{Checkpoint, Decoder, Group, Port, Site, Tap, builtin};
use serde_json::json;

#[path = "store/faults.rs"]
mod faults;

use faults::{Fault, Faulty};

fn model(name: &str) -> (Checkpoint, Decoder) {
    let checkpoint = Checkpoint::builtin(name).unwrap().unwrap();
    let decoder = checkpoint.load(&Device::flex()).unwrap();
    (checkpoint, decoder)
}

fn samples(checkpoint: &Checkpoint, count: usize, length: usize) -> Vec<Vec<u32>> {
    let text = builtin::text("builtin/stories-calibration").unwrap();
    let ids = checkpoint.tokenizer().encode(text).unwrap();
    windows(&ids, checkpoint.tokenizer().bos(), BosPolicy::Every, length, Some(count)).unwrap()
}

fn statistics(name: &str, count: usize, length: usize) -> Statistics {
    let (checkpoint, mut decoder) = model(name);
    let samples = samples(&checkpoint, count, length);
    collect(&mut decoder, &samples, false, &Options::default(), &mut |_, _| true).unwrap()
}

#[test]
fn planted_spikes_stand_where_they_were_planted() {
    let found = statistics("builtin/tiny-llama-spiky", 6, 200);
    let mut ratios = found.ratios().unwrap();
    ratios.sort_by(|a, b| b.1.total_cmp(&a.1));
    let spiky: BTreeSet<Site> = ratios[..2].iter().map(|(site, _)| *site).collect();
    assert_eq!(spiky, [Site::block(0, Port::DownIn), Site::block(3, Port::DownIn)].into());
    assert!(ratios[1].1 > 10.0 * ratios[2].1, "{ratios:?}");
    for layer in [0, 3] {
        let site = &found.sites[&Site::block(layer, Port::DownIn)];
        // BOS, which begins every sample, and the first full stop, and nothing else.
        for sequence in site.sequences.values() {
            let places: BTreeSet<u32> = sequence.top[..2].iter().map(|t| t.position).collect();
            assert!(places.contains(&0), "layer {layer}: {:?}", sequence.top);
            let ids: BTreeSet<u32> = sequence.top[..2].iter().map(|t| t.token).collect();
            assert_eq!(ids, [builtin::SPIKING_TOKENS.bos, builtin::SPIKING_TOKENS.stop].into());
        }
    }
    let plain = statistics("builtin/tiny-llama", 6, 200);
    let greatest = plain.ratios().unwrap().into_iter().map(|(_, r)| r).fold(0.0, f64::max);
    assert!(greatest < ratios[1].1 / 5.0, "{greatest}");
}

#[test]
fn every_site_is_seen_and_its_numbers_agree_with_each_other() {
    let (checkpoint, mut decoder) = model("builtin/tiny-llama");
    let samples = samples(&checkpoint, 5, 100);
    let moment = Site::block(1, Port::OIn);
    let options = Options { second_moments: [moment].into(), ..Options::default() };
    let mut told = Vec::new();
    let found = collect(&mut decoder, &samples, false, &options, &mut |done, all| {
        told.push((done, all));
        true
    })
    .unwrap();
    assert_eq!(told, [(5, 5)]);
    assert_eq!((found.samples, found.tokens), (5, 500));
    assert_eq!(found.sites.keys().copied().collect::<BTreeSet<_>>(), {
        decoder.groups().into_iter().map(|(site, _)| site).collect()
    });
    assert_eq!(found.residual.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(found.kept.keys().copied().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(found.kept[&1], samples[1]);
    for (site, statistics) in found
        .sites
        .iter()
        .map(|(s, x)| (s.to_string(), x))
        .chain(found.residual.iter().map(|(l, x)| (format!("residual {l}"), x)))
    {
        assert_eq!((statistics.tokens, statistics.sequences.len()), (500, 5), "{site}");
        let channel = statistics.absmax_by_channel().into_iter().fold(0.0, f32::max);
        assert_eq!(statistics.absmax(), channel, "{site}");
        let kept = statistics.token_scales.values().flatten().copied().fold(0.0, f32::max);
        assert_eq!(kept, statistics.sequences[&0].max.max(statistics.sequences[&1].max), "{site}");
        let values = statistics.histogram.as_ref().unwrap().total();
        assert_eq!(values, 500 * statistics.channels() as u64, "{site}");
        assert_eq!(statistics.second_moment.is_some(), site == moment.to_string());
        for (sample, sequence) in &statistics.sequences {
            for top in &sequence.top {
                assert_eq!(top.token, samples[*sample][top.position as usize], "{site}");
            }
        }
    }
    // tr XᵀX is the sum of squares, which cannot be below the square of the mean.
    let statistics = &found.sites[&moment];
    let gram = statistics.second_moment.as_ref().unwrap();
    for (c, mean) in statistics.mean_magnitude().into_iter().enumerate() {
        let square = gram.sums[c * gram.channels + c] / 500.0;
        assert!(square >= mean * mean * 0.999_999, "{c}: {square}, {mean}");
        assert!(square <= f64::from(statistics.absmax_by_channel()[c]).powi(2) * 1.000_001);
    }
}

#[test]
fn looking_changes_nothing_and_parts_of_a_set_merge_into_the_whole() {
    let (checkpoint, mut decoder) = model("builtin/tiny-llama");
    // One sample a batch, so that every product has the same shape whatever the split.
    let samples = samples(&checkpoint, 3, 400);
    let mut pass = |samples: &[Vec<u32>]| {
        collect(&mut decoder, samples, false, &Options::default(), &mut |_, _| true).unwrap()
    };
    let whole = pass(&samples[..]);
    assert_eq!(whole, pass(&samples[..]));
    let mut batches = Statistics::default();
    for i in [2, 0, 1] {
        // Numbered as in the set, the samples before it left out.
        let mut part = pass(&samples[i..=i]);
        for site in part.sites.values_mut().chain(part.residual.values_mut()) {
            let sequence = site.sequences.remove(&0).unwrap();
            site.sequences.insert(i, sequence);
            let scales = site.token_scales.remove(&0).unwrap();
            if i < 2 {
                site.token_scales.insert(i, scales);
            }
        }
        let kept = part.kept.remove(&0).unwrap();
        if i < 2 {
            part.kept.insert(i, kept);
        }
        batches.merge(&part);
    }
    assert_eq!(batches, whole);

    let tokens = |decoder: &Decoder| models::token_tensor(&samples[..1], &decoder.device());
    let ids = tokens(&decoder);
    let hidden = decoder.hidden(ids, &mut models::Off).into_data();
    let (observed, _) = {
        let options = Options::default();
        let mut off = models::Off;
        let mut observer = harness::calibrate::observe::Observer::new(&mut off, &options, 0);
        observer.begin(&[0], &[&samples[0]]);
        let ids = tokens(&decoder);
        (decoder.hidden(ids, &mut observer).into_data(), observer.finish().unwrap())
    };
    assert_eq!(observed, hidden);
}

#[test]
fn without_the_first_token_positions_stay_those_of_the_sample() {
    let (checkpoint, mut decoder) = model("builtin/tiny-llama");
    let samples = samples(&checkpoint, 2, 50);
    let found = collect(&mut decoder, &samples, true, &Options::default(), &mut |_, _| true).unwrap();
    assert_eq!((found.tokens, found.first_position), (98, 1));
    assert_eq!(found.kept[&0], samples[0][1..]);
    for site in found.sites.values() {
        for (sample, sequence) in &site.sequences {
            assert!(sequence.top.iter().all(|t| t.position > 0));
            assert!(sequence.top.iter().all(|t| t.token == samples[*sample][t.position as usize]));
        }
    }
}

/// Breaks the model at one site.
struct Breaks(Site);

impl Tap for Breaks {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        group.forward(if site == self.0 { x * f32::INFINITY } else { x })
    }
}

#[test]
fn what_cannot_be_collected_says_why() {
    let (checkpoint, mut decoder) = model("builtin/tiny-llama");
    let samples = samples(&checkpoint, 3, 20);
    let options = Options::default();
    let mut run = |samples: &[Vec<u32>], drop_first: bool, go_on: bool, tap: &mut dyn Tap| {
        collect_through(&mut decoder, tap, samples, drop_first, &options, &mut |_, _| go_on).unwrap_err()
    };
    let off = &mut models::Off;
    assert_eq!(run(&[], false, true, off), CollectError::NoSamples);
    let short = [samples[0].clone(), vec![1]];
    assert_eq!(run(&short, true, true, off), CollectError::Short { sample: 1, tokens: 1, least: 2 });
    assert_eq!(run(&samples, false, false, off), CollectError::Interrupted);
    let broken = run(&samples, false, true, &mut Breaks(Site::block(2, Port::OIn)));
    let CollectError::NotFinite { site, sample: 0 } = &broken else { panic!("{broken}") };
    assert!(site == "layers.2.mlp_in" || site == "layers.2.down_in", "{broken}");
}

fn stored(found: &Statistics, checkpoint: &Checkpoint) -> (StatisticsResult, StatisticsRows) {
    let text = |token| checkpoint.tokenizer().decode(&[token]).unwrap();
    let (sites, rows) = recorded(found, &text);
    let result = StatisticsResult {
        id: statistics_id("w", "t", "c", &[], &[]),
        model: serde_json::from_value(json!({
            "name": "builtin/tiny-llama", "origin": "builtin", "family": "llama", "parameters": 1,
            "weights": "w", "tokenizer": "t",
        }))
        .unwrap(),
        calibration: json!({ "corpus": "builtin/stories-calibration", "tokens": "c" }),
        prefix: None,
        steps: Vec::new(),
        samples: found.samples as u64,
        tokens: found.tokens,
        sites,
        tables: BTreeMap::new(),
    };
    (result, rows)
}

fn small() -> (Statistics, StatisticsResult, StatisticsRows) {
    let (checkpoint, mut decoder) = model("builtin/tiny-llama-spiky");
    let samples = samples(&checkpoint, 3, 24);
    let found = collect(&mut decoder, &samples, false, &Options::default(), &mut |_, _| true).unwrap();
    let (result, rows) = stored(&found, &checkpoint);
    (found, result, rows)
}

#[test]
fn what_is_published_is_read_back() {
    let (found, result, rows) = small();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.statistics().unwrap().is_empty());
    store.publish_statistics(result.clone(), &rows, Execution::default()).unwrap();
    let store = Store::open_read_only(dir.path()).unwrap();
    let all = store.statistics().unwrap();
    assert_eq!(all.len(), 1);
    let back = &all[0];
    let read = StatisticsResult { tables: BTreeMap::new(), ..back.envelope.result.clone() };
    assert_eq!(read, result);
    assert_eq!(back.channels().unwrap(), rows.channels);
    assert_eq!(back.sequences().unwrap(), rows.sequences);
    assert_eq!(back.top_tokens().unwrap(), rows.top_tokens);
    assert_eq!(back.token_scales().unwrap(), rows.token_scales);
    assert_eq!(back.histograms().unwrap(), rows.histograms);

    let sites: Vec<&str> = result.sites.iter().map(|s| s.site.as_str()).collect();
    assert_eq!(sites[..3], ["layers.0.attn_in", "layers.0.o_in", "layers.0.mlp_in"]);
    assert_eq!(sites[4..6], ["layers.0.residual", "layers.1.attn_in"]);
    assert_eq!(sites.last(), Some(&"head_in"));
    assert_eq!(sites.len(), 5 * 5 + 1);
    let down = result.sites.iter().find(|s| s.site == "layers.0.down_in").unwrap();
    assert_eq!(down.ratio, found.sites[&Site::block(0, Port::DownIn)].ratio().ok());
    assert_eq!((down.top[0].scale, down.top[0].text.is_empty()), (down.absmax, false));
    let counted: u64 = rows.histograms.iter().filter(|r| r.site == "head_in").map(|r| r.count).sum();
    assert_eq!(counted, 3 * 24 * 128);
    assert_eq!(rows.token_scales.len(), 26 * 2 * 24);
    assert_eq!(rows.top_tokens.len(), 26 * 3 * 8);
}

#[test]
fn statistics_are_written_once_and_what_was_spoilt_can_be_made_again() {
    let (_, result, rows) = small();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let publish = |rows: &StatisticsRows| {
        store.publish_statistics(result.clone(), rows, Execution { seconds: 9.0, ..Execution::default() })
    };
    publish(&rows).unwrap();
    let before = files(dir.path());
    publish(&rows).unwrap();
    assert_eq!(files(dir.path()), before);
    let mut other = rows.clone();
    other.channels[0].max += 1.0;
    assert!(matches!(publish(&other), Err(StoreError::Conflict { .. })));
    assert_eq!(files(dir.path()), before);

    let table = dir.path().join("statistics").join(&result.id).join(ChannelRow::FILE);
    fs::write(&table, ChannelRow::to_parquet(&other.channels)).unwrap();
    let error = store.statistics_of(&result.id).unwrap().unwrap().channels().unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt { path, .. } if *path == table), "{error}");
    // What the error advises.
    fs::remove_file(&table).unwrap();
    assert!(store.statistics_of(&result.id).unwrap().is_none());
    publish(&rows).unwrap();
    assert_eq!(files(dir.path()), before);

    let reader = Store::open_read_only(dir.path()).unwrap();
    let refused = reader.publish_statistics(result.clone(), &rows, Execution::default());
    assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
    assert!(matches!(store.statistics_of("../x"), Err(StoreError::BadId { .. })));
}

#[test]
fn a_crash_at_any_operation_leaves_all_of_them_or_none() {
    let (_, result, rows) = small();
    let publish = |dir: &Path, faulty: Faulty| {
        Store::open_with(dir, Arc::new(faulty))?.publish_statistics(
            result.clone(),
            &rows,
            Execution::default(),
        )
    };
    let undisturbed = tempfile::tempdir().unwrap();
    let counter = Faulty::new(Fault::None);
    publish(undisturbed.path(), counter.clone()).unwrap();
    let expected = files(&undisturbed.path().join("statistics"));
    assert_eq!(expected.len(), 6);
    for fault in [Fault::Crash, Fault::PowerCut, Fault::DiskFull, Fault::Denied] {
        for at in 0..counter.count() {
            let dir = tempfile::tempdir().unwrap();
            let faulty = Faulty::new(fault.clone()).at(at);
            let _ = publish(dir.path(), faulty.clone());
            assert!(faulty.struck(), "{fault:?} at {at}");
            let left = files(&dir.path().join("statistics"));
            assert!(left.is_empty() || left == expected, "{fault:?} at {at}: {:?}", left.keys());
            publish(dir.path(), Faulty::new(Fault::None)).unwrap();
            assert_eq!(files(&dir.path().join("statistics")), expected, "{fault:?} at {at}");
        }
    }
}

/// The hash of every file below a folder, by its path in there, but for what is unfinished; nothing where there is no
/// such folder.
fn files(dir: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() && name != Path::new("tmp") {
            found.extend(files(&path).into_iter().map(|(below, hash)| (name.join(below), hash)));
        } else if path.is_file() {
            found.insert(name, blake3::hash(&fs::read(&path).unwrap()));
        }
    }
    found
}
