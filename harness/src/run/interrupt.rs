//! Ctrl-C, SIGTERM and SIGHUP as one flag, which a run polls between windows and cells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The exit code after an interruption, 128 + SIGINT as shells count. The signal's number is not known here (one
/// handler serves all three), so SIGTERM gives the same code.
pub const INTERRUPTED: i32 = 130;

/// Signals that follow the first this closely are the same request: a terminal, a shell and a scheduler may each send
/// theirs.
const SAME_REQUEST: Duration = Duration::from_millis(500);

/// Whether the user asked to stop. Clones share the flag. The default one is never raised by a signal.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// The handler of signals could not be installed.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for Ctrl-C: {0}. Run the program as a process of its own, without another signal handler."
)]
pub struct InterruptError(#[from] ctrlc::Error);

impl Interrupt {
    /// Listens for SIGINT, SIGTERM and SIGHUP (Ctrl-C and Ctrl-Break on Windows). The first raises the flag; the second
    /// ends the process at once with [`INTERRUPTED`], which leaves a valid store as any killing does.
    ///
    /// Fails when called a second time in one process.
    pub fn install() -> Result<Interrupt, InterruptError> {
        let interrupt = Interrupt::default();
        let raised = interrupt.clone();
        let mut first: Option<Instant> = None;
        ctrlc::set_handler(move || match first {
            None => {
                first = Some(Instant::now());
                raised.request();
            }
            Some(at) if at.elapsed() < SAME_REQUEST => {}
            Some(_) => std::process::exit(INTERRUPTED),
        })?;
        Ok(interrupt)
    }

    /// Whether to finish or drop the measurement in flight and return.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Raises the flag, as the first signal does.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[allow(clippy::unwrap_used)]
#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

    /// Which part the process plays: `willing` or `stuck`.
    const PART: &str = "INTERRUPT_TEST_PART";
    const LIMIT: Duration = Duration::from_secs(60);

    /// Not a test of its own: the process that the others start and signal.
    #[test]
    #[ignore = "started by the other tests as a process of its own"]
    fn a_process_that_works() {
        let Some(part) = std::env::var_os(PART) else {
            return;
        };
        let say = |word: &str| {
            let mut out = std::io::stdout();
            writeln!(out, "\n{word}").and_then(|()| out.flush()).expect("the parent reads");
        };
        let interrupt = Interrupt::install().expect("a fresh process");
        assert!(Interrupt::install().is_err(), "the second handler must be refused");
        say("ready");
        let started = Instant::now();
        while !interrupt.requested() {
            assert!(started.elapsed() < LIMIT, "no signal came");
            std::thread::sleep(Duration::from_millis(2));
        }
        say("requested");
        if part == "stuck" {
            std::thread::sleep(LIMIT);
        }
        std::process::exit(7);
    }

    fn start(part: &str) -> (Child, BufReader<ChildStdout>) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["a_process_that_works", "--ignored", "--nocapture"]).env(PART, part);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        wait_for(&mut out, "ready");
        (child, out)
    }

    fn wait_for(out: &mut BufReader<ChildStdout>, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "the process ended without `{word}`");
        }
    }

    fn signal(child: &Child, name: &str) {
        assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    }

    fn end(mut child: Child) -> ExitStatus {
        child.wait().unwrap()
    }

    #[test]
    fn the_first_signal_of_each_kind_raises_the_flag() {
        for name in ["-INT", "-TERM", "-HUP"] {
            let (child, mut out) = start("willing");
            signal(&child, name);
            wait_for(&mut out, "requested");
            assert_eq!(end(child).code(), Some(7), "{name}: the process itself decides its exit code");
        }
    }

    #[test]
    fn the_second_signal_ends_a_stuck_process_and_an_echo_of_the_first_does_not() {
        let (mut child, mut out) = start("stuck");
        signal(&child, "-INT");
        wait_for(&mut out, "requested");
        signal(&child, "-INT");
        std::thread::sleep(SAME_REQUEST + Duration::from_millis(100));
        assert_eq!(child.try_wait().unwrap(), None);
        signal(&child, "-INT");
        assert_eq!(end(child).code(), Some(INTERRUPTED));
    }

    #[test]
    fn clones_share_the_flag() {
        let interrupt = Interrupt::default();
        let clone = interrupt.clone();
        assert!(!clone.requested());
        interrupt.request();
        assert!(clone.requested());
    }
}
