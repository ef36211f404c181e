//! Calibration sets: what every draw must hold whatever is asked, what is refused with which words, and the overlap with
//! what is measured on real texts, where they are at hand.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use harness::calibrate::overlap::{LARGEST_SHARE, check, overlap};
use harness::calibrate::set::{CalibrationSet, DrawError, draw};
use harness::data::corpus::{CorpusError, DataOptions, Extent, Text, load};
use harness::data::window::windows;
use harness::data::{BosPolicy, CorpusRef};
use harness::experiment::{Calibration, Sampler};
use models::Checkpoint;
use models::tokenizer::Tokenizer;
use proptest::prelude::*;

const POLICIES: [BosPolicy; 3] = [BosPolicy::Every, BosPolicy::Tokenizer, BosPolicy::None];
const SAMPLERS: [Sampler; 2] = [Sampler::Windows, Sampler::Documents];

/// Of the built-in model: byte level, BOS without EOS.
static BUILTIN: LazyLock<Checkpoint> =
    LazyLock::new(|| Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap());

fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared")
}

/// The path if it is there; else a line that the test runner does not hold back.
fn there(path: &str, test: &str) -> Option<PathBuf> {
    let path = shared().join(path);
    if path.exists() {
        return Some(path);
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {} is not there", path.display());
    None
}

fn set_of(corpus: &str, samples: usize, length: usize) -> Calibration {
    Calibration {
        name: "c".into(),
        corpus: CorpusRef::Named(corpus.into()),
        samples,
        length,
        sampler: Sampler::Windows,
        bos: BosPolicy::None,
        repeat: true,
        allow_overlap: false,
        seeds: None,
        reference: None,
    }
}

/// A text of these documents with a blank line between them.
fn text(documents: &[String]) -> Text {
    let (mut text, mut ranges) = (String::new(), Vec::new());
    for document in documents {
        let start = text.len();
        text.push_str(document);
        ranges.push(start..text.len());
        text.push_str("\n\n");
    }
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    Text { name: "t".into(), text, documents: ranges, origin: "file:t".into(), hash, extent: Extent::Full }
}

/// A document of so many words, in letters that no other document has.
fn document(number: usize, words: usize) -> String {
    let letter = char::from(b'A' + u8::try_from(number).unwrap());
    (0..words).map(|i| format!("{letter}{}", "xyz".chars().nth(i % 3).unwrap())).collect::<Vec<_>>().join(" ")
}

fn tokenizer(bos: Option<&str>, opens: bool) -> Tokenizer {
    let words = ["<s>", "</s>", "a", "b", "c", "d"];
    let vocabulary: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
    let template = serde_json::json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                   { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] },
                            "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
    });
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "decoder": null,
        "post_processor": if opens { template } else { serde_json::Value::Null },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "</s>" },
    });
    let config = bos.map(|bos| serde_json::json!({ "bos_token": bos }).to_string());
    Tokenizer::new(file.to_string().as_bytes(), config.as_deref().map(str::as_bytes), &serde_json::json!({}))
        .unwrap()
}

