//! `quantscope inspect`: what it shows of models whose spikes are known, that its numbers are those of the library, and
//! what it says to input that cannot work.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use burn::tensor::Device;
use harness::calibrate::observe::{self, Options};
use harness::calibrate::set::draw;
use harness::data::corpus::{DataOptions, load};
use harness::data::{BosPolicy, CorpusRef};
use harness::experiment::{Calibration, Sampler};
use harness::record::store::Store;
use models::Checkpoint;
use serde_json::Value;
use support::{Ended, Place, end, experiment, perplexity, signal, wait_until};

const SPIKY: &str = "builtin/tiny-llama-spiky";

fn inspect(place: &Place, arguments: &[&str]) -> Ended {
    place.run(&[&["inspect", "--device", "cpu"], arguments].concat())
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e} in:\n{}", ended.stdout))
}

/// The ratio of every site of a look that has one.
fn ratios(look: &Value) -> BTreeMap<String, f64> {
    let sites = look["statistics"]["sites"].as_array().unwrap();
    let ratio = |site: &Value| Some((site["site"].as_str()?.to_string(), site["ratio"].as_f64()?));
    sites.iter().filter_map(ratio).collect()
}

#[test]
fn the_planted_spikes_are_named() {
    let place = Place::new(1);
    let shown = inspect(&place, &[SPIKY, "--length", "128"]).exits_with(0).stdout;
    let lines: Vec<&str> = shown.lines().collect();
    let header = lines.iter().position(|line| line.starts_with("group ")).expect("a table of groups");
    let first: Vec<&str> = lines[header + 1].split_whitespace().collect();
    // Planted at the inputs of the down projections of blocks 0 and 3, at BOS and at the first full stop.
    assert!(["layers.0.down_in", "layers.3.down_in"].contains(&first[0]), "{shown}");
    assert!(first[1].parse::<f64>().unwrap() > 100.0, "{shown}");
    assert!(["BOS", "\".\""].contains(first.last().unwrap()), "{shown}");
    let bos = lines.iter().find(|line| line.contains(" BOS ") && line.contains("8 of 8"));
    assert!(
        bos.is_some_and(|line| line.ends_with(" 0")),
        "BOS spikes in every sample, at position 0: {shown}"
    );
    let verdict = format!("→ per-tensor activation scales will be dominated by {} (r = ", first[0]);
    assert!(shown.contains(&verdict) && !shown.contains("no spikes"), "{shown}");
    assert!(lines.iter().all(|line| line.chars().count() <= 100 && *line == line.trim_end()), "{shown}");
}

#[test]
fn the_numbers_are_those_of_the_library() {
    let place = Place::new(1);
    let arguments = [SPIKY, "--samples", "3", "--length", "64", "--seed", "5", "--format", "json"];
    let seen = json(&inspect(&place, &arguments).exits_with(0));

    let corpus = CorpusRef::Named("builtin/stories-calibration".into());
    let text = load(&corpus, &DataOptions::new(None, ".".into(), true)).unwrap();
    let calibration = Calibration {
        name: "c".into(),
        corpus,
        samples: 3,
        length: 64,
        sampler: Sampler::Windows,
        bos: BosPolicy::Every,
        repeat: true,
        allow_overlap: false,
        seeds: None,
        reference: None,
    };
    let checkpoint = Checkpoint::builtin(SPIKY).unwrap().unwrap();
    let set = draw(&calibration, Some(&text), checkpoint.tokenizer(), 5).unwrap();
    let mut decoder = checkpoint.load(&Device::flex()).unwrap();
    let statistics =
        observe::collect(&mut decoder, &set.samples, false, &Options::default(), &mut |_, _| true).unwrap();

    assert_eq!(seen["original"]["statistics"]["calibration"]["token-hash"], set.hash.as_str());
    let shown = ratios(&seen["original"]);
    let groups = statistics.ratios().unwrap();
    assert!(groups.len() >= 20);
    for (site, ratio) in groups {
        assert_eq!(shown[&site.to_string()], ratio, "{site}");
        let magnitudes = statistics.sites[&site].absmax_by_channel();
        let largest = magnitudes.iter().copied().fold(0.0, f32::max);
        let channels = &seen["original"]["channels"][site.to_string()];
        let index = channels["largest"].as_u64().unwrap() as usize;
        assert_eq!((magnitudes[index], channels["absmax"].as_f64()), (largest, Some(f64::from(largest))));
    }
    assert!(seen["behind_prefix"].is_null() && seen["prefix"].is_null());
}

