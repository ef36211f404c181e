//! Tells the program which revision of its sources it was built from, in `QUANTSCOPE_REVISION`: the commit, `-dirty`
//! behind it where what is compiled differs from the commit, `unknown` without git or outside its own repository.
//!
//! Runs again when what is compiled changes or the commit moves, not at every build.

#![allow(clippy::print_stdout, reason = "cargo reads it")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is compiled, seen from the root of the repository.
const SOURCES: [&str; 6] =
    ["Cargo.toml", "Cargo.lock", "models", "harness/Cargo.toml", "harness/build.rs", "harness/src"];

fn main() {
    // As it is now, not as it was when this was compiled: checkouts may share a target folder.
    let root = env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let root = Path::new(&root).join("..");
    for source in SOURCES {
        watch(&root.join(source));
    }
    println!("cargo:rustc-env=QUANTSCOPE_REVISION={}", revision(&root).unwrap_or_else(|| "unknown".into()));
}

fn revision(root: &Path) -> Option<String> {
    // An archive of the sources unpacked inside another repository has no revision of that repository.
    let top = PathBuf::from(git(root, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // The branch's own file may be missing (packed); the log of HEAD grows with every commit and checkout.
    let branch = git(root, &["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        watch(&root.join(git(root, &["rev-parse", "--git-path", name])?));
    }
    let commit = git(root, &["rev-parse", "--verify", "HEAD"])?;
    let changes = git(root, &[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// A path that does not exist would make cargo run this at every build.
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").arg("--no-optional-locks").arg("-C").arg(root).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}
