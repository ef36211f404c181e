//! Rules of the house that no compiler knows: which module may name which, what must be registered, what a file must
//! begin with. Reads the tree as text.
//!
//! Each rule returns its violations; a test fails with all of them at once, each naming file, line and cure.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// A text file of the tree: its path from the root, with `/`, and its text.
struct File {
    path: String,
    text: String,
}

impl File {
    /// The part before the first `#[cfg(test)]` or `#[cfg(all(test, …))]`: what ships.
    fn shipped(&self) -> &str {
        let ends = ["#[cfg(test)]", "#[cfg(all(test"].into_iter().filter_map(|mark| self.text.find(mark));
        ends.min().map_or(&self.text, |end| &self.text[..end])
    }

    /// The shipped lines that are code, numbered from 1, without what follows `//`.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.shipped().lines().enumerate().map(|(i, line)| (i + 1, without_comment(line)));
        lines.filter(|(_, line)| !line.trim().is_empty())
    }

    fn is_test(&self) -> bool {
        // A module `tests` in a file of its own is compiled for tests only.
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs") || self.path.contains("/benches/")
    }
}

/// A line up to its comment. A `//` behind a `:` or inside quotes is no comment: addresses have it.
fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    let bytes = line.as_bytes();
    for i in 0..bytes.len() {
        match bytes[i] {
            b'"' if i == 0 || bytes[i - 1] != b'\\' => quoted = !quoted,
            b'/' if !quoted && bytes.get(i + 1) == Some(&b'/') => return &line[..i],
            _ => {}
        }
    }
    line
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every text file of the tree that is not ignored, in the order of paths. Files that are not UTF-8 are no text.
fn tree() -> Vec<File> {
    const SKIPPED: [&str; 3] = ["target", "__pycache__", "shared"];
    let (root, mut folders, mut files) = (root(), vec![PathBuf::new()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("the folder was just listed") {
            let entry = entry.expect("entries of the tree can be read");
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().expect("the type of an entry is known");
            let name = entry.file_name().to_string_lossy().into_owned();
            let hidden = name.starts_with('.') && name != ".ci" && name != ".github";
            if kind.is_dir() && !hidden && !SKIPPED.contains(&name.as_str()) {
                folders.push(path);
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(entry.path())
            {
                files.push(File { path: path.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn rust() -> Vec<File> {
    tree().into_iter().filter(|file| file.path.ends_with(".rs")).collect()
}

fn within(folder: &str) -> Vec<File> {
    let folder = format!("{folder}/");
    let file = format!("{}.rs", folder.trim_end_matches('/'));
    rust().into_iter().filter(|f| f.path.starts_with(&folder) || f.path == file).collect()
}

/// Fails with all violations, one a line.
#[track_caller]
fn hold(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}:\n  {}\n", violations.join("\n  "));
}

/// True where `word` stands in `line` with no letter, digit or underscore beside it.
fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !inside(line[..at].chars().next_back()) && !inside(line[at + word.len()..].chars().next())
    })
}

/// Lines of the module at `folder` in which one of `names` is used as the beginning of a path: `use burn::…`,
/// `models::Tap`, `crate::quantize`.
fn uses(folder: &str, names: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in within(folder) {
        for (number, line) in file.code() {
            for name in names {
                let path = format!("{name}::");
                let external = line.match_indices(&path).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| {
                        c.is_alphanumeric() || c == '_' || (c == ':' && !name.contains("::"))
                    })
                });
                let whole = line.trim() == format!("use {name};");
                if external || whole {
                    found.push(format!("{}:{number} names `{name}`: {}", file.path, line.trim()));
                }
            }
        }
    }
    found
}

#[test]
fn dependencies_point_one_way() {
    let manifest = fs::read_to_string(root().join("models/Cargo.toml")).expect("models/Cargo.toml is there");
    // A bench that brings its own main function says so with this key.
    let manifest = manifest.replace("harness = false", "");
    assert!(!has_word(&manifest, "harness"), "models/Cargo.toml names harness: models must not depend on it");

    let mut found = Vec::new();
    for folder in ["harness/src/report", "harness/src/record"] {
        found.extend(uses(folder, &["burn", "models"]));
        found.extend(uses(folder, &["crate::quantize", "crate::evaluate", "crate::run", "crate::cli"]));
    }
    // Plain columns in, plain values out: nothing of ours but itself.
    found.extend(uses("harness/src/paired", &["burn", "models", "crate", "polars"]));
    for folder in ["harness/src/plan", "harness/src/experiment"] {
        found.extend(uses(folder, &["burn"]));
    }
    found.extend(uses("harness/src/evaluate", &["crate::quantize"]));
    found.extend(uses("harness/src/quantize", &["models::families", "crate::evaluate", "crate::run"]));
    hold("a module names what it must not know (docs/architecture.md, invariants)", found);
}

#[test]
fn models_have_never_heard_of_quantization() {
    const WORDS: [&str; 8] =
        ["quantiz", "quantis", "smoothquant", "gptq", "awq", "bit_width", "zero_point", "fake_quant"];
    let mut found = Vec::new();
    for file in within("models/src") {
        // The built-in models carry planted spikes, whose point is quantization; their page may say so.
        if file.path.starts_with("models/src/builtin") {
            continue;
        }
        for (number, line) in file.code() {
            // Refusing a checkpoint that is already quantized takes its words.
            let line = line.to_lowercase().replace("dequantiz", "").replace("quantization_config", "");
            // `to_bits` and `from_bits` are about floats, `8 bits` of a file format is not a grid either.
            let grid = ["bits", "n_bits", "num_bits"].iter().any(|word| has_word(&line, word));
            if grid || WORDS.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    hold("`models` speaks of quantization; it belongs in harness/src/quantize", found);
}

/// Registries: the folder, and a word that the registry line of a file must hold besides its module's name.
const REGISTRIES: [&str; 5] = [
    "harness/src/quantize/steps",
    "harness/src/evaluate/metrics",
    "harness/src/evaluate/tasks",
    "harness/src/report/tables",
    "harness/src/report/figures",
];

#[test]
fn every_file_of_a_registry_is_registered_and_registries_are_alphabetical() {
    let mut found = Vec::new();
    let files = rust();
    for folder in REGISTRIES {
        let Some(registry) = files.iter().find(|file| file.path == format!("{folder}/mod.rs")) else {
            continue;
        };
        let prefix = format!("{folder}/");
        let modules = files.iter().filter_map(|file| file.path.strip_prefix(&prefix)?.strip_suffix(".rs"));
        let modules: Vec<&str> = modules.filter(|name| *name != "mod" && !name.contains('/')).collect();

        let declared: Vec<&str> = registry
            .shipped()
            .lines()
            .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
            .collect();
        if !declared.is_sorted() {
            found.push(format!("{folder}/mod.rs: its `mod` lines are not in alphabetical order"));
        }
        for module in &modules {
            if !declared.contains(module) {
                found.push(format!("{folder}/{module}.rs: no `mod {module};` in mod.rs"));
            }
        }

        // A registry has its list in one of two forms: lines `"name" => module::…`, or a slice of `&module::Type`.
        let code: Vec<&str> = registry.code().map(|(_, line)| line.trim()).collect();
        let listed: Vec<&str> = code
            .iter()
            .filter(|line| line.starts_with('"'))
            .filter_map(|line| line.split_once("=> ")?.1.split("::").next())
            .collect();
        let slice: String = code
            .iter()
            .skip_while(|line| !line.contains("&[&dyn "))
            .scan(false, |done, line| {
                let now = *done;
                *done |= line.contains("];");
                (!now).then_some(*line)
            })
            .collect();
        let in_slice: Vec<&str> = slice
            .split('&')
            .filter_map(|item| item.trim_start_matches('[').split_once("::").map(|(module, _)| module.trim()))
            .collect();
        let listed = if listed.is_empty() { in_slice } else { listed };
        if listed.is_empty() {
            // Not written as a list yet, for instance an enum with a variant a file.
            continue;
        }
        if !listed.is_sorted() {
            found.push(format!("{folder}/mod.rs: its list is not in alphabetical order: {listed:?}"));
        }
        for module in modules {
            if !listed.contains(&module) {
                found.push(format!("{folder}/{module}.rs: not in the list of mod.rs"));
            }
        }
    }
    hold("a registry does not hold its folder", found);
}

#[test]
fn every_step_has_its_page() {
    let mut found = Vec::new();
    for file in within("harness/src/quantize/steps") {
        if file.path.ends_with("/mod.rs") || file.path.matches('/').count() > 4 {
            continue;
        }
        let page: Vec<&str> =
            file.text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
        for heading in ["# Equation", "# Parameters", "# Reference"] {
            if !page.contains(&heading) {
                found.push(format!("{}: its page has no `{heading}`", file.path));
            }
        }
        let reference = page.iter().skip_while(|line| **line != "# Reference").skip(1);
        let reference: String = reference.take_while(|line| !line.starts_with("# ")).copied().collect();
        if !(is_arxiv(&reference) || reference.contains("10.") || has_word(&reference, "own")) {
            found.push(format!("{}: its reference has no arXiv id or DOI and does not say `own`", file.path));
        }
    }
    hold("a step is not documented", found);
}

/// True where a text holds `NNNN.NNNNN`.
fn is_arxiv(text: &str) -> bool {
    let digits = |part: &str, n: usize| part.len() >= n && part.bytes().take(n).all(|b| b.is_ascii_digit());
    text.match_indices('.').any(|(at, _)| {
        at >= 4 && text.is_char_boundary(at - 4) && digits(&text[at - 4..at], 4) && digits(&text[at + 1..], 5)
    })
}

#[test]
fn every_rust_file_says_what_it_is_for() {
    let silent = rust().into_iter().filter(|file| !file.text.trim_start_matches("#!").starts_with("//!"));
    let silent = silent.map(|file| format!("{}: begin it with `//!` and what it is for", file.path));
    hold("a file has no page", silent.collect());
}

#[test]
fn files_have_telling_names_and_a_readable_size() {
    const BANNED: [&str; 6] = ["util", "helper", "common", "misc", "manager", "stuff"];
    const LINES: usize = 600;
    let mut found = Vec::new();
    for file in rust() {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        if BANNED.iter().any(|word| name.contains(word)) {
            found.push(format!("{}: name it after what it holds", file.path));
        }
        let lines = file.text.lines().count();
        if lines > LINES {
            found.push(format!("{}: {lines} lines, more than {LINES}; split it by concept", file.path));
        }
    }
    hold("a file has a bad name or size", found);
}

#[test]
fn only_the_command_line_prints() {
    let mut found = Vec::new();
    for file in rust() {
        let talks = file.path.starts_with("harness/src/cli/")
            || ["harness/src/cli.rs", "harness/src/main.rs"].contains(&file.path.as_str())
            || file.path.ends_with("/build.rs")
            || file.path.contains("/examples/")
            // Programs of their own, which are run by hand.
            || file.path.starts_with("scripts/")
            || file.is_test();
        for (number, line) in file.code().filter(|_| !talks) {
            for call in ["println!", "eprintln!", "print!", "eprint!", "dbg!"] {
                if has_word(line, &call[..call.len() - 1]) && line.contains(&format!("{call}(")) {
                    found.push(format!("{}:{number}: `{call}`; return a value or a warning", file.path));
                }
            }
        }
    }
    hold("something prints that is not `cli`", found);
}

#[test]
fn no_test_is_ignored_without_a_reason_and_nothing_shipped_unwraps() {
    // Spelled in two parts, or this file would hold what it looks for.
    let (ignored, unwrap) = (concat!("#[ign", "ore]"), concat!(".unw", "rap()"));
    let mut found = Vec::new();
    for file in rust() {
        for (i, line) in file.text.lines().enumerate() {
            if without_comment(line).contains(ignored) {
                found.push(format!("{}:{}: say why: #[ignore = \"…\"]", file.path, i + 1));
            }
        }
        for (number, line) in file.code().filter(|_| !file.is_test()) {
            if line.contains(unwrap) {
                found.push(format!(
                    "{}:{number}: return an error, or say what holds with expect(\"…\")",
                    file.path
                ));
            }
        }
    }
    hold("a test is skipped or shipped code can panic silently", found);
}

#[test]
fn no_file_holds_a_path_of_somebodys_machine() {
    // Spelled in parts, or this file would hold what it looks for. Served or generated paths of containers count too.
    let homes =
        [concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/ro", "ot/"), concat!("C:\\Us", "ers\\")];
    let mut found = Vec::new();
    for file in tree() {
        // What `.gitignore` keeps out of the repository.
        if file.path.starts_with("results/") && file.path.contains("/cells/") {
            continue;
        }
        for (i, line) in file.text.lines().enumerate() {
            if let Some(home) = homes.iter().find(|home| line.contains(**home)) {
                found.push(format!("{}:{}: `{home}`", file.path, i + 1));
            }
        }
    }
    hold("a file names a folder that other machines do not have", found);
}

#[test]
fn the_rules_can_fail() {
    let file = |text: &str| File { path: "harness/src/x.rs".into(), text: text.into() };
    assert_eq!(file("a(); // b\n#[cfg(test)]\nc").code().collect::<Vec<_>>(), [(1, "a(); ")]);
    assert_eq!(without_comment("let u = \"https://x\"; // y"), "let u = \"https://x\"; ");
    assert!(has_word("bits = 4", "bits") && !has_word("x.to_bits()", "bits"));
    assert!(is_arxiv("arXiv:2211.10438, Table 2") && !is_arxiv("version 1.2345"));
    assert!(uses("harness/src/report", &["crate::record"]).len() > 1, "the report does read records");
    assert!(uses("harness/src/report", &["plotters"]).len() > 1, "the report does draw");
    assert!(tree().iter().any(|file| file.path == "harness/Cargo.toml"));
}
