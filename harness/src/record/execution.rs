//! How a result came to be: program, device, host, times, memory. Nothing here enters an id or a hash.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How a result came to be. Nothing here enters an id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// Version of this program.
    pub version: String,
    /// Git revision it was built from, with `-dirty` where the tree was.
    pub revision: String,
    /// Device as the user would name it, and as the driver names it.
    pub device: String,
    /// Host name.
    pub host: String,
    /// Worker threads.
    pub threads: usize,
    /// Wall-clock start, RFC 3339, UTC.
    pub started: String,
    /// Wall-clock seconds of the whole stage.
    pub seconds: f64,
    /// Seconds in forward passes, and the tokens that went through them (0 where there were none).
    pub forward_seconds: f64,
    /// Tokens that went through the forward passes.
    pub tokens: u64,
    /// Peak resident memory of the process so far, bytes.
    pub peak_memory: u64,
    /// Where the weights were.
    #[serde(default)]
    pub weights: Residence,
    /// Of a measurement that was made in lockstep beside the original: √(Σ (x − y)² / Σ y²) of the residual stream x behind
    /// each block and the original's, y, over all tokens fed. Only lockstep gives it, so it is no part of the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub residual_errors: Vec<f64>,
    /// Of a cell, the ids of activation statistics that it read and that were at hand from a cell before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reused_statistics: Vec<String>,
    /// How rounded linear layers were multiplied; none where no recipe rounded any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed: Option<Executed>,
    /// What a measurement of `speed` found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
}

/// How fast a model was on a machine, at a moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// How often it was measured.
    pub rounds: u64,
    /// Tokens per second that are read in one pass.
    pub prefill_tokens_per_second: Spread,
    /// Seconds per token that is decoded.
    pub decode_seconds_per_token: Spread,
    /// Peak resident memory of the process, bytes.
    pub peak_memory: u64,
    /// Whether that is the peak of the rounds alone, and not of all before them.
    pub peak_is_of_rounds: bool,
    /// Bytes of the linear layers' weights that a token reads, as they were executed.
    pub weight_bytes: u64,
    /// The processor, as the system names it; empty where it does not.
    pub processor: String,
    /// Mean number of runnable threads in the last minute, before and after; 0 where the system does not tell.
    pub load: [f64; 2],
}

/// Values of several rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one, the lower of two.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub most: f64,
}

impl Spread {
    /// Of the values of some rounds; zeros where there are none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or_default();
        let last = values.len().saturating_sub(1);
        Self { median: at(last / 2), least: at(0), most: at(last) }
    }
}

/// How the rounded groups of a model were multiplied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// Name of the integer kernel; none where all was floating point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Groups of linear layers that were multiplied in integers.
    pub integer_groups: u64,
    /// Groups that were multiplied in floating point, by the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub floating_groups: BTreeMap<String, u64>,
}

impl Executed {
    /// Adds another part of the same model.
    pub fn join(&mut self, part: Self) {
        self.kernel = self.kernel.take().or(part.kernel);
        self.integer_groups += part.integer_groups;
        for (why, groups) in part.floating_groups {
            *self.floating_groups.entry(why).or_default() += groups;
        }
    }
}

/// Where a model's weights are while it is executed. No result depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Residence {
    /// All in memory, and one batch after the other goes through them.
    #[default]
    Resident,
    /// One part in memory at a time, and all batches go through it before the next part is read.
    Streamed,
}

/// An execution that has not ended yet.
#[derive(Clone, Debug)]
pub struct Underway {
    execution: Execution,
    /// `None` while it stands still.
    clock: Option<Instant>,
    /// Seconds before the clock was started.
    earlier: f64,
}

impl Execution {
    /// Starts the clock, and notes where and by what the work is done. `device` is what the user and the driver call it.
    pub fn begin(device: &str) -> Underway {
        let execution = Execution {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: env!("QUANTSCOPE_REVISION").into(),
            device: device.into(),
            host: host_name().into(),
            threads: rayon::current_num_threads(),
            started: now_rfc3339(),
            ..Execution::default()
        };
        Underway { execution, clock: Some(Instant::now()), earlier: 0.0 }
    }
}

impl Underway {
    /// Adds a forward pass: its wall seconds and the tokens that went through it.
    pub fn add_forward(&mut self, seconds: f64, tokens: u64) {
        self.execution.forward_seconds += seconds;
        self.execution.tokens += tokens;
    }

    /// Says that the weights are streamed.
    pub fn streams(&mut self) {
        self.execution.weights = Residence::Streamed;
    }

    /// Notes how far the residual stream was from the original's behind each block.
    pub fn beside_original(&mut self, errors: Vec<f64>) {
        self.execution.residual_errors = errors;
    }

