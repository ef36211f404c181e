//! Devices: parsing a choice, probing hardware with a real operation, naming what was found.
//!
//! Burn's constructors are lazy and a missing driver shows itself as a panic on another thread, later. So nothing is
//! believed before a small matrix product has been read back and compared with the host's. GPUs other than CUDA's are
//! reached through wgpu with WGSL kernels; the adapter's graphics API is pinned, because the same card under another
//! API is another device.

mod probe;

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

use probe::{probe, quietly};

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best device that answers: CUDA, then Metal or Vulkan on hardware, then the CPU.
    #[default]
    Auto,
    /// Burn's flex back end.
    Cpu,
    /// An NVIDIA GPU by index.
    Cuda(usize),
    /// A GPU through wgpu on Vulkan, or with `software` a driver that computes on the CPU.
    Vulkan {
        /// Use llvmpipe, lavapipe or SwiftShader, never a GPU.
        software: bool,
    },
    /// A GPU through wgpu on Metal.
    Metal,
}

impl Choice {
    /// The spellings of `--device`.
    pub const VALID: &'static str = "auto, cpu, cuda, cuda:N, vulkan, vulkan:software, metal";
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Cuda(0) => f.write_str("cuda"),
            Choice::Cuda(n) => write!(f, "cuda:{n}"),
            Choice::Vulkan { software: false } => f.write_str("vulkan"),
            Choice::Vulkan { software: true } => f.write_str("vulkan:software"),
            Choice::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for Choice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (kind, detail) = match text.split_once(':') {
            Some((kind, detail)) => (kind, Some(detail)),
            None => (text, None),
        };
        match (kind, detail) {
            ("auto", None) => Ok(Choice::Auto),
            ("cpu", None) => Ok(Choice::Cpu),
            ("cuda", None) => Ok(Choice::Cuda(0)),
            ("cuda", Some(index)) if index.bytes().all(|b| b.is_ascii_digit()) => {
                index.parse().map(Choice::Cuda).map_err(|_| DeviceError::Unknown { text: text.to_owned() })
            }
            ("vulkan", None) => Ok(Choice::Vulkan { software: false }),
            ("vulkan", Some("software")) => Ok(Choice::Vulkan { software: true }),
            ("metal", None) => Ok(Choice::Metal),
            _ => Err(DeviceError::Unknown { text: text.to_owned() }),
        }
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The processor.
    Cpu,
    /// CUDA.
    Cuda,
    /// wgpu on Vulkan.
    Vulkan,
    /// wgpu on Metal.
    Metal,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Cpu => "CPU",
            Kind::Cuda => "CUDA",
            Kind::Vulkan => "Vulkan",
            Kind::Metal => "Metal",
        })
    }
}

/// A device that computed the probe correctly.
#[derive(Clone, Debug)]
pub struct Selected {
    /// For Burn.
    pub device: Device,
    /// For people, e.g. `CPU (flex, 2 threads)` or `Vulkan: NVIDIA GeForce RTX 4090`.
    pub name: String,
    /// What computes.
    pub kind: Kind,
    /// Under `auto`: what was tried before this one, and why it was not taken.
    pub passed_over: Vec<(Choice, DeviceError)>,
}

impl Selected {
    /// Repeats the probe: after a failure on the device thread, whether results can still be trusted.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Probe`] if it does not answer, or wrongly.
    pub fn still_works(&self) -> Result<(), DeviceError> {
        let device = self.device.clone();
        quietly(self.name.clone(), move || probe(&device)).and_then(|answer| answer)
    }
}

/// Why a device cannot be used. The command line exits with 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such spelling.
    #[error("`{text}` is no device; valid are {}", Choice::VALID)]
    Unknown {
        /// What was given.
        text: String,
    },
    /// The back end is not in this binary.
    #[error(
        "`{choice}` is not in this build; rebuild with `cargo build --release --features {feature}` (README)"
    )]
    NotBuilt {
        /// What was asked for.
        choice: Choice,
        /// The cargo feature that brings it.
        feature: &'static str,
    },
    /// No such hardware or driver.
    #[error("no device for `{choice}`: {reason}. {}", cure(*choice, present))]
    NotPresent {
        /// What was asked for.
        choice: Choice,
        /// Why.
        reason: String,
        /// Adapters that are there.
        present: Vec<String>,
    },
    /// There, but it does not compute.
    #[error("{name} is present but cannot be used: {reason}; update its driver, or use another --device")]
    Probe {
        /// The device.
        name: String,
        /// What happened.
        reason: String,
    },
}

