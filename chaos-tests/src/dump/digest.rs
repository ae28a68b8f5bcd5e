//! Rows as hashes: 128 bits for the columns that are always sent, and 128 for each wide one.
//!
//! A copy of 20 million rows must fit beside a PostgreSQL, so it keeps no values. A hash cannot hide
//! an error: it covers for each column whether it is NULL, its length and every byte, so that equal
//! hashes of different rows would have to be an accident of one in 2^128. Wide columns have hashes of
//! their own, because an update leaves out those that it does not change.

use std::hash::{DefaultHasher, Hasher};

/// One hash; never [`Self::UNKNOWN`] for a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest([u64; 2]);

impl Digest {
    /// No value was ever received.
    pub const UNKNOWN: Self = Self([0, 0]);
}

/// Hashes values one after another.
#[derive(Debug)]
pub struct Digester([DefaultHasher; 2]);

impl Default for Digester {
    fn default() -> Self {
        // The same function over different beginnings gives two independent halves.
        let mut halves = [DefaultHasher::new(), DefaultHasher::new()];
        for (half, number) in halves.iter_mut().zip(1_u8..) {
            half.write_u8(number);
        }
        Self(halves)
    }
}

impl Digester {
    /// Adds a value; `None` is NULL.
    pub fn add(&mut self, value: Option<&[u8]>) {
        for half in &mut self.0 {
            match value {
                None => half.write_u64(u64::MAX),
                Some(bytes) => {
                    half.write_u64(bytes.len() as u64);
                    half.write(bytes);
                }
            }
        }
    }

    /// Returns the hash of all that was added.
    #[must_use]
    pub fn finish(self) -> Digest {
        let [first, second] = self.0.map(|half| half.finish());
        Digest([first.max(1), second])
    }
}

/// Hashes one value.
#[must_use]
pub fn digest(value: Option<&[u8]>) -> Digest {
    let mut digester = Digester::default();
    digester.add(value);
    digester.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_empty_and_where_a_value_ends_all_count() {
        let of = |values: &[Option<&[u8]>]| {
            let mut digester = Digester::default();
            values.iter().for_each(|value| digester.add(*value));
            digester.finish()
        };
        let all = [
            of(&[None]),
            of(&[Some(b"")]),
            of(&[Some(b"ab"), Some(b"c")]),
            of(&[Some(b"a"), Some(b"bc")]),
            Digest::UNKNOWN,
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all.iter().skip(index + 1).any(|other| one == other));
        }
        assert_eq!(of(&[Some(b"ab")]), digest(Some(b"ab")));
    }
}
