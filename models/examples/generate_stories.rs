//! Writes the built-in texts: `cargo run --release -p models --example generate_stories`.
//!
//! With a seed and a number of bytes it prints other text of the same grammar instead:
//! `generate_stories 7 100000 > more.txt`.
#![allow(clippy::print_stdout)]

use std::{env, fs, path::Path, process::ExitCode};

use models::{builtin, stories};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => write_assets(),
        [seed, bytes] => match (seed.parse(), bytes.parse()) {
            (Ok(seed), Ok(bytes)) => {
                print!("{}", stories::corpus(seed, bytes));
                ExitCode::SUCCESS
            }
            _ => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    println!("usage: generate_stories [SEED BYTES]");
    ExitCode::FAILURE
}

fn write_assets() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    let texts = [("held-out.txt", stories::HELD_OUT_SEED), ("calibration.txt", stories::CALIBRATION_SEED)];
    for (name, seed) in texts {
        let path = folder.join(name);
        let text = stories::corpus(seed, builtin::TEXT_BYTES);
        if let Err(error) = fs::write(&path, &text) {
            println!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("assets/stories/{name}: {} bytes, seed {seed}", text.len());
    }
    ExitCode::SUCCESS
}