fn tokens_of(set: &CalibrationSet, key: &str) -> u64 {
    set.detail[key].as_u64().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_set_has_samples_times_length_tokens_and_is_its_seed_s(
        samples in 1usize..12, length in 2usize..40, seed in any::<u64>(),
        policy in 0usize..3, sampler in 0usize..2, corpus in 0usize..3,
    ) {
        let tokenizer = BUILTIN.tokenizer();
        // 4 documents of at least 40 tokens: with more samples text is used again.
        let documents: Vec<String> = (0..4).map(|i| document(i, 40 + 10 * i)).collect();
        let text = text(&documents);
        let (name, text) = [("t", Some(&text)), ("nonsense", None), ("random-tokens", None)][corpus];
        let mut calibration = set_of(name, samples, length);
        (calibration.bos, calibration.sampler) = (POLICIES[policy], SAMPLERS[sampler]);
        let set = draw(&calibration, text, tokenizer, seed).unwrap();
        prop_assert_eq!(set.samples.len(), samples);
        prop_assert!(set.samples.iter().all(|sample| sample.len() == length));

        let bos = tokenizer.bos().unwrap();
        let begins = set.samples.iter().filter(|sample| sample[0] == bos).count();
        match (calibration.bos, calibration.sampler) {
            (BosPolicy::Every, _) => prop_assert_eq!(begins, samples),
            (BosPolicy::None, _) => prop_assert_eq!(begins, 0),
            (BosPolicy::Tokenizer, Sampler::Windows) if text.is_none() => prop_assert_eq!(begins, 1),
            (BosPolicy::Tokenizer, Sampler::Documents) if text.is_none() => prop_assert_eq!(begins, samples),
            (BosPolicy::Tokenizer, _) => {}
        }
        prop_assert!(set.samples.iter().all(|sample| !sample[1..].contains(&bos)), "BOS stands only in front");

        let again = draw(&calibration, text, tokenizer, seed).unwrap();
        prop_assert_eq!(&again, &set);
        let tokens = samples * (length - usize::from(calibration.bos == BosPolicy::Every));
        prop_assert_eq!(tokens_of(&set, "tokens"), tokens as u64);
        prop_assert!(tokens_of(&set, "unique-tokens") <= tokens as u64);
        let distinct: HashSet<u32> = set.samples.iter().flatten().copied().collect();
        let bos_only = usize::from(calibration.bos == BosPolicy::Every);
        prop_assert_eq!(tokens_of(&set, "distinct-ids"), (distinct.len() - bos_only) as u64);
    }

    #[test]
    fn other_seeds_draw_other_ids(seed in any::<u64>(), other in any::<u64>(), sampler in 0usize..2) {
        prop_assume!(seed != other);
        let story = models::builtin::text("builtin/stories-calibration").unwrap();
        let story = text(&story[..40_000].split("\n\n").map(str::to_owned).collect::<Vec<_>>());
        for (name, text) in [("t", Some(&story)), ("nonsense", None), ("random-tokens", None)] {
            let mut calibration = set_of(name, 8, 24);
            calibration.sampler = SAMPLERS[sampler];
            let set = |seed| draw(&calibration, text, BUILTIN.tokenizer(), seed).unwrap();
            let (one, two) = (set(seed), set(other));
            prop_assert_ne!(&one.samples, &two.samples);
            prop_assert_ne!(one.hash, two.hash);
        }
    }

    #[test]
    fn without_repetition_no_token_of_the_text_is_used_twice(
        samples in 1usize..10, length in 2usize..30, seed in any::<u64>(), sampler in 0usize..2, every in any::<bool>(),
    ) {
        // A token is a number that stands once in the text.
        let tokenizer = counting();
        let documents: Vec<String> =
            (0..10).map(|d| (20 * d..20 * d + 20).map(|i| i.to_string()).collect::<Vec<_>>().join(" ")).collect();
        let mut calibration = set_of("t", samples, length);
        calibration.sampler = SAMPLERS[sampler];
        calibration.repeat = false;
        if every {
            calibration.bos = BosPolicy::Every;
        }
        let needed = length - usize::from(every);
        let held = match calibration.sampler {
            Sampler::Windows => 200 / needed,
            Sampler::Documents => if needed <= 20 { 10 } else { 0 },
        };
        match draw(&calibration, Some(&text(&documents)), &tokenizer, seed) {
            Ok(set) => {
                prop_assert!(samples <= held);
                let mut seen = HashSet::new();
                for sample in &set.samples {
                    let ids = &sample[usize::from(every)..];
                    prop_assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "a window is one piece of text");
                    prop_assert!(ids.iter().all(|id| seen.insert(*id)));
                    if calibration.sampler == Sampler::Documents {
                        prop_assert_eq!(ids[0] / 20, ids[ids.len() - 1] / 20, "one document");
                    }
                }
                prop_assert_eq!(tokens_of(&set, "unique-tokens"), (samples * needed) as u64);
                prop_assert_eq!(set.detail["repetition"].as_f64(), Some(1.0));
            }
            Err(DrawError::Repeats { held: said, .. }) => {
                prop_assert!(samples > held);
                prop_assert_eq!(said, held);
            }
            Err(DrawError::NoDocument { .. }) => prop_assert_eq!(held, 0),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn repetition_is_counted(samples in 1usize..40, length in 2usize..21, seed in any::<u64>(), sampler in 0usize..2) {
        let documents: Vec<String> =
            (0..10).map(|d| (20 * d..20 * d + 20).map(|i| i.to_string()).collect::<Vec<_>>().join(" ")).collect();
        let mut calibration = set_of("t", samples, length);
        calibration.sampler = SAMPLERS[sampler];
        let set = draw(&calibration, Some(&text(&documents)), &counting(), seed).unwrap();
        let seen: HashSet<u32> = set.samples.iter().flatten().copied().collect();
        prop_assert_eq!(tokens_of(&set, "unique-tokens"), seen.len() as u64);
        let ratio = (samples * length) as f64 / seen.len() as f64;
        prop_assert_eq!(set.detail["repetition"].as_f64(), Some(ratio));
        if calibration.sampler == Sampler::Documents {
            // In each round of ten samples, each document once.
            for round in set.samples.chunks(10) {
                let of: HashSet<u32> = round.iter().map(|sample| sample[0] / 20).collect();
                prop_assert_eq!(of.len(), round.len());
                prop_assert!(round.iter().all(|sample| sample[0] / 20 == sample[length - 1] / 20));
            }
        }
    }
}

/// A tokenizer whose words are the numbers 0 to 199, each its own id; BOS is 200.
fn counting() -> Tokenizer {
    let words = (0..200).map(|id| (id.to_string(), id.into()));
    let vocabulary: serde_json::Map<_, _> = words.chain([("<s>".to_string(), 200.into())]).collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "decoder": null, "post_processor": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<s>" },
    });
    let config = br#"{ "bos_token": "<s>" }"#;
    Tokenizer::new(file.to_string().as_bytes(), Some(config), &serde_json::json!({})).unwrap()
}