impl DeviceError {
    /// The reason without the cure, for lists.
    pub fn brief(&self) -> String {
        match self {
            DeviceError::Unknown { .. } => self.to_string(),
            DeviceError::NotBuilt { feature, .. } => format!("not in this build (feature `{feature}`)"),
            DeviceError::NotPresent { reason, .. } | DeviceError::Probe { reason, .. } => reason.clone(),
        }
    }
}

fn cure(choice: Choice, present: &[String]) -> String {
    let there = match present {
        [] => "No GPU was found through this API".to_owned(),
        present => format!("There is: {}", present.join("; ")),
    };
    let software = present.iter().any(|adapter| adapter.contains("software")) && choice != Choice::Auto;
    let hint = if software { ", or --device vulkan:software for that driver" } else { "" };
    format!("{there}. Use --device cpu{hint}, or install the driver and look at `quantscope doctor`")
}

/// Selects and probes a device.
///
/// `auto` takes the first that answers, and the CPU always does: [`Selected::passed_over`] says what did not. A named
/// device is taken or it is an error.
///
/// # Errors
///
/// See [`DeviceError`].
pub fn select(choice: Choice) -> Result<Selected, DeviceError> {
    match choice {
        Choice::Auto => {
            let gpu =
                if cfg!(target_os = "macos") { Choice::Metal } else { Choice::Vulkan { software: false } };
            let mut passed_over = Vec::new();
            for candidate in [Choice::Cuda(0), gpu] {
                match select(candidate) {
                    Ok(selected) => {
                        return Ok(Selected { passed_over, ..selected });
                    }
                    Err(error) => passed_over.push((candidate, error)),
                }
            }
            Ok(Selected { passed_over, ..cpu() })
        }
        Choice::Cpu => Ok(cpu()),
        Choice::Cuda(index) => cuda(index),
        Choice::Vulkan { .. } | Choice::Metal => adapters::select(choice),
    }
}