    /// Stops the clock while other work is done.
    pub fn pause(&mut self) {
        self.earlier = self.seconds();
        self.clock = None;
    }

    /// Starts the clock again.
    pub fn resume(&mut self) {
        self.earlier = self.seconds();
        self.clock = Some(Instant::now());
    }

    /// Adds seconds of forward passes that were spent on this work before the clock was started.
    pub fn goes_on_from(&mut self, seconds: f64) {
        self.execution.forward_seconds += seconds;
        self.earlier += seconds;
    }

    /// Notes statistics that were at hand already.
    pub fn reuse_statistics(&mut self, ids: Vec<String>) {
        self.execution.reused_statistics = ids;
    }

    /// Notes how rounded linear layers are multiplied.
    pub fn execute(&mut self, executed: Executed) {
        self.execution.executed = Some(executed).filter(|executed| *executed != Executed::default());
    }

    /// Notes what a measurement of speed found.
    pub fn run_at(&mut self, speed: Speed) {
        self.execution.speed = Some(speed);
    }

    /// Wall seconds so far.
    pub fn seconds(&self) -> f64 {
        self.earlier + self.clock.map_or(0.0, |clock| clock.elapsed().as_secs_f64())
    }

    /// Stops the clock and notes the peak of the process's memory.
    pub fn finish(self) -> Execution {
        Execution { seconds: self.seconds(), peak_memory: peak_memory(), ..self.execution }
    }
}

/// This host's name in letters that are safe in a file name; `unknown` where the system does not tell.
pub fn host_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = sysinfo::System::host_name().unwrap_or_default();
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' }
        };
        let name: String = name.chars().take(64).map(safe).collect();
        if name.is_empty() { "unknown".into() } else { name }
    })
}

/// Peak resident memory of this process so far, bytes. Where the system keeps no peak (only Linux is asked), the
/// memory resident now; 0 where it tells nothing.
pub fn peak_memory() -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|status| high_water(&status)).unwrap_or_else(
        || {
            use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
            let pid = sysinfo::Pid::from_u32(std::process::id());
            let Ok(mut system) = System::new() else { return 0 };
            let only_memory = ProcessRefreshKind::nothing().with_memory();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, only_memory);
            system.process(pid).map_or(0, |process| process.memory())
        },
    )
}

/// Forgets the peak of this process's memory, so that [`peak_memory`] is of what follows; false where the system does not
/// let it (only Linux is asked). What was freed before goes back to the system first, where the allocator can be asked
/// (glibc): else what earlier work left behind would count.
pub fn reset_peak_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, by any thread, and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The processor, as the system names it; empty where it does not.
pub fn processor() -> String {
    use sysinfo::{CpuRefreshKind, RefreshKind, System};
    let only_processors = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
    let system = System::new_with_specifics(only_processors);
    system.ok().and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned())).unwrap_or_default()
}

/// Mean number of runnable threads in the last minute; 0 where the system does not tell.
pub fn load() -> f64 {
    sysinfo::System::load_average().map_or(0.0, |load| load.one)
}

/// `VmHWM` of `/proc/<pid>/status`, bytes.
fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The time now as RFC 3339 in UTC, to the second: `2026-01-31T09:05:00Z`.
pub fn now_rfc3339() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Seconds since 1970 as RFC 3339. The date is Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>): years begin in March, so that a leap day is a year's last.
fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_counting_days_one_by_one() {
        let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..60_000 {
            assert_eq!(rfc3339(days * 86_400 + 3_723), format!("{year:04}-{month:02}-{day:02}T01:02:03Z"));
            let length = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
        assert!(year > 2100, "the century that is no leap year was not reached");
        assert_eq!(rfc3339(1_000_000_000), "2001-09-09T01:46:40Z");
    }

    #[test]
    fn the_high_water_mark_is_read_in_bytes() {
        assert_eq!(
            high_water("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t   1234 kB\nVmRSS:\t 5 kB\n"),
            Some(1234 * 1024)
        );
        assert_eq!(high_water("Name:\tx\n"), None);
    }

    #[test]
    fn an_execution_knows_its_time_memory_and_program() {
        let mut underway = Execution::begin("cpu (flex)");
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        underway.add_forward(0.25, 10);
        underway.add_forward(0.5, 20);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let execution = underway.finish();
        assert_eq!((execution.forward_seconds, execution.tokens), (0.75, 30));
        assert!((0.02..60.0).contains(&execution.seconds));
        assert!(execution.peak_memory >= block.len() as u64, "{}", execution.peak_memory);
        assert!(execution.threads >= 1 && !execution.host.is_empty());
        let revision = execution.revision.trim_end_matches("-dirty");
        let hexadecimal = revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(hexadecimal || execution.revision == "unknown", "{}", execution.revision);
    }
}
