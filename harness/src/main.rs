//! The one binary, `quantscope`. Everything is in the library; the verbs are the files of `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::cli::main()
}
