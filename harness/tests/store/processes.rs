//! Several processes, and file systems that are really full.
//!
//! The processes are this test program again, told by a variable which part to play.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::record::store::{ClaimOutcome, Store};

use super::{cell, execution, measured};

const UNITS: usize = 100;
const LIMIT: Duration = Duration::from_secs(120);

fn part(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    let test = format!("processes::{name}");
    command.args([test.as_str(), "--exact", "--ignored", "--nocapture"]).env("STORE_TEST_DIR", dir);
    command
}

/// Set by the test that starts a part; without it (`cargo test -- --ignored`) there is nothing to do.
fn dir_of_part() -> Option<PathBuf> {
    env::var_os("STORE_TEST_DIR").map(PathBuf::from)
}

/// Leaves a trace of a unit's computation; a second computation finds the first one's and fails.
fn compute(dir: &Path, unit: usize) -> f64 {
    fs::File::create_new(dir.join(format!("computed-{unit}"))).expect("a unit was computed twice");
    std::thread::sleep(Duration::from_millis(1));
    unit as f64
}

fn work(dir: &Path, last_first: bool) {
    let store = Store::open(&dir.join("store")).unwrap();
    store.publish_cell(cell("one"), execution()).unwrap();
    let started = Instant::now();
    let mut open: Vec<usize> = (0..UNITS).collect();
    if last_first {
        open.reverse();
    }
    while !open.is_empty() {
        assert!(started.elapsed() < LIMIT, "{} units stay open", open.len());
        open.retain(|&unit| {
            let metric = format!("unit/{unit}");
            let done = || store.measurement("one", &metric, 1).unwrap().is_some();
            if done() {
                return false;
            }
            let ClaimOutcome::Claimed(_claim) = store.claim("one", Some(&metric)).unwrap() else {
                return true;
            };
            if !done() {
                let value = compute(dir, unit);
                store.publish_measurement(measured("one", &metric, value), execution()).unwrap();
            }
            false
        });
    }
}

#[test]
#[ignore = "a process that the tests start"]
fn worker() {
    if let Some(dir) = dir_of_part() {
        work(&dir, false);
    }
}

#[test]
#[ignore = "a process that the tests start"]
fn holder() {
    let Some(dir) = dir_of_part() else { return };
    let store = Store::open(&dir).unwrap();
    let _claim = store.claim("one", None).unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "\nready").and_then(|()| out.flush()).unwrap();
    std::thread::sleep(LIMIT);
}

fn succeeded(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn racing_processes_and_threads_compute_each_unit_once() {
    let dir = tempfile::tempdir().unwrap();
    let spawn = || part("worker", dir.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let children = [spawn(), spawn()];
    std::thread::scope(|scope| {
        scope.spawn(|| work(dir.path(), true));
        scope.spawn(|| work(dir.path(), false));
    });
    children.into_iter().for_each(succeeded);
    let contents = Store::open_read_only(&dir.path().join("store")).unwrap().contents().unwrap();
    assert_eq!(contents.measurements.len(), UNITS);
    for folder in ["claims", "tmp"] {
        assert_eq!(fs::read_dir(dir.path().join("store").join(folder)).unwrap().count(), 0, "{folder}");
    }
}

#[test]
fn the_claim_of_a_killed_process_is_free_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = part("holder", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut out = child.stdout.take().unwrap();
    while !said.contains("ready") {
        let mut byte = [0];
        assert_eq!(out.read(&mut byte).unwrap(), 1, "it ended: {said}");
        said.push(byte[0] as char);
    }
    let store = Store::open(dir.path()).unwrap();
    let ClaimOutcome::HeldBy(holder) = store.claim("one", None).unwrap() else {
        panic!("a living process has it")
    };
    assert_eq!(holder.pid, child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(dir.path().join("claims/one").exists(), "a killed process tidies nothing up");
    assert!(matches!(store.claim("one", None).unwrap(), ClaimOutcome::Claimed(_)));
}

/// Fills a file system of `STORE_TEST_DIR` until the store says that it is full, makes room, and goes on.
#[test]
#[ignore = "a process that the tests start"]
fn filler() {
    let Some(dir) = dir_of_part() else { return };
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![0; 64 << 10]).unwrap();
    let store = Store::open(&dir.join("store")).unwrap();
    store.publish_cell(cell("one"), execution()).unwrap();
    let publish = |unit: usize| {
        store.publish_measurement(measured("one", &format!("unit/{unit}"), unit as f64), execution())
    };
    let (unit, error) = (0..).find_map(|unit| publish(unit).err().map(|error| (unit, error))).unwrap();
    let message = error.to_string();
    assert!(message.contains("the disk is full. Free some space"), "{message}");
    assert!(message.contains(&*dir.join("store").to_string_lossy()), "{message}");
    assert_eq!(store.contents().unwrap().measurements.len(), unit);
    fs::remove_file(&ballast).unwrap();
    publish(unit).unwrap();
    assert_eq!(store.contents().unwrap().measurements.len(), unit + 1);
    let mut out = std::io::stdout();
    writeln!(out, "\nfilled after {unit} units").unwrap();
}

/// Tries to write to a read-only file system.
#[test]
#[ignore = "a process that the tests start"]
fn refused() {
    let Some(dir) = dir_of_part() else { return };
    let message = Store::open(&dir.join("store")).unwrap_err().to_string();
    assert!(message.contains("the file system is read-only. Make it writable"), "{message}");
    assert!(message.contains(&*dir.to_string_lossy()), "{message}");
    let mut out = std::io::stdout();
    writeln!(out, "\nrefused as it should be").unwrap();
}

/// Runs a part on a mount of its own, which vanishes with the process; `None` where this system does not allow that.
fn on_a_mount(options: &str, name: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    for rights in ["-m", "-rm"] {
        let inner = part(name, dir.path());
        let mut command = Command::new("unshare");
        command.args([rights, "sh", "-c"]);
        command.arg(format!("mount -t tmpfs -o {options} tmpfs \"$STORE_TEST_DIR\" || exit 99; exec \"$@\""));
        command.arg("sh").arg(inner.get_program()).args(inner.get_args()).env("STORE_TEST_DIR", dir.path());
        let Ok(output) = command.output() else { return None };
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if text.contains("running 1 test") {
            assert!(output.status.success(), "{text}");
            return Some(text);
        }
    }
    None
}

fn skip_loudly(what: &str) {
    // Past the test runner's capture, so that it is seen.
    let mut err = std::io::stderr();
    writeln!(err, "SKIPPED {what}: this system lets us mount no file system (unshare, mount)").unwrap();
}

#[test]
fn a_disk_that_is_really_full_loses_nothing() {
    match on_a_mount("size=512k", "filler") {
        Some(text) => assert!(text.contains("filled after"), "{text}"),
        None => skip_loudly("the test on a full disk"),
    }
}

#[test]
fn a_read_only_disk_is_named() {
    match on_a_mount("ro", "refused") {
        Some(text) => assert!(text.contains("refused as it should be"), "{text}"),
        None => skip_loudly("the test on a read-only disk"),
    }
}
