//! The binary: exit codes, and that data and talk go to different places.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use harness::quantize::steps;

fn quantscope(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantscope"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"))
        .env_remove("QUANTSCOPE_DATA")
        .env_remove("QUANTSCOPE_MODELS")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

#[test]
fn plan_prints_cells_to_stdout_and_talks_to_stderr() {
    let output = quantscope(&["plan", "small.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with("small: Does the smallest experiment plan?\n"), "{stdout}");
    assert!(stdout.ends_with("\n5 cells, 5 measurements\n"), "{stdout}");
    let cells: Vec<Vec<&str>> = stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|row: &Vec<_>| {
            row.first().is_some_and(|id| id.len() == 12 && u64::from_str_radix(id, 16).is_ok())
        })
        .collect();
    // Ids of models that ship with the program are known; a model of the hub that is not here has none yet.
    assert_eq!(cells[0][5..], ["0", "of", "1"]);
    assert_eq!(cells[3][5..], ["?"]);
    assert!(stdout.contains("not here: would fetch") && stdout.contains("by its name about"), "{stdout}");
    let names: Vec<_> = cells.iter().map(|row| (row[1], row[2])).collect();
    assert_eq!(
        names,
        [
            ("builtin/tiny-llama", "original"),
            ("builtin/tiny-llama", "w8"),
            ("builtin/tiny-llama", "w4"),
            ("meta-llama/Llama-2-7b-hf", "original"),
            ("meta-llama/Llama-2-7b-hf", "w8"),
        ]
    );
    assert_eq!(
        text(&output.stderr),
        "warning: small.toml: recipe `unused` (line 15) is defined but not swept: name it in [sweep] recipes, or delete it\n\
         note: exclude { model = \"meta-llama/*\", recipe = \"w4\" }: takes 1 cell away\n"
    );
    assert_eq!(
        quantscope(&["sweep", "small.toml", "--dry-run"]).stdout,
        output.stdout,
        "a dry run is the plan"
    );
}

#[test]
fn a_bad_file_exits_with_2_and_nothing_on_stdout() {
    let output = quantscope(&["plan", "misspelt-key.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let stderr = text(&output.stderr);
    let expected = "error: misspelt-key.toml:10:33: unknown key `granulrity` (did you mean `granularity`?)\n";
    assert!(stderr.starts_with(expected), "{stderr}");
}

#[test]
fn bad_arguments_exit_with_2() {
    let methods = steps::methods("keep").join(", ");
    let of_keep =
        format!("error: the step `keep` has several methods, each with a page of its own: {methods}\n");
    for (arguments, message) in [
        (&["plan", "absent.toml"][..], "error: cannot read the experiment absent.toml: "),
        (
            &["plan", "small.toml", "-r", "w88"],
            "error: -r w88: no recipe of this experiment matches (did you mean `w8`?)",
        ),
        (&["plan", "small.toml", "--device", "vulcan"], "`vulcan` is no device; valid are auto, cpu, cuda"),
        (&["plan", "small.toml", "--limit", "0"], "invalid value '0' for '--limit <N>'"),
        (
            &["explain", "wieghts"],
            "error: nothing is called `wieghts` (did you mean `weights`?); there are: activations, ",
        ),
        (&["explain", "keep"], &of_keep),
        (&["swep", "small.toml"], "a similar subcommand exists: 'sweep'"),
    ] {
        let output = quantscope(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn explain_and_list_print_the_registries() {
    let page = quantscope(&["explain", "weights"]);
    assert_eq!(page.status.code(), Some(0));
    let page = text(&page.stdout);
    assert!(page.starts_with("`weights`: round the weights") && page.contains("# Equation"), "{page}");
    let grids = text(&quantscope(&["explain", "conventions"]).stdout);
    assert!(grids.contains("| `zero-in-range` |"), "{grids}");
    let steps = text(&quantscope(&["list", "steps"]).stdout);
    let listed: Vec<(&str, Option<&str>)> = steps
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next().filter(|method| *method != "-")))
        })
        .collect();
    assert_eq!(listed, harness::quantize::steps::STEPS);
    let tasks = text(&quantscope(&["list", "tasks"]).stdout);
    assert!(tasks.lines().any(|line| line.starts_with("piqa") && line.contains("acc, acc_norm")), "{tasks}");
    let keys = text(&quantscope(&["list", "keys"]).stdout);
    assert!(
        keys.contains("`[sweep]`") && keys.contains("models, recipes, calibrations, seeds, exclude"),
        "{keys}"
    );
}

#[test]
fn a_quick_look_names_its_windows() {
    let output = quantscope(&["plan", "small.toml", "--limit", "2"]);
    let stdout = text(&output.stdout);
    assert!(
        stdout.contains(
            "perplexity/gptq/builtin-stories-held-out/256/bos=every/windows=2  1        512 tokens"
        ),
        "{stdout}"
    );
}