#[test]
fn a_draw_stays_what_it_was() {
    // Computed by fixtures/calibration_draw.py, which knows only what the docs say. A change here is a change of every
    // recorded set.
    let documents: Vec<String> =
        (0..10).map(|d| (20 * d..20 * d + 20).map(|i| i.to_string()).collect::<Vec<_>>().join(" ")).collect();
    let text = text(&documents);
    let starts = |sampler, repeat, seed| {
        let calibration = Calibration { sampler, repeat, ..set_of("t", 6, 8) };
        let set = draw(&calibration, Some(&text), &counting(), seed).unwrap();
        let starts: Vec<u32> = set.samples.iter().map(|sample| sample[0]).collect();
        (starts, set.hash[..16].to_string())
    };
    let expected = |starts: [u32; 6], hash: &str| (starts.to_vec(), hash.to_string());
    let windows = |seed| starts(Sampler::Windows, true, seed);
    assert_eq!(windows(0), expected([96, 67, 27, 44, 7, 56], "53e24d0e66bc646e"));
    assert_eq!(windows(1), expected([162, 150, 173, 90, 55, 32], "754030bec0301352"));
    assert_eq!(starts(Sampler::Windows, false, 0), expected([6, 29, 68, 85, 51, 116], "aa372e283334cb85"));
    assert_eq!(
        starts(Sampler::Documents, true, 0),
        expected([109, 47, 188, 161, 121, 8], "fdf374334331985c")
    );
}

#[test]
fn starts_are_uniform_over_all_windows() {
    // 200 tokens, windows of 191: 10 starts, 4000 draws; χ² with 9 degrees of freedom exceeds 33.7 once in 10⁴ seeds.
    let one = (0..200).map(|i| i.to_string()).collect::<Vec<_>>().join(" ");
    let set = draw(&set_of("t", 4000, 191), Some(&text(&[one])), &counting(), 7).unwrap();
    let mut counts = [0u32; 10];
    for sample in &set.samples {
        counts[sample[0] as usize] += 1;
    }
    let chi: f64 = counts.iter().map(|n| (f64::from(*n) - 400.0).powi(2) / 400.0).sum();
    assert!(chi < 33.7, "{counts:?}");
}