#[test]
fn behind_a_prefix_the_planted_spikes_are_gone() {
    let place = Place::new(1);
    // The full stop and BOS, by their ids. A full stop does not know one that stands right before it, so BOS is between.
    let arguments = [SPIKY, "--samples", "4", "--length", "128", "--prefix", "14,0", "--format", "json"];
    let seen = json(&inspect(&place, &arguments).exits_with(0));
    assert_eq!(seen["behind_prefix"]["statistics"]["prefix"]["tokens"], serde_json::json!([14, 0]));
    let (before, after) = (ratios(&seen["original"]), ratios(&seen["behind_prefix"]));
    for site in ["layers.0.down_in", "layers.3.down_in"] {
        assert!(before[site] > 100.0 && after[site] < 16.0, "{site}: {} and {}", before[site], after[site]);
    }
    // The BOS of every sample is not fed behind a prefix.
    let tokens = |look: &str| seen[look]["statistics"]["tokens"].as_u64().unwrap();
    assert_eq!([tokens("original"), tokens("behind_prefix")], [4 * 128, 4 * 127]);
    assert!(seen["verdict"].to_string().contains("the prefix takes the spikes away"), "{}", seen["verdict"]);
}

#[test]
fn a_folder_and_a_file_will_do_and_without_one_the_text_is_told() {
    let place = Place::new(300);
    let own = inspect(&place, &["tiny", "--corpus", "text.txt", "--length", "16"]).exits_with(0);
    assert!(own.stdout.starts_with("tiny: llama, ") && own.stdout.contains("text.txt: 8 samples × 16"));
    assert!(!own.stderr.contains("no corpus"), "{}", own.stderr);
    inspect(&place, &["tiny", "--length", "16"])
        .exits_with(0)
        .says(&["no corpus `c4` here", "--corpus FILE"]);
}

#[test]
fn what_was_seen_is_published_and_several_models_share_a_folder() {
    let place = Place::new(300);
    for model in [SPIKY, "tiny"] {
        let arguments = ["--corpus", "text.txt", "--length", "16", "--samples", "2", "--out", "out", model];
        inspect(&place, &arguments).exits_with(0).says(&["report: out/README.md"]);
    }
    let contents = Store::open_read_only(&place.path("out")).unwrap().contents().unwrap();
    assert_eq!(contents.manifest.models, [SPIKY, "tiny"]);
    assert_eq!(contents.statistics.len(), 2);
    for statistics in &contents.statistics {
        assert!(!statistics.channels().unwrap().is_empty());
    }
    place.run(&["report", "out", "--check"]).exits_with(0);

    let w8 = ("w8", r#"{ step = "weights", bits = 8 }"#);
    place.write("experiment.toml", experiment(&[w8], &[perplexity(16, Some(2))]));
    place.sweep(&[]).exits_with(0);
    let store = "results/experiment";
    let before = place.files(store);
    inspect(&place, &["tiny", "--corpus", "text.txt", "--length", "16", "--out", store])
        .exits_with(2)
        .says(&["holds the records of the experiment `experiment`: name another folder"]);
    assert_eq!(place.files(store), before, "the experiment's folder was touched");
}

#[test]
fn what_cannot_work_exits_with_2_and_a_cure() {
    let place = Place::new(40);
    for (arguments, says) in [
        (&["builtin/tiny-lama"][..], "`builtin/tiny-lama` is no model (did you mean `builtin/tiny-llama`?)"),
        (&["nowhere"], "give the folder of a checkpoint, a hub id (organisation/name), or one of builtin/"),
        (&["some/where"], "(there is no folder of this name)"),
        (&["tiny", "--corpus", "wikki"], "`wikki` is neither a corpus (did you mean `wiki`?) nor a file"),
        (&["tiny", "--corpus", "c4"], "the corpus `c4` was not found"),
        (&["tiny", "--corpus", "text.txt", "--length", "60"], "has 40 tokens, and a sample of length 60"),
        (&["tiny", "--corpus", "text.txt", "--length", "1"], "at least 1 sample of 2 is needed"),
        (
            &[SPIKY, "--length", "100000"],
            "longer than the context of builtin/tiny-llama-spiky, 512 tokens: say --length 512",
        ),
        (&[SPIKY, "--samples", "0"], "invalid value '0' for '--samples <N>'"),
        (&[SPIKY, "--prefix", "qfap"], "`qfap` is no prefix (did you mean `qfep`?): say none, bos, "),
        (&[SPIKY, "--prefix", "0,99999"], "prefix token 99999 is not in the vocabulary"),
        (&[SPIKY, "--length", "512", "--prefix", "0,14"], "leaves no room for sequences of 511 tokens"),
    ] {
        let ended = inspect(&place, &[arguments, &["--out", "out"]].concat()).exits_with(2).says(&[says]);
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert!(!place.path("out").exists(), "{arguments:?}: a folder was made");
    }
}

#[test]
#[cfg(unix)]
fn a_signal_ends_it_and_nothing_is_kept() {
    let place = Place::new(1);
    let arguments = ["inspect", SPIKY, "--device", "cpu", "--samples", "20000", "--out", "out"];
    let mut child = place.start(&arguments);
    wait_until(&mut child, "the folder", || place.path("out/store.json").exists());
    signal(&child, "-TERM");
    let ended = end(child).exits_with(130).says(&["interrupted: nothing was kept"]);
    assert_eq!(ended.stdout, "");
    assert!(!place.path("out/statistics").exists());
}
