//! The probe: a small matrix product against the host's, run where a panic or a hang does no harm.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};

use super::DeviceError;

/// How long a GPU may take to come up and answer; the first shader compilation of a cold driver takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Side length of the probe's matrices: enough for a tiled kernel to run, small enough to be exact.
const PROBE: usize = 48;

/// A matrix product on the device against the host's.
pub(super) fn probe(device: &Device) -> Result<(), DeviceError> {
    let wrong = |reason: String| DeviceError::Probe { name: format!("{device:?}"), reason };
    // Small integers: every product and sum is exact in f32, so any difference is a fault, not rounding.
    let left: Vec<f32> = (0..PROBE * PROBE).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
    let right: Vec<f32> = (0..PROBE * PROBE).map(|i| ((i * 5) % 13) as f32 - 6.0).collect();
    let expected = host_product(&left, &right);
    let tensor = |values: Vec<f32>| Tensor::<2>::from_data(TensorData::new(values, [PROBE, PROBE]), device);
    let product = tensor(left).matmul(tensor(right));
    let data = product.try_into_data().map_err(|error| wrong(format!("{error:?}")))?;
    let got: Vec<f32> = data.iter::<f32>().collect();
    match got.iter().zip(&expected).position(|(got, expected)| got != expected) {
        None if got.len() == expected.len() => Ok(()),
        None => Err(wrong(format!("a product has {} elements instead of {}", got.len(), expected.len()))),
        Some(i) => Err(wrong(format!("a product is {} instead of {}", got[i], expected[i]))),
    }
}

fn host_product(left: &[f32], right: &[f32]) -> Vec<f32> {
    let mut product = vec![0.0; PROBE * PROBE];
    for row in 0..PROBE {
        for column in 0..PROBE {
            product[row * PROBE + column] =
                (0..PROBE).map(|k| left[row * PROBE + k] * right[k * PROBE + column]).sum();
        }
    }
    product
}

/// Probes under way: while there are any, panics are not printed.
static PROBING: AtomicUsize = AtomicUsize::new(0);

struct Quiet;

impl Quiet {
    fn begin() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
                // A driver that fails says so on threads of its own, which cannot be told apart.
                if PROBING.load(Ordering::SeqCst) == 0 {
                    usual(info);
                }
            }));
        });
        PROBING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        PROBING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs work that may panic or hang on a thread of its own; a panic becomes an error, and so does silence.
pub(super) fn quietly<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DeviceError> {
    let _quiet = Quiet::begin();
    let (sender, receiver) = channel();
    let thread = std::thread::Builder::new().name("device probe".to_owned()).spawn(move || {
        // The receiver is gone if patience ran out.
        let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
    });
    if let Err(error) = thread {
        return Err(DeviceError::Probe { name, reason: format!("no thread could be started ({error})") });
    }
    let reason = match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(panic)) => panic_words(panic.as_ref()),
        Err(RecvTimeoutError::Timeout) => format!("it did not answer within {} s", PATIENCE.as_secs()),
        Err(RecvTimeoutError::Disconnected) => "its thread ended without an answer".to_owned(),
    };
    Err(DeviceError::Probe { name, reason })
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    words.and_then(|words| words.lines().next()).unwrap_or("a panic without words").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_their_words_are_caught() {
        let error =
            quietly("a driver".into(), || -> () { panic!("no such library\nbacktrace") }).unwrap_err();
        assert_eq!(error, DeviceError::Probe { name: "a driver".into(), reason: "no such library".into() });
        assert_eq!(quietly("fine".into(), || 7), Ok(7));
    }
}