#[test]
fn what_the_tokenizer_adds_stands_where_a_text_begins_and_nowhere_else() {
    // Two documents of 3 words; the template puts <s> (0) in front and </s> (1) behind.
    let text = text(&["a b c".into(), "d c b".into()]);
    let tokenizer = tokenizer(Some("<s>"), true);
    let drawn = |sampler, bos| -> HashSet<Vec<u32>> {
        let calibration = Calibration { sampler, bos, ..set_of("t", 200, 3) };
        draw(&calibration, Some(&text), &tokenizer, 3).unwrap().samples.into_iter().collect()
    };
    let sets =
        |samples: &[[u32; 3]]| -> HashSet<Vec<u32>> { samples.iter().map(|ids| ids.to_vec()).collect() };
    let stream = [[2, 3, 4], [3, 4, 5], [4, 5, 4], [5, 4, 3]];
    assert_eq!(drawn(Sampler::Windows, BosPolicy::None), sets(&stream));
    assert_eq!(drawn(Sampler::Windows, BosPolicy::Tokenizer), sets(&[&[[0, 2, 3]], &stream[..]].concat()));
    let each = [[2, 3, 4], [5, 4, 3]];
    assert_eq!(drawn(Sampler::Documents, BosPolicy::None), sets(&each));
    let opened = [[0, 2, 3], [2, 3, 4], [0, 5, 4], [5, 4, 3]];
    assert_eq!(drawn(Sampler::Documents, BosPolicy::Tokenizer), sets(&opened));
    let every = [[0, 2, 3], [0, 3, 4], [0, 5, 4], [0, 4, 3]];
    assert_eq!(drawn(Sampler::Documents, BosPolicy::Every), sets(&every));
}

fn is_nonsense(text: &str) -> bool {
    // Python: string.punctuation + string.whitespace.
    text.chars().all(|c| "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ \t\n\r\u{b}\u{c}".contains(c))
}

fn generated_sets_are_what_they_say(tokenizer: &Tokenizer, characters: std::ops::RangeInclusive<u64>) {
    for (sampler, bos) in SAMPLERS.into_iter().flat_map(|s| POLICIES.map(|p| (s, p))) {
        let calibration = Calibration { sampler, bos, ..set_of("nonsense", 8, 128) };
        let set = draw(&calibration, None, tokenizer, 5).unwrap();
        assert!(characters.contains(&tokens_of(&set, "characters")), "{:?}", set.detail);
        let mut seen = HashSet::new();
        for sample in &set.samples {
            let ids: Vec<u32> = sample.iter().copied().filter(|id| Some(*id) != tokenizer.bos()).collect();
            assert!(ids.len() + 1 >= sample.len());
            let decoded = tokenizer.decode(&ids).unwrap();
            assert!(is_nonsense(&decoded), "{decoded:?}");
            seen.extend(decoded.chars());
        }
        // A thousand characters and more of at most 38: one that never comes is a fault.
        assert!(characters.contains(&(seen.len() as u64)), "{seen:?}");

        let calibration = Calibration { corpus: CorpusRef::Named("random-tokens".into()), ..calibration };
        let set = draw(&calibration, None, tokenizer, 5).unwrap();
        let ordinary = tokenizer.ordinary();
        let bos = tokenizer.bos();
        for sample in &set.samples {
            assert!(sample[1..].iter().all(|id| ordinary.binary_search(id).is_ok()));
            assert!(ordinary.contains(&sample[0]) || Some(sample[0]) == bos);
        }
    }
}

#[test]
fn generated_sets_are_what_they_say_with_byte_level_tokens() {
    let tokenizer = BUILTIN.tokenizer();
    // 1024 entries, of which `<s>` is the only special one.
    assert_eq!(tokenizer.ordinary(), (1..1024).collect::<Vec<u32>>());
    generated_sets_are_what_they_say(tokenizer, 38..=38);
}

#[test]
fn generated_sets_are_what_they_say_with_byte_fallback() {
    let Some(folder) = there("models/stories260K", "generated sets with byte fallback") else { return };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.tokenizer().ordinary(), (3..512).collect::<Vec<u32>>());
    generated_sets_are_what_they_say(checkpoint.tokenizer(), 38..=38);
}

