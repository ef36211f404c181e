//! CPython's `random.Random`: the Mersenne Twister (Matsumoto, Nishimura, 1998, doi:10.1145/272991.272995) with Python's
//! seeding, `getrandbits`, `randrange`, `sample`, `shuffle` and `choices`.
//!
//! Tested against values that CPython printed (`scripts/oracle/task_golden.py`).

const N: usize = 624;
const M: usize = 397;

/// `random.Random(seed)` of an integer seed.
#[derive(Clone)]
pub struct Random {
    state: [u32; N],
    next: usize,
}

impl Random {
    /// Python seeds by the 32-bit limbs of the number's absolute value, lowest first.
    pub fn new(seed: u64) -> Self {
        let limbs = [seed as u32, (seed >> 32) as u32];
        let key = if limbs[1] == 0 { &limbs[..1] } else { &limbs[..] };
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = 1_812_433_253u32.wrapping_mul(previous).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] =
                (state[i] ^ previous.wrapping_mul(1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            i += 1;
            j = (j + 1) % key.len();
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ previous.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Self { state, next: N }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `random()`: 53 bits in [0, 1).
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.next_u32() >> 5, self.next_u32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `getrandbits(bits)` for 1 to 64 bits.
    pub fn bits(&mut self, bits: u32) -> u64 {
        let low = u64::from(self.next_u32() >> (32 - bits.min(32)));
        if bits <= 32 { low } else { low | u64::from(self.next_u32() >> (64 - bits)) << 32 }
    }

    /// `randrange(n)`, uniform in 0..n; `n` is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = self.bits(bits) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: `k` different numbers below `n`, in the order drawn; `None` where `k` exceeds `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Option<Vec<usize>> {
        if k > n {
            return None;
        }
        // Python keeps a list of what is left where that is smaller than a set of what was drawn; the draws differ.
        let mut set_size = 21.0;
        if k > 5 {
            set_size += 4f64.powf(((k as f64 * 3.0).ln() / 4f64.ln()).ceil());
        }
        let mut drawn = Vec::with_capacity(k);
        if n as f64 <= set_size {
            let mut left: Vec<usize> = (0..n).collect();
            for i in 0..k {
                let j = self.below(n - i);
                drawn.push(left[j]);
                left[j] = left[n - i - 1];
            }
        } else {
            let mut seen = std::collections::HashSet::with_capacity(k);
            for _ in 0..k {
                let mut j = self.below(n);
                while !seen.insert(j) {
                    j = self.below(n);
                }
                drawn.push(j);
            }
        }
        Some(drawn)
    }

    /// `shuffle(items)`
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `choices(range(n), k=1)[0]`: one draw with replacement.
    pub fn choice(&mut self, n: usize) -> usize {
        (self.random() * n as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(Random::new(0).next_u32(), 3_626_764_237);
        let mut random = Random::new(0);
        let drawn: Vec<usize> = (0..8).map(|_| random.below(339_421)).collect();
        assert_eq!(drawn, [201_979, 220_500, 21_225, 135_746, 268_055, 254_766, 212_302, 159_023]);
        assert_eq!(Random::new(1).sample(3, 4), None);
    }
}
