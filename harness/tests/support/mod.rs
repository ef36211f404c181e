//! What the tests of the whole program share: a folder with a tiny checkpoint, a text and an experiment, and the binary
//! run in it.
//!
//! The checkpoint is the oracle's random Llama; its words are `w3` to `w63`, one token each.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Long enough for any machine; reached only where something hangs.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A folder in which the binary is run.
pub struct Place {
    dir: tempfile::TempDir,
}

/// How a run of the binary ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    /// A folder with the checkpoint `tiny/`, the text `text.txt` of so many words, and nothing else.
    pub fn new(words: usize) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.checkpoint("tiny");
        place.write("text.txt", text(words));
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Writes a checkpoint folder.
    pub fn checkpoint(&self, name: &str) {
        self.checkpoint_of("llama2", name);
    }

    /// Writes a checkpoint folder of a family.
    pub fn checkpoint_of(&self, family: &str, name: &str) {
        let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/oracle").join(family);
        fs::create_dir_all(self.path(name)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(oracle.join(file), self.path(name).join(file)).unwrap();
        }
        self.write(&format!("{name}/tokenizer.json"), tokenizer());
    }

    /// Changes one key of a checkpoint's config.json.
    pub fn configure(&self, name: &str, key: &str, value: Value) {
        let path = self.path(name).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    }

    /// The binary with these arguments, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quantscope"));
        command.args(arguments).arg("--offline").current_dir(self.dir.path());
        for variable in ["QUANTSCOPE_DATA", "QUANTSCOPE_MODELS", "HF_TOKEN"] {
            command.env_remove(variable);
        }
        // A user's own cache of the hub is none of the tests' business.
        command.env("HF_HOME", self.path("no-hub"));
        command
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }

    /// Starts the binary.
    pub fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Sweeps `experiment.toml` on the CPU, with more arguments.
    pub fn sweep(&self, more: &[&str]) -> Ended {
        self.run(&[&SWEEP[..], more].concat())
    }

    /// Starts such a sweep.
    pub fn start_sweep(&self, more: &[&str]) -> Child {
        self.start(&[&SWEEP[..], more].concat())
    }

    /// Every file below a folder, by its path in it; empty where the folder is not there.
    pub fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.path(folder), "", &mut files);
        files
    }

    /// The deterministic part of every cell and measurement of a store.
    pub fn results(&self, store: &str) -> BTreeMap<String, Value> {
        let result = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap()["result"].take();
        let records = self.files(&format!("{store}/cells"));
        let records = records.iter().filter(|(name, _)| name.ends_with(".json"));
        records.map(|(name, bytes)| (name.clone(), result(bytes))).collect()
    }

    /// Measurements in a store.
    pub fn measured(&self, store: &str) -> usize {
        // While a sweep runs: only names, since what is renamed into place is whole.
        let Ok(cells) = fs::read_dir(self.path(store).join("cells")) else {
            return 0;
        };
        let count = |cell: PathBuf| fs::read_dir(cell.join("measurements")).map_or(0, Iterator::count);
        cells.map(|cell| count(cell.unwrap().path())).sum()
    }

    /// Whether a process is at work on a cell of a store.
    pub fn claimed(&self, store: &str) -> bool {
        fs::read_dir(self.path(store).join("claims")).is_ok_and(|mut claims| claims.next().is_some())
    }

    /// The recorded failures of a store.
    pub fn failures(&self, store: &str) -> Vec<Value> {
        let files = self.files(&format!("{store}/failures"));
        files.values().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect()
    }
}

const SWEEP: [&str; 4] = ["sweep", "experiment.toml", "--device", "cpu"];

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ended {
    #[track_caller]
    pub fn exits_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stderr:\n{}\nstdout:\n{}", self.stderr, self.stdout);
        self
    }

    /// Asserts that stderr has each of these texts.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "`{text}` is not in:\n{}", self.stderr);
        }
        self
    }

    /// Measured, already there, failed, expectations missed: the last line of a sweep.
    #[track_caller]
    pub fn counts(&self) -> [usize; 4] {
        let line = self.stderr.lines().find(|line| line.contains(" measured, "));
        let line = line.unwrap_or_else(|| panic!("no counts in:\n{}", self.stderr));
        let numbers: Vec<usize> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().expect("four numbers")
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// Waits until something holds; the child must not end before.
#[track_caller]
pub fn wait_until(child: &mut Child, what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LIMIT, "{what} did not come");
        assert!(child.try_wait().unwrap().is_none(), "the sweep ended before {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a signal, such as `-TERM`.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

pub fn end(child: Child) -> Ended {
    Ended::from(child.wait_with_output().unwrap())
}

/// An experiment over the model `tiny` with these recipes (name, steps) and evaluations.
pub fn experiment(recipes: &[(&str, &str)], evaluations: &[String]) -> String {
    experiment_on(&["tiny"], recipes, evaluations)
}

/// As [`experiment`], over several checkpoint folders.
pub fn experiment_on(models: &[&str], recipes: &[(&str, &str)], evaluations: &[String]) -> String {
    let names: Vec<&str> = recipes.iter().map(|(name, _)| *name).collect();
    let mut text = format!(
        "question = \"Does the program hold together?\"\nreference = \"own\"\n\n[sweep]\nmodels = {models:?}\n\
         recipes = {names:?}\n"
    );
    for model in models {
        text += &format!("\n[model.{model}]\npath = {model:?}\n");
    }
    for (name, steps) in recipes {
        text += &format!("\n[recipe.{name}]\nsteps = [{steps}]\n");
    }
    text + "\n" + &evaluations.join("\n")
}

/// An `[[evaluate]]` block: perplexity over windows of so many tokens of text.txt.
pub fn perplexity(length: usize, limit: Option<usize>) -> String {
    let limit = limit.map_or(String::new(), |limit| format!("limit = {limit}\n"));
    format!(
        "[[evaluate]]\nmetric = \"perplexity\"\nprotocol = \"gptq\"\ncorpus = {{ path = \"text.txt\" }}\n\
         length = {length}\nbos = \"every\"\n{limit}"
    )
}

/// Words in an order without meaning, always the same.
pub fn text(words: usize) -> String {
    let mut state = 1u64;
    let mut word = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        format!("w{}", 3 + (state >> 33) % 61)
    };
    (0..words).map(|_| word()).collect::<Vec<_>>().join(" ")
}

fn tokenizer() -> String {
    let words = (3..64).map(|id| (format!("w{id}"), id));
    let special = [("<unk>", 0), ("<s>", 1), ("</s>", 2)].map(|(token, id)| (token.to_string(), id));
    let vocabulary: serde_json::Map<String, Value> =
        special.into_iter().chain(words).map(|(token, id)| (token, id.into())).collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    })
    .to_string()
}