#[test]
fn characters_without_a_token_are_left_out_of_nonsense() {
    let Some(folder) = there("models/babyllama-105", "nonsense of a small vocabulary") else { return };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    generated_sets_are_what_they_say(checkpoint.tokenizer(), 5..=37);
}

#[test]
fn what_cannot_be_drawn_names_the_set_the_text_and_the_cure() {
    let text = text(&["a b c".into(), "a b c d".into()]);
    let plain = tokenizer(None, false);
    let with_bos = tokenizer(Some("<s>"), false);
    let complaint = |change: &dyn Fn(&mut Calibration), text: Option<&Text>, tokenizer: &Tokenizer| {
        let mut calibration = set_of("t", 4, 64);
        change(&mut calibration);
        draw(&calibration, text, tokenizer, 0).unwrap_err().to_string()
    };
    assert_eq!(
        complaint(&|c| c.bos = BosPolicy::Every, Some(&text), &with_bos),
        "calibration `c`: the text t [file:t] has 7 tokens, and a sample of length 64 (bos = \"every\") needs 63: \
         use a longer text, or a length of at most 8"
    );
    assert!(
        complaint(&|c| c.bos = BosPolicy::Every, Some(&text), &plain).contains("neither a BOS nor an EOS")
    );
    assert_eq!(
        complaint(&|c| c.sampler = Sampler::Documents, Some(&text), &plain),
        "calibration `c`: the longest of the 2 documents of t [file:t] has 4 tokens, and a sample of length 64 \
         (bos = \"none\") needs 64: use sampler = \"windows\" or a text with longer documents, or a length of at most 4"
    );
    let short = |c: &mut Calibration| (c.length, c.repeat) = (3, false);
    assert_eq!(
        complaint(&short, Some(&text), &plain),
        "calibration `c` says repeat = false and asks for 4 samples of 3 tokens of text; t [file:t] holds 2 that do \
         not overlap: use at most 2 samples, a longer text, or leave `repeat` out"
    );
    let documents = |c: &mut Calibration| (c.length, c.repeat, c.sampler) = (4, false, Sampler::Documents);
    assert!(
        complaint(&documents, Some(&text), &plain).contains("t [file:t] holds 1 documents that are so long")
    );
    assert!(complaint(&|_| (), None, &plain).contains("its text was not loaded"));
    assert!(complaint(&|c| c.samples = 0, Some(&text), &plain).contains("asks for 0 samples"));
    let nonsense = |c: &mut Calibration| c.corpus = CorpusRef::Named("nonsense".into());
    let message = complaint(&nonsense, None, &plain);
    assert!(
        message.starts_with("calibration `c`, corpus `nonsense`: ")
            && message.ends_with("use `random-tokens`"),
        "{message}"
    );
}

#[test]
fn the_text_of_a_calibration_set_is_loaded_as_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let options = DataOptions::new(None, dir.path().to_owned(), true);
    let file = |name: &str, data: &[u8], field: Option<&str>| {
        std::fs::write(dir.path().join(name), data).unwrap();
        load(&CorpusRef::File { path: name.into(), field: field.map(str::to_owned) }, &options)
    };
    let lines = file("d.jsonl", b"{\"text\": \"a b c d\"}\n{\"text\": \"d c b a\"}\n", Some("text")).unwrap();
    let calibration = Calibration { sampler: Sampler::Documents, ..set_of("t", 2, 4) };
    let mut samples = draw(&calibration, Some(&lines), &tokenizer(None, false), 0).unwrap().samples;
    samples.sort();
    assert_eq!(samples, [vec![2, 3, 4, 5], vec![5, 4, 3, 2]]);
    assert!(matches!(file("latin.txt", b"caf\xe9", None), Err(CorpusError::NotUtf8 { offset: 3, .. })));
    assert!(matches!(file("empty.txt", b"\n", None), Err(CorpusError::Empty { .. })));
    assert!(matches!(file("e.jsonl", b"", Some("text")), Err(CorpusError::Empty { .. })));
    assert!(matches!(file("f.jsonl", b"{}", Some("text")), Err(CorpusError::Line { line: 1, .. })));
    for name in ["nonsense", "random-tokens"] {
        let message = load(&CorpusRef::Named(name.into()), &options).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("nothing is measured on it"), "{message}");
    }
}

