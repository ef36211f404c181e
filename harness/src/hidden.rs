//! Hidden states of many sequences between two parts of a model: in memory as long as there is room, then in a temporary
//! file. They are kept in f32, so that nothing depends on where they lie.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{Device, Tensor, TensorData};

/// Bytes of hidden states that this process keeps in memory, of all that are held at a time.
pub const IN_MEMORY: u64 = 1 << 30;

/// Bytes held in memory now.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Batches of hidden states, `[sequences, tokens, hidden]` each.
#[derive(Debug, Default)]
pub struct Hidden {
    batches: Vec<Batch>,
    /// Unnamed, and gone with the process.
    file: Option<File>,
    end: u64,
}

#[derive(Debug)]
struct Batch {
    shape: [usize; 3],
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Box<Tensor<3>>),
    /// From here on.
    File(u64),
}

impl Hidden {
    /// How many batches there are.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The shape of a batch.
    pub fn shape(&self, batch: usize) -> [usize; 3] {
        self.batches[batch].shape
    }

    /// Adds a batch behind the others.
    ///
    /// # Errors
    /// A temporary file that cannot be written.
    pub fn push(&mut self, x: Tensor<3>) -> io::Result<()> {
        let shape = x.dims();
        let bytes = bytes_of(shape);
        let fits = |held: u64| (held + bytes <= IN_MEMORY).then_some(held + bytes);
        let place = match HELD.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits) {
            Ok(_) => Place::Memory(Box::new(x)),
            Err(_) => {
                let start = self.end;
                self.write(start, x)?;
                self.end += bytes;
                Place::File(start)
            }
        };
        self.batches.push(Batch { shape, place });
        Ok(())
    }

    /// A batch on a device.
    ///
    /// # Errors
    /// A temporary file that cannot be read.
    pub fn get(&mut self, batch: usize, device: &Device) -> io::Result<Tensor<3>> {
        let shape = self.batches[batch].shape;
        let start = match &self.batches[batch].place {
            Place::Memory(x) => return Ok((**x).clone()),
            Place::File(start) => *start,
        };
        let values = self.read(start, shape.iter().product())?;
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Puts other states of its shape in a batch's place.
    ///
    /// # Errors
    /// A temporary file that cannot be written.
    ///
    /// # Panics
    /// If the shape is another.
    pub fn put(&mut self, batch: usize, x: Tensor<3>) -> io::Result<()> {
        assert_eq!(x.dims(), self.batches[batch].shape, "a block keeps the shape of hidden states");
        let start = match &mut self.batches[batch].place {
            Place::Memory(old) => {
                **old = x;
                return Ok(());
            }
            Place::File(start) => *start,
        };
        self.write(start, x)
    }

    /// The same states once more, to be led another way.
    ///
    /// # Errors
    /// A temporary file that cannot be read or written.
    pub fn copied(&mut self, device: &Device) -> io::Result<Self> {
        let mut copy = Self::default();
        for batch in 0..self.len() {
            copy.push(self.get(batch, device)?)?;
        }
        Ok(copy)
    }

    fn write(&mut self, start: u64, x: Tensor<3>) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => tempfile::tempfile()?,
        };
        file.seek(SeekFrom::Start(start))?;
        let bytes: Vec<u8> = values(x).iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes)?;
        self.file = Some(file);
        Ok(())
    }

    fn read(&mut self, start: u64, count: usize) -> io::Result<Vec<f32>> {
        let file = self.file.as_mut().expect("what is in the file was written to it");
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; 4 * count];
        file.read_exact(&mut bytes)?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let held = self.batches.iter().map(|batch| match &batch.place {
            Place::Memory(_) => bytes_of(batch.shape),
            Place::File(_) => 0,
        });
        HELD.fetch_sub(held.sum(), Ordering::SeqCst);
    }
}

fn bytes_of(shape: [usize; 3]) -> u64 {
    4 * shape.iter().product::<usize>() as u64
}

fn values(x: Tensor<3>) -> Vec<f32> {
    let data = x.try_into_data().expect("the device answers");
    data.try_into_vec::<f32>().expect("hidden states are f32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor<3> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, 1, values.len()]), &Device::flex())
    }

    #[test]
    fn what_is_kept_in_a_file_reads_back_as_it_was_and_can_be_replaced() {
        let device = Device::flex();
        let mut hidden = Hidden::default();
        hidden.push(tensor(&[1.0, -2.5])).unwrap();
        // As if the memory were full: the next ones go to the file.
        HELD.fetch_add(IN_MEMORY, Ordering::SeqCst);
        hidden.push(tensor(&[3.0, f32::MIN_POSITIVE, 5.0])).unwrap();
        hidden.push(tensor(&[6.0])).unwrap();
        HELD.fetch_sub(IN_MEMORY, Ordering::SeqCst);
        let places: Vec<bool> = hidden.batches.iter().map(|b| matches!(b.place, Place::File(_))).collect();
        assert_eq!(places[1..], [true, true]);
        hidden.put(1, tensor(&[7.0, 8.0, -0.0])).unwrap();
        hidden.put(0, tensor(&[9.0, 1.0])).unwrap();
        let read = |hidden: &mut Hidden, batch| values(hidden.get(batch, &device).unwrap());
        assert_eq!(read(&mut hidden, 2), [6.0]);
        assert_eq!(
            read(&mut hidden, 1).iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            [7.0f32, 8.0, -0.0].map(f32::to_bits)
        );
        assert_eq!(read(&mut hidden, 0), [9.0, 1.0]);
        let mut copy = hidden.copied(&device).unwrap();
        copy.put(2, tensor(&[4.0])).unwrap();
        assert_eq!((read(&mut hidden, 2), read(&mut copy, 2)), (vec![6.0], vec![4.0]));
    }
}
