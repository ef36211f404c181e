//! What the binary says to input that cannot work: an exit code, the place, and the cure. Where only a cell is
//! concerned, it is recorded as failed and the others are measured.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::process::Command;

use serde_json::json;
use support::{Ended, Place, experiment, experiment_on, perplexity};

const W8: (&str, &str) = ("w8", r#"{ step = "weights", bits = 8 }"#);
const STORE: &str = "results/experiment";

fn place() -> Place {
    let place = Place::new(100);
    place.write("experiment.toml", experiment(&[W8], &[perplexity(16, Some(4))]));
    place
}

/// Past the test runner's capture, so that it is seen.
fn skip_loudly(what: &str) {
    // Not `eprintln!`, which the test runner holds back.
    let _ = std::io::stderr().write_all(format!("SKIPPED {what}\n").as_bytes());
}

#[test]
fn faults_of_the_experiment_are_pointed_at() {
    for (from, to, says) in [
        ("bits = 8", "bitz = 8", ["unknown key `bitz` (did you mean `bits`?)", "keys here: bits, "]),
        (
            "step = \"weights\"",
            "step = \"wieghts\"",
            ["unknown step `wieghts` (did you mean `weights`?)", "recipe.w8"],
        ),
        ("[\"tiny\"]", "[\"tinny\"]", ["unknown model `tinny` (did you mean `tiny`?)", "in sweep"]),
        (
            "[\"w8\"]",
            "[\"w9\"]",
            ["unknown recipe `w9` (did you mean `w8`?)", "recipes defined in this file: w8"],
        ),
        (
            "{ path = \"text.txt\" }",
            "\"wikitext2/tset\"",
            ["unknown corpus `wikitext2/tset` (did you mean `wikitext2/test`?)", "or { path = "],
        ),
    ] {
        let place = place();
        let good = fs::read_to_string(place.path("experiment.toml")).unwrap();
        assert!(good.contains(from), "{from}");
        let bad = good.replace(from, to);
        place.write("experiment.toml", &bad);
        let before = &bad[..bad.find(to).unwrap()];
        let line = format!("error: experiment.toml:{}:", before.matches('\n').count() + 1);
        let ended = place.sweep(&[]).exits_with(2).says(&[&line]).says(&says);
        assert_eq!(ended.stdout, "");
        assert!(!place.path("results").exists(), "{to}: a folder was made");
    }
}

#[test]
fn a_step_that_a_model_cannot_have_is_refused_before_any_work() {
    let rotate = r#"{ step = "rotate", method = "hadamard" }, { step = "weights", bits = 4 }"#;
    let odd = r#"{ step = "prefix", method = "tokens", tokens = [3] }, { step = "weights", bits = 4, granularity = "group(7)" }"#;
    for (family, steps, says) in [
        (
            "gemma2",
            rotate,
            ["recipe `r`, step 0.rotate, on tiny", "the residual stream", "rotate the other sites"],
        ),
        (
            "llama2",
            odd,
            ["recipe `r`, step 1.weights, on tiny", "groups of 7 do not divide", "a divisor of 32"],
        ),
    ] {
        let place = place();
        place.checkpoint_of(family, "tiny");
        place.write("experiment.toml", experiment(&[("r", steps), W8], &[perplexity(16, Some(4))]));
        let planned = place.run(&["plan", "experiment.toml"]).exits_with(2).says(&says);
        assert!(planned.stdout.contains("w8"), "the plan is shown all the same: {}", planned.stdout);
        place.sweep(&[]).exits_with(2).says(&says);
        assert!(!place.path(STORE).join("cells").exists(), "{family}: something was measured");
        // Without the recipe it works.
        place.sweep(&["-r", "w8"]).exits_with(0);
    }
}

/// Sweeps a damaged checkpoint beside a sound one; the damaged one fails at `load` and says this.
#[track_caller]
fn damaged(damage: impl Fn(&Place), says: &[&str]) {
    let place = Place::new(100);
    place.checkpoint("broken");
    damage(&place);
    place.write("experiment.toml", experiment_on(&["broken", "tiny"], &[W8], &[perplexity(16, Some(4))]));
    let ended = place.sweep(&[]).exits_with(1).says(&["FAILED broken · w8 at load: ", "cure: "]).says(says);
    assert_eq!(ended.counts(), [2, 0, 2, 0], "{}", ended.stderr);
    let failures = place.failures(STORE);
    assert_eq!(failures.len(), 2);
    for failure in failures {
        assert_eq!((&failure["stage"], &failure["metric"]), (&json!("load"), &json!(null)), "{failure}");
        assert!(!failure["cure"].as_str().unwrap().is_empty());
        for text in says {
            assert!(failure.to_string().contains(&text.replace('"', "\\\"")), "`{text}` is not in {failure}");
        }
    }
    assert_eq!(place.sweep(&[]).exits_with(1).counts(), [0, 2, 2, 0]);
}

#[test]
fn a_truncated_checkpoint() {
    let cut = |place: &Place| {
        let bytes = fs::read(place.path("broken/model.safetensors")).unwrap();
        place.write("broken/model.safetensors", &bytes[..bytes.len() / 2]);
    };
    damaged(cut, &["broken/model.safetensors: truncated or corrupt", "download or copy it again"]);
}

#[test]
fn a_corrupt_checkpoint() {
    let overwrite = |place: &Place| place.write("broken/model.safetensors", "<html>404</html>");
    damaged(overwrite, &["broken/model.safetensors: truncated or corrupt", "download or copy it again"]);
}

#[test]
fn an_empty_checkpoint() {
    damaged(
        |place| place.write("broken/model.safetensors", ""),
        &["broken/model.safetensors: truncated or corrupt"],
    );
}

#[test]
fn shapes_that_contradict_the_config() {
    let damage = |place: &Place| place.configure("broken", "intermediate_size", json!(64));
    damaged(damage, &["gate_proj.weight", "has shape [56, 32], but config.json asks for [64, 32]"]);
    let damage = |place: &Place| place.configure("broken", "num_hidden_layers", json!(3));
    damaged(damage, &["model.layers.2.", "is missing, though config.json asks for it"]);
}

#[test]
fn a_config_beyond_all_memory() {
    let damage = |place: &Place| place.configure("broken", "num_hidden_layers", json!(1u64 << 62));
    damaged(damage, &["`num_hidden_layers` = 4611686018427387904 is not supported: supported: 1 to 4096"]);
    let damage = |place: &Place| place.configure("broken", "hidden_size", json!(1u64 << 62));
    damaged(damage, &["`hidden_size` = 4611686018427387904 is not supported: supported: 1 to 16777216"]);
    // The most that a file may ask for: refused by what the checkpoint holds.
    let damage = |place: &Place| place.configure("broken", "num_hidden_layers", json!(4096));
    damaged(damage, &["model.layers.2.", "is missing, though config.json asks for it"]);
}

#[test]
fn a_vocabulary_that_contradicts_the_config() {
    let damage = |place: &Place| place.configure("broken", "vocab_size", json!(60));
    damaged(damage, &["broken/tokenizer.json: has token ids up to 63", "`vocab_size` = 60"]);
    let damage = |place: &Place| place.configure("broken", "vocab_size", json!(80));
    damaged(damage, &["embed_tokens.weight", "has shape [64, 32], but config.json asks for [80, 32]"]);
}

#[test]
fn an_architecture_that_nobody_reads() {
    let damage = |place: &Place| place.configure("broken", "architectures", json!(["OddForCausalLM"]));
    damaged(
        damage,
        &["broken/config.json: unsupported architecture `OddForCausalLM`; supported: ", "take another one"],
    );
}

#[test]
fn a_checkpoint_without_a_tokenizer() {
    let damage = |place: &Place| fs::remove_file(place.path("broken/tokenizer.json")).unwrap();
    damaged(damage, &["broken: tokenizer.json is missing", "a checkpoint folder holds"]);
}

#[test]
fn weights_that_are_no_numbers() {
    let damage = |place: &Place| {
        let mut bytes = fs::read(place.path("broken/model.safetensors")).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        place.write("broken/model.safetensors", bytes);
    };
    damaged(damage, &["broken: tensor `", "not finite", "NaN", "the file is damaged"]);
}

#[test]
fn a_text_that_fills_no_window() {
    let place = Place::new(100);
    place.write("experiment.toml", experiment(&[W8], &[perplexity(16, None), perplexity(128, None)]));
    let ended = place.sweep(&[]).exits_with(1).says(&[
        "at evaluate: the text has 100 tokens and one window of length 128",
        "use a longer text, or a length of at most 101",
        "cure: ",
    ]);
    assert_eq!(ended.counts(), [2, 0, 2, 0], "the shorter windows are measured");
    for failure in place.failures(STORE) {
        assert_eq!(failure["stage"], "evaluate");
        assert!(failure["metric"].as_str().unwrap().contains("/128/"), "{failure}");
    }
    place.write("text.txt", support::text(400));
    let longer = place.sweep(&["--retry-failed", "--results", "another"]).exits_with(0);
    assert_eq!(longer.counts(), [4, 0, 0, 0]);
}

#[test]
fn texts_that_are_not_there() {
    let place = place();
    fs::remove_file(place.path("text.txt")).unwrap();
    place.sweep(&[]).exits_with(2).says(&[
        "evaluation perplexity/",
        "there is no file `text.txt`",
        "a relative path starts at",
    ]);
    assert!(!place.path("results").exists(), "a folder was made");
    let named = fs::read_to_string(place.path("experiment.toml"))
        .unwrap()
        .replace("{ path = \"text.txt\" }", "\"c4\"");
    place.write("experiment.toml", named);
    for (arguments, says) in [
        (&["--data", "nowhere"][..], "no file nowhere/calibration/c4.utf8"),
        (&[], "no data directory was named"),
    ] {
        let cure = "Name the data directory with --data DIR or QUANTSCOPE_DATA";
        place.sweep(arguments).exits_with(2).says(&["the corpus `c4` was not found", says, cure]);
    }
}

#[test]
fn devices_that_are_not_there() {
    let place = place();
    let run = |device: &str| place.run(&["sweep", "experiment.toml", "--device", device]);
    run("gpu").exits_with(2).says(&["`gpu` is no device; valid are auto, cpu, cuda"]);
    if cfg!(feature = "cuda") {
        run("cuda:99").exits_with(2).says(&["no device for `cuda:99`", "Use --device cpu"]);
    } else {
        run("cuda")
            .exits_with(2)
            .says(&["`cuda` is not in this build; rebuild with `cargo build --release --features cuda`"]);
    }
    let vulkan = run("vulkan");
    if vulkan.code == Some(0) {
        skip_loudly("the refusal of --device vulkan: this machine has a GPU that answers to it");
    } else if cfg!(feature = "wgpu") {
        vulkan.exits_with(2).says(&["no device for `vulkan`: ", "Use --device cpu", "quantscope doctor"]);
    } else {
        vulkan.exits_with(2).says(&["`vulkan` is not in this build", "--features wgpu"]);
    }
}

#[test]
fn a_file_where_the_results_should_go() {
    let place = place();
    place.write("results", "notes");
    place
        .sweep(&[])
        .exits_with(2)
        .says(&["`results` is a file where the store needs a folder", "Move the file away"]);
    assert_eq!(fs::read(place.path("results")).unwrap(), b"notes");
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let place = place();
    fs::create_dir_all(place.path(STORE)).unwrap();
    place.write("results/experiment/store.json", "{ \"schema\": 99, \"more\": true }");
    let before = place.files(STORE);
    place.sweep(&[]).exits_with(2).says(&[
        "`results/experiment/store.json` was written by a newer version of this program (schema 99",
        "Update this program, or choose another results folder",
    ]);
    assert_eq!(place.files(STORE), before);
}

#[test]
fn a_damaged_record_is_not_believed() {
    let place = place();
    place.sweep(&[]).exits_with(0);
    let whole = place.results(STORE);
    let name = whole.keys().find(|name| name.contains("/measurements/")).expect("it was measured");
    let path = format!("{STORE}/cells/{name}");
    let bytes = fs::read(place.path(&path)).unwrap();
    let edited = String::from_utf8(bytes.clone()).unwrap().replacen("\"n\": ", "\"n\": 1", 1);
    for damaged in [&bytes[..bytes.len() / 2], b"", edited.as_bytes()] {
        assert_ne!(damaged, bytes);
        place.write(&path, damaged);
        let ended = place.sweep(&[]).exits_with(2);
        ended.says(&[&format!("`{path}` cannot be trusted: "), "Delete it and run again: only what it held"]);
        assert_eq!(fs::read(place.path(&path)).unwrap(), damaged, "it is the user's to delete");
    }
    fs::remove_file(place.path(&path)).unwrap();
    assert_eq!(place.sweep(&[]).exits_with(0).counts(), [1, 1, 0, 0]);
    assert_eq!(place.results(STORE), whole);
}

/// Runs a shell script that has a file system of its own under `mount/`, made with these options, and the binary's
/// sweep as `$@`. `None` where this system does not allow that.
fn on_a_mount(place: &Place, options: &str, script: &str) -> Option<Ended> {
    fs::create_dir_all(place.path("mount")).unwrap();
    let sweep = place.command(&["sweep", "experiment.toml", "--device", "cpu", "--results", "mount/store"]);
    for rights in ["-m", "-rm"] {
        let mut command = Command::new("unshare");
        let script =
            format!("mount -t tmpfs -o {options} tmpfs mount || exit 99; echo mounted >&2; {script}");
        command.args([rights, "sh", "-c", &script, "sh"]).arg(sweep.get_program()).args(sweep.get_args());
        command.current_dir(place.path("")).env_remove("QUANTSCOPE_DATA").env_remove("QUANTSCOPE_MODELS");
        let Ok(output) = command.output() else { return None };
        let ended = Ended::from(output);
        if ended.stderr.contains("mounted\n") {
            return Some(ended);
        }
    }
    None
}

#[test]
fn a_folder_that_cannot_be_written() {
    let place = place();
    match on_a_mount(&place, "ro,size=1m", "\"$@\"") {
        Some(ended) => drop(
            ended.exits_with(2).says(&["`mount/store`: the file system is read-only", "Make it writable"]),
        ),
        None => skip_loudly("the read-only results folder: this system lets us mount no file system"),
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let place = place();
    place.write("experiment.toml", experiment(&[W8], &[perplexity(16, Some(4)), perplexity(24, Some(4))]));
    place.sweep(&["--results", "undisturbed"]).exits_with(0);
    // Then the user makes room and runs again.
    let script = "\"$@\"; test $? = 2 || exit 98; cp -r mount/store first; \
                  mount -o remount,size=16m mount; \"$@\" || exit 97; cp -r mount/store second";
    // Six pages hold the first records and not the last.
    let Some(ended) = on_a_mount(&place, "nr_blocks=6", script) else {
        return skip_loudly("the full disk: this system lets us mount no file system");
    };
    let ended =
        ended.exits_with(0).says(&["the disk is full", "Free some space", "what was finished is kept"]);
    let kept = place.results("first").len();
    assert!(kept > 0 && kept < 6, "{kept} of 6 records were written before the disk was full");
    for (name, result) in place.results("first") {
        assert_eq!(Some(&result), place.results("undisturbed").get(&name), "{name}");
    }
    assert_eq!(place.results("second"), place.results("undisturbed"), "{}", ended.stderr);
}