#[test]
fn the_evaluation_text_itself_is_refused_and_can_be_allowed() {
    let tokenizer = BUILTIN.tokenizer();
    let of = |name: &str| {
        load(&CorpusRef::Named(name.into()), &DataOptions::new(None, PathBuf::new(), true)).unwrap()
    };
    let held_out = of("builtin/stories-held-out");
    let ids = tokenizer.encode(&held_out.text).unwrap();
    let measured = windows(&ids, tokenizer.bos(), BosPolicy::Every, 256, None).unwrap();
    for (bos, length) in POLICIES.into_iter().flat_map(|bos| [24, 64, 200].map(|length| (bos, length))) {
        let mut calibration = Calibration { bos, ..set_of("builtin/stories-held-out", 16, length) };
        let set = draw(&calibration, Some(&held_out), tokenizer, 1).unwrap();
        let error = check(&set, &calibration, "perplexity/x", &measured).unwrap_err();
        assert!(error.overlap.share > 0.7, "{bos:?} {length}: {error}");
        let message = error.to_string();
        for part in ["calibration `c`", "builtin/stories-held-out", "`perplexity/x`", "allow-overlap = true"]
        {
            assert!(message.contains(part), "`{part}` is not in {message}");
        }
        calibration.allow_overlap = true;
        assert_eq!(check(&set, &calibration, "perplexity/x", &measured).unwrap(), error.overlap);
        let allowed = draw(&calibration, Some(&held_out), tokenizer, 1).unwrap();
        assert_eq!((allowed.hash, &allowed.detail["allow-overlap"]), (set.hash, &true.into()));
    }
    // Stories of one grammar, none of them in both texts.
    let calibration = set_of("builtin/stories-calibration", 128, 128);
    let other = draw(&calibration, Some(&of("builtin/stories-calibration")), tokenizer, 1).unwrap();
    let found = overlap(&other, &measured);
    assert!(found.share < LARGEST_SHARE, "{found:?}");
    let nonsense = draw(&set_of("nonsense", 64, 128), None, tokenizer, 1).unwrap();
    assert_eq!(overlap(&nonsense, &measured).tokens, 0);
}

#[test]
fn wiki_is_not_wikitext() {
    let test = "overlap of real texts";
    let (Some(_), Some(_)) =
        (there("data/calibration/wiki.utf8", test), there("data/wikitext2/wiki.test.raw", test))
    else {
        return;
    };
    let options = DataOptions::new(Some(shared().join("data")), PathBuf::new(), true);
    let of = |name: &str| load(&CorpusRef::Named(name.into()), &options).unwrap();
    let tokenizer = BUILTIN.tokenizer();
    let wikitext = of("wikitext2/test");
    let ids = tokenizer.encode(&wikitext.text).unwrap();
    let measured = windows(&ids, tokenizer.bos(), BosPolicy::Every, 512, None).unwrap();
    for name in ["wiki", "c4", "technical"] {
        let calibration = Calibration { bos: BosPolicy::Every, ..set_of(name, 128, 512) };
        let set = draw(&calibration, Some(&of(name)), tokenizer, 0).unwrap();
        let found =
            check(&set, &calibration, "perplexity/wikitext", &measured).unwrap_or_else(|e| panic!("{e}"));
        assert!(found.of > 50_000, "{found:?}");
    }
    let same = Calibration { bos: BosPolicy::Every, ..set_of("wikitext2/test", 128, 512) };
    let set = draw(&same, Some(&wikitext), tokenizer, 0).unwrap();
    assert!(check(&set, &same, "perplexity/wikitext", &measured).unwrap_err().overlap.share > 0.9);
}

#[test]
fn a_set_is_the_same_under_another_name() {
    let mut calibration = set_of("random-tokens", 4, 16);
    let set = |calibration: &Calibration| draw(calibration, None, BUILTIN.tokenizer(), 2).unwrap();
    let one = set(&calibration);
    calibration.name = "another".into();
    assert_eq!(set(&calibration), one);
}
