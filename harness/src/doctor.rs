//! What this machine offers and what is missing: devices, processor, memory, data, models, the hub.
//!
//! [`examine`] returns a value; its `Display` is what `quantscope doctor` prints.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use models::hub::{self, Cached};

use crate::data::corpus::{self, DataOptions};
use crate::data::{DATA_VARIABLE, MODELS_VARIABLE};
use crate::device::{self, Choice, DeviceError};

/// How long the hub may take to answer.
const HUB_TIMEOUT: Duration = Duration::from_secs(4);

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// Data directory, hub and whether it may be asked.
    pub data: DataOptions,
    /// Folder of local models.
    pub models_dir: Option<PathBuf>,
}

/// The state of the machine, as far as sweeps care.
#[derive(Clone, Debug)]
pub struct Report {
    /// What `--device auto` takes.
    pub automatic: String,
    /// Each device that can be named, and its name or why it cannot be used.
    pub devices: Vec<(Choice, Result<String, DeviceError>)>,
    /// The processor.
    pub processor: Processor,
    /// Memory in bytes: in the machine, and free for use now.
    pub memory: (u64, u64),
    /// The data directory, if one is named.
    pub data_dir: Option<PathBuf>,
    /// Each registered corpus, and where it would come from.
    pub corpora: Vec<(String, Place)>,
    /// The folder of local models, if one is named.
    pub models_dir: Option<PathBuf>,
    /// Folders in it that hold a `config.json`.
    pub local_models: Vec<String>,
    /// The hub cache.
    pub cache: PathBuf,
    /// Models in it.
    pub cached_models: Vec<Cached>,
    /// Whether the hub answers: `None` if it may not be asked.
    pub hub: Option<Result<(), String>>,
    /// Whether an access token for the hub is there.
    pub has_token: bool,
    /// What is missing, and the cure.
    pub findings: Vec<Finding>,
}

/// The processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// As it names itself.
    pub brand: String,
    /// Threads that sweeps use.
    pub threads: usize,
    /// Instruction sets that speed up the kernels, and whether they are there.
    pub features: Vec<(&'static str, bool)>,
}

/// Where a corpus would come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The data directory.
    Data,
    /// The program itself.
    BuiltIn,
    /// The hub, on first use.
    Hub,
    /// Nowhere.
    Missing,
}

/// Something missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: String,
    /// What to do.
    pub cure: String,
}

/// Looks at everything; nothing fails, what is wrong is part of the report.
pub fn examine(options: &Options) -> Report {
    let hub = &options.data.hub;
    let gpu = [
        Choice::Cuda(0),
        Choice::Vulkan { software: false },
        Choice::Vulkan { software: true },
        Choice::Metal,
    ];
    let on_this_system = |choice: &Choice| {
        (*choice == Choice::Metal) == cfg!(target_os = "macos") || matches!(choice, Choice::Cuda(_))
    };
    let devices = [Choice::Cpu]
        .into_iter()
        .chain(gpu.into_iter().filter(on_this_system))
        .map(|choice| (choice, device::select(choice).map(|selected| selected.name)))
        .collect();
    let automatic =
        device::select(Choice::Auto).map_or_else(|error| error.to_string(), |selected| selected.name);
    // Both are 0 on a system that cannot be asked.
    let memory = sysinfo::System::new().map_or((0, 0), |mut system| {
        system.refresh_memory();
        (system.total_memory(), system.available_memory())
    });
    let mut report = Report {
        automatic,
        devices,
        processor: processor(),
        memory,
        data_dir: options.data.data_dir.clone(),
        corpora: corpora(&options.data),
        models_dir: options.models_dir.clone(),
        local_models: local_models(options.models_dir.as_deref()),
        cache: hub.cache.clone(),
        cached_models: hub::cached(hub),
        hub: (!hub.offline).then(|| hub::reachable(hub, HUB_TIMEOUT)),
        has_token: hub.token.is_some(),
        findings: Vec::new(),
    };
    report.findings = findings(&report);
    report
}

