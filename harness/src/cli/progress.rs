//! What a user sees of a sweep: a bar with an ETA on a terminal, one line per event elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::record::execution::Residence;
use crate::run::{Event, Observer};

/// Draws on stderr.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Cells of the plan, and the position of the one at work.
    cells: (usize, usize),
    started: Instant,
    /// Work of cells that were computed now, for the estimate: reused ones cost nothing.
    computed: usize,
    download: Option<(String, u64)>,
}

impl Progress {
    /// For a plan of `cells` cells.
    pub fn new(cells: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            bar.set_style(
                ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { bar, cells: (cells, 0), started: Instant::now(), computed: 0, download: None }
    }

    /// A line that stays.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => super::say(text),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Time left, from the cells computed so far.
    fn eta(&self, share_of_cell: f64) -> String {
        let (total, index) = self.cells;
        let done = self.computed as f64 + share_of_cell;
        if done < 0.05 {
            return String::new();
        }
        let left = (total - index) as f64 - share_of_cell;
        let seconds = self.started.elapsed().as_secs_f64() / done * left.max(0.0);
        format!("about {} left", duration(seconds))
    }
}

impl Observer for Progress {
    fn event(&mut self, event: Event) {
        match event {
            Event::Opening { model } => {
                if let Some(bar) = &self.bar {
                    bar.set_prefix(format!("opening {model}"));
                }
            }
            Event::Download { file, done, total } => self.downloading(file, done, total),
            Event::Opened { model, parameters, memory, residence } => self.line(&format!(
                "{model}: {:.1} M parameters; estimated peak memory {}{}",
                parameters as f64 / 1e6,
                HumanBytes(memory),
                if residence == Residence::Streamed { ", block by block" } else { "" },
            )),
            Event::Warning { text } => self.line(&format!("warning: {text}")),
            Event::CellStarted { index, total, cell } => {
                self.cells = (total, index);
                let name = format!("[{}/{total}] {} · {}", index + 1, cell.model.label, cell.recipe.name);
                if let Some(bar) = &self.bar {
                    bar.set_prefix(name);
                    bar.set_position(0);
                    bar.set_length(1);
                }
            }
            Event::Calibrating { samples } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("calibrating on {samples} samples"));
                }
            }
            Event::Progress { done, total } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(total as u64);
                    bar.set_position(done as u64);
                    bar.set_message(self.eta(done as f64 / total.max(1) as f64));
                }
            }
            Event::Measured { cell, measurement, reused, seconds } => {
                if !reused {
                    self.computed += 1;
                }
                let stderr = measurement.stderr.map(|s| format!(" ± {}", digits(s, 2))).unwrap_or_default();
                let how = if reused { "already there".into() } else { duration(seconds) };
                self.line(&format!(
                    "{} · {}: {} = {}{stderr}  ({how})",
                    cell.model.label,
                    cell.recipe.name,
                    measurement.metric,
                    digits(measurement.value, 5),
                ));
            }
            Event::Failed { cell, failure, earlier } => {
                let again =
                    if earlier { "; failed in an earlier run, --retry-failed tries again" } else { "" };
                self.line(&format!(
                    "FAILED {} · {} at {}: {}\n  cure: {}{again}",
                    cell.model.label, cell.recipe.name, failure.stage, failure.message, failure.cure
                ));
            }
            Event::Missed { expectation, value } => self.line(&format!(
                "EXPECTATION MISSED {} · {}: {} = {}, expected {} ± {} ({})",
                expectation.model,
                expectation.recipe,
                expectation.metric,
                digits(value, 6),
                expectation.value,
                expectation.tolerance,
                expectation.source
            )),
            Event::Waiting { cells } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("waiting for another process ({cells} cells)"));
                }
            }
        }
    }
}

impl Progress {
    fn downloading(&mut self, file: &str, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("fetching {file}"));
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{} of {}", HumanBytes(done), HumanBytes(total)));
            return;
        }
        // Without a terminal a line per tenth is enough.
        let tenth = (10 * done).checked_div(total).unwrap_or(10);
        if self.download.as_ref().is_none_or(|(name, last)| name != file || *last != tenth) {
            self.line(&format!("fetching {file}: {} of {}", HumanBytes(done), HumanBytes(total)));
            self.download = Some((file.into(), tenth));
        }
    }
}

/// A number with so many significant digits, no more than it has.
fn digits(value: f64, significant: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let decimals = (significant - 1 - value.abs().log10().floor() as i32).max(0);
    format!("{value:.*}", decimals as usize)
}

/// Seconds as people say them.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(digits(29.91934, 5), "29.919");
        assert_eq!(digits(123456.7, 5), "123457");
        assert_eq!(digits(0.01234, 2), "0.012");
        assert_eq!(digits(0.0, 2), "0");
        assert_eq!(
            [duration(1.23), duration(75.0), duration(600.0), duration(9000.0)],
            ["1.2 s", "75 s", "10 min", "2.5 h"]
        );
    }
}