fn cpu() -> Selected {
    let threads = rayon::current_num_threads();
    let name = format!("CPU (flex, {threads} thread{})", if threads == 1 { "" } else { "s" });
    Selected { device: Device::flex(), name, kind: Kind::Cpu, passed_over: Vec::new() }
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<Selected, DeviceError> {
    Err(DeviceError::NotBuilt { choice: Choice::Cuda(index), feature: "cuda" })
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Selected, DeviceError> {
    let choice = Choice::Cuda(index);
    quietly(format!("CUDA device {index}"), move || {
        // Asks the driver's library, if there is one; creates no context.
        let count = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().len();
        if index >= count {
            let reason = match count {
                0 => "libcuda was not found, or reports no GPU".to_owned(),
                count => format!("there {} only {count}", if count == 1 { "is" } else { "are" }),
            };
            let present = (0..count).map(|n| format!("cuda:{n}")).collect();
            return Err(DeviceError::NotPresent { choice, reason, present });
        }
        let device = Device::cuda(index);
        probe(&device)?;
        let name = device.identity().map_or_else(|| format!("device {index}"), |identity| identity.name);
        Ok(Selected { name: format!("CUDA: {name}"), device, kind: Kind::Cuda, passed_over: Vec::new() })
    })?
}

#[cfg(not(feature = "wgpu"))]
mod adapters {
    //! Without wgpu there are no adapters.

    use super::{Choice, DeviceError, Selected};

    pub fn select(choice: Choice) -> Result<Selected, DeviceError> {
        Err(DeviceError::NotBuilt { choice, feature: "wgpu" })
    }
}

#[cfg(feature = "wgpu")]
mod adapters {
    //! GPUs through wgpu, on one named graphics API.

    use std::sync::{Mutex, OnceLock};

    use burn::tensor::wgpu::{WgpuBackend, wgpu};
    use burn::tensor::{Device, DeviceKind};

    use super::{Choice, DeviceError, Kind, Selected, probe, quietly};

    /// Devices that are up. Burn initialises each once per process and refuses a second time.
    static UP: Mutex<Vec<(Choice, Selected)>> = Mutex::new(Vec::new());

    pub fn select(choice: Choice) -> Result<Selected, DeviceError> {
        let mut up = UP.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, selected)) = up.iter().find(|(known, _)| *known == choice) {
            return Ok(selected.clone());
        }
        let selected = quietly(choice.to_string(), move || open(choice))??;
        up.push((choice, selected.clone()));
        Ok(selected)
    }

    fn open(choice: Choice) -> Result<Selected, DeviceError> {
        let (kind, api, backend) = match choice {
            Choice::Metal => (Kind::Metal, WgpuBackend::Metal, wgpu::Backends::METAL),
            _ => (Kind::Vulkan, WgpuBackend::Vulkan, wgpu::Backends::VULKAN),
        };
        let wants_software = choice == (Choice::Vulkan { software: true });
        let found = list(backend);
        let present = found.iter().map(describe).collect();
        let absent = |reason: &str| DeviceError::NotPresent { choice, reason: reason.to_owned(), present };
        let has = |wanted: wgpu::DeviceType| found.iter().any(|info| info.device_type == wanted);
        let wanted = if wants_software {
            if !has(wgpu::DeviceType::Cpu) {
                return Err(absent("there is no software driver (lavapipe is in mesa-vulkan-drivers)"));
            }
            DeviceKind::Cpu
        } else if has(wgpu::DeviceType::DiscreteGpu) {
            DeviceKind::DiscreteGpu(0)
        } else if has(wgpu::DeviceType::IntegratedGpu) {
            DeviceKind::IntegratedGpu(0)
        } else if has(wgpu::DeviceType::VirtualGpu) {
            DeviceKind::VirtualGpu(0)
        } else if has(wgpu::DeviceType::Other) && !has(wgpu::DeviceType::Cpu) {
            // Burn cannot name an unclassified adapter; alone, it is the default one.
            DeviceKind::DefaultDevice
        } else if has(wgpu::DeviceType::Cpu) {
            return Err(absent("only a software driver is there"));
        } else if found.is_empty() {
            return Err(absent("no driver, or no adapter"));
        } else {
            return Err(absent("no adapter can be chosen"));
        };
        let (device, setup) =
            Device::wgpu_options().device_kind(wanted).graphics_api(api).init_with_setup().map_err(
                |error| DeviceError::Probe { name: choice.to_string(), reason: error.to_string() },
            )?;
        let info = setup.adapter.get_info();
        probe(&device)?;
        Ok(Selected { device, name: format!("{kind}: {}", describe(&info)), kind, passed_over: Vec::new() })
    }

    fn describe(info: &wgpu::AdapterInfo) -> String {
        match info.device_type {
            wgpu::DeviceType::Cpu => format!("{} (software)", info.name),
            _ => info.name.clone(),
        }
    }

    /// The adapters of a graphics API; none where its library is missing.
    fn list(backend: wgpu::Backends) -> Vec<wgpu::AdapterInfo> {
        // One instance for the process: the Vulkan loader does not survive instances that come and go.
        static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
        let instance = INSTANCE.get_or_init(|| {
            wgpu::Instance::new(wgpu::InstanceDescriptor {
                backends: wgpu::Backends::VULKAN | wgpu::Backends::METAL,
                ..wgpu::InstanceDescriptor::new_without_display_handle()
            })
        });
        burn::tensor::try_read_sync(instance.enumerate_adapters(backend))
            .unwrap_or_default()
            .iter()
            .map(wgpu::Adapter::get_info)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_parses_and_prints_back() {
        for text in ["auto", "cpu", "cuda", "cuda:3", "vulkan", "vulkan:software", "metal"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda:0".parse::<Choice>(), Ok(Choice::Cuda(0)));
    }

    #[test]
    fn a_wrong_spelling_lists_the_valid_ones() {
        for text in
            ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cpu:0", "vulkan:hardware", "CPU", "auto:1"]
        {
            let message = text.parse::<Choice>().unwrap_err().to_string();
            assert!(message.contains(&format!("`{text}`")) && message.ends_with(Choice::VALID), "{message}");
        }
    }

    #[test]
    fn the_cpu_is_always_there_and_passes_the_probe() {
        let cpu = select(Choice::Cpu).unwrap();
        assert_eq!(cpu.kind, Kind::Cpu);
        assert!(cpu.name.starts_with("CPU (flex, "), "{}", cpu.name);
        cpu.still_works().unwrap();
    }

    #[test]
    fn auto_always_finds_a_working_device_and_never_a_software_gpu() {
        let auto = select(Choice::Auto).unwrap();
        assert!(!auto.name.contains("software"), "{}", auto.name);
        auto.still_works().unwrap();
        if auto.kind == Kind::Cpu {
            assert_eq!(auto.passed_over.len(), 2, "{:?}", auto.passed_over);
        }
    }

    #[test]
    fn a_named_device_works_or_says_what_there_is() {
        for choice in [Choice::Cuda(7), Choice::Vulkan { software: true }, Choice::Metal] {
            match select(choice) {
                Ok(selected) => selected.still_works().unwrap(),
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains("--device") || message.contains("--features"), "{message}");
                }
            }
        }
    }
}