fn processor() -> Processor {
    let brand = sysinfo::System::new().ok().and_then(|mut system| {
        system.refresh_cpu_all();
        Some(system.cpus().first()?.brand().trim().to_owned())
    });
    let brand = brand.unwrap_or_else(|| "unknown".to_owned());
    #[cfg(target_arch = "x86_64")]
    let features = vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    let features = vec![
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features = Vec::new();
    Processor { brand, threads: rayon::current_num_threads(), features }
}

fn corpora(options: &DataOptions) -> Vec<(String, Place)> {
    corpus::list()
        .into_iter()
        .filter_map(|name| {
            let (found, language) = corpus::find(&name).ok()?;
            let place = match corpus::file_of(&found, language) {
                None if (options.builtin)(name.trim_start_matches("builtin/")).is_some() => Place::BuiltIn,
                None => Place::Missing,
                Some(file) if options.data_dir.as_ref().is_some_and(|dir| dir.join(&file).is_file()) => {
                    Place::Data
                }
                Some(_) if found.on_hub.is_some() => Place::Hub,
                Some(_) => Place::Missing,
            };
            Some((name, place))
        })
        .collect()
}

fn local_models(folder: Option<&std::path::Path>) -> Vec<String> {
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("config.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn findings(report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut note = |what: String, cure: &str| findings.push(Finding { what, cure: cure.to_owned() });
    match &report.data_dir {
        None => note(
            "no data directory: only built-in corpora and those on the hub can be used by name".to_owned(),
            &format!("--data DIR or {DATA_VARIABLE}=DIR (docs/data.md says what belongs in it)"),
        ),
        Some(dir) if !dir.is_dir() => {
            note(
                format!("the data directory {} is not there", dir.display()),
                "correct --data, or create it",
            );
        }
        Some(dir) => {
            let is_absent = |(name, place): &(String, Place)| {
                (*place == Place::Missing && !name.starts_with("builtin/")).then(|| name.clone())
            };
            let absent: Vec<String> = report.corpora.iter().filter_map(is_absent).collect();
            if !absent.is_empty() {
                note(
                    format!("not in {}: {}", dir.display(), absent.join(", ")),
                    "docs/data.md says where to get them",
                );
            }
        }
    }
    if let Some(dir) = report.models_dir.as_ref().filter(|dir| !dir.is_dir()) {
        note(format!("the models folder {} is not there", dir.display()), "correct --models, or create it");
    }
    for model in report.cached_models.iter().filter(|model| !model.missing.is_empty()) {
        let cure = "the next sweep that names it completes it, unless --offline";
        note(format!("{} in the hub cache lacks {}", model.id, model.missing.join(", ")), cure);
    }
    if let Some(Err(reason)) = &report.hub {
        let cure = "check the network, HF_ENDPOINT and the proxy variables; cached and local models work with --offline";
        note(format!("the hub does not answer: {reason}"), cure);
    }
    if report.hub.is_some() && !report.has_token {
        note("no hub token: gated models cannot be fetched".to_owned(), "HF_TOKEN, or `hf auth login`");
    }
    findings
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device    auto takes {}", self.automatic)?;
        for (choice, outcome) in &self.devices {
            match outcome {
                Ok(name) => writeln!(f, "          {choice}: {name}")?,
                Err(error) => writeln!(f, "          {choice}: no: {}", error.brief())?,
            }
        }
        let features: Vec<String> = self
            .processor
            .features
            .iter()
            .map(|(name, there)| format!("{}{name}", if *there { "" } else { "no " }))
            .collect();
        let Processor { brand, threads, .. } = &self.processor;
        writeln!(f, "processor {brand}, {threads} threads, {}", features.join(", "))?;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        writeln!(f, "memory    {:.1} GiB, {:.1} GiB available", gib(self.memory.0), gib(self.memory.1))?;
        let shown =
            |dir: &Option<PathBuf>, none: String| dir.as_ref().map_or(none, |dir| dir.display().to_string());
        writeln!(f, "data      {}", shown(&self.data_dir, format!("none (--data or {DATA_VARIABLE})")))?;
        for (place, words) in [
            (Place::Data, "there"),
            (Place::BuiltIn, "built in"),
            (Place::Hub, "from the hub"),
            (Place::Missing, "missing"),
        ] {
            let names: Vec<&str> =
                self.corpora.iter().filter(|(_, at)| *at == place).map(|(name, _)| name.as_str()).collect();
            if !names.is_empty() {
                writeln!(f, "          {words}: {}", names.join(", "))?;
            }
        }
        writeln!(
            f,
            "models    {}",
            shown(&self.models_dir, format!("none (--models or {MODELS_VARIABLE})"))
        )?;
        if !self.local_models.is_empty() {
            writeln!(f, "          {}", self.local_models.join(", "))?;
        }
        writeln!(f, "cache     {}", self.cache.display())?;
        for model in &self.cached_models {
            let state = if model.missing.is_empty() { "complete" } else { "incomplete" };
            writeln!(f, "          {} ({state})", model.id)?;
        }
        match &self.hub {
            None => writeln!(f, "hub       not asked (offline)")?,
            Some(Ok(())) => writeln!(f, "hub       answers")?,
            Some(Err(reason)) => writeln!(f, "hub       no: {reason}")?,
        }
        for Finding { what, cure } in &self.findings {
            writeln!(f, "note      {what}. Cure: {cure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::corpus::{CORPORA, UDHR_LANGUAGES};

    fn options(data_dir: Option<PathBuf>, models_dir: Option<PathBuf>, cache: PathBuf) -> Options {
        let mut data = DataOptions::new(None, PathBuf::new(), true);
        data.data_dir = data_dir;
        data.hub.cache = cache;
        Options { data, models_dir }
    }

    #[test]
    fn what_is_there_and_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |parts: &str| dir.path().join(parts);
        std::fs::create_dir_all(path("data/calibration")).unwrap();
        std::fs::write(path("data/calibration/c4.utf8"), "a web page\n").unwrap();
        std::fs::create_dir_all(path("models/small")).unwrap();
        std::fs::write(path("models/small/config.json"), "{}").unwrap();
        std::fs::create_dir_all(path("models/no-model")).unwrap();
        let snapshot = path("cache/models--owner--na--me/snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(path("cache/models--owner--na--me/refs")).unwrap();
        std::fs::write(path("cache/models--owner--na--me/refs/main"), "abc").unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();

        let report = examine(&options(Some(path("data")), Some(path("models")), path("cache")));
        let place = |name: &str| report.corpora.iter().find(|(n, _)| n == name).map(|(_, place)| *place);
        assert_eq!(place("c4"), Some(Place::Data));
        assert_eq!(place("wiki"), Some(Place::Missing));
        assert_eq!(place("wikitext2/test"), Some(Place::Hub));
        assert_eq!(report.local_models, ["small"]);
        assert_eq!(report.cached_models.len(), 1);
        assert_eq!(report.cached_models[0].id, "owner/na--me");
        assert_eq!(report.cached_models[0].missing, ["tokenizer.json", "model.safetensors"]);
        assert_eq!(report.hub, None, "offline asks nobody");
        assert!(report.memory.0 > 0 && report.memory.1 <= report.memory.0, "{:?}", report.memory);
        assert!(report.processor.threads > 0);
        assert!(matches!(&report.devices[0], (Choice::Cpu, Ok(name)) if name.starts_with("CPU")));

        let text = report.to_string();
        for part in
            ["auto takes", "there: c4", "owner/na--me (incomplete)", "not asked (offline)", "docs/data.md"]
        {
            assert!(text.contains(part), "`{part}` is missing in:\n{text}");
        }
    }

    #[test]
    fn without_folders_the_findings_name_the_flags() {
        let dir = tempfile::tempdir().unwrap();
        let report = examine(&options(None, Some(dir.path().join("gone")), dir.path().join("cache")));
        let findings: Vec<String> =
            report.findings.iter().map(|f| format!("{} | {}", f.what, f.cure)).collect();
        assert!(findings.iter().any(|f| f.contains("--data DIR or QUANTSCOPE_DATA")), "{findings:?}");
        assert!(
            findings.iter().any(|f| f.contains("gone is not there") && f.contains("--models")),
            "{findings:?}"
        );
        assert_eq!(UDHR_LANGUAGES.len() + CORPORA.len(), report.corpora.len());
    }
}
