//! Counts by powers of two, with the interface that openraft uses.
//!
//! openraft counts the sizes of its batches for statistics that are asked for nowhere here. The
//! crate that it names keeps 26 MiB of tables for that in every process, more than the rest of an
//! idle node. This one has its name, and needs 520 bytes a histogram.

use std::{fmt, marker::PhantomData};

/// One place for zero and one for every number of significant bits.
const PLACES: usize = u64::BITS as usize + 1;

/// How often values of each size were recorded. `T` is data that goes with them, none here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; PLACES],
    data: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// Begins with nothing recorded.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: [0; PLACES],
            data: PhantomData,
        }
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value that many times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let bits = u64::BITS - value.leading_zeros();
        let place = usize::try_from(bits).unwrap_or_default();
        if let Some(count) = self.counts.get_mut(place) {
            *count = count.saturating_add(times);
        }
    }

    /// Returns how many values were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns values that so many of a thousand stay below, each as the power of two beneath it.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.permille(1),
            p1: self.permille(10),
            p5: self.permille(50),
            p10: self.permille(100),
            p50: self.permille(500),
            p90: self.permille(900),
            p99: self.permille(990),
            p99_9: self.permille(999),
        }
    }

    fn permille(&self, permille: u64) -> u64 {
        let wanted = self.total().saturating_mul(permille).div_ceil(1_000);
        let mut seen = 0;
        let place = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted.max(1)
        });
        match place {
            None | Some(0) => 0,
            Some(bits) => 1 << (bits - 1),
        }
    }
}

/// What parts of the values stay below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PercentileStats {
    /// Values.
    pub samples: u64,
    /// What 1 of 1,000 stays below.
    pub p0_1: u64,
    /// What 1 of 100 stays below.
    pub p1: u64,
    /// What 5 of 100 stay below.
    pub p5: u64,
    /// What 10 of 100 stay below.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// What 90 of 100 stay below.
    pub p90: u64,
    /// What 99 of 100 stay below.
    pub p99: u64,
    /// What 999 of 1,000 stay below.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            samples,
            p50,
            p90,
            p99,
            ..
        } = self;
        write!(f, "{samples} values, p50 {p50}, p90 {p90}, p99 {p99}")
    }
}

/// Histograms with a name each.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    named: Vec<(&'static str, PercentileStats)>,
}

impl AsciiChart {
    /// Begins without any.
    #[must_use]
    pub const fn new() -> Self {
        Self { named: Vec::new() }
    }

    /// Adds one.
    #[must_use]
    pub fn add(mut self, name: &'static str, histogram: Histogram) -> Self {
        self.named.push((name, histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stats) in &self.named {
            writeln!(f, "{name}: {stats}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_by_their_size() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        for value in [0, 1, 2, 3, 4, u64::MAX] {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, histogram.total()), (6, 6));
        assert_eq!((stats.p0_1, stats.p50, stats.p99), (0, 2, 1 << 63));
        let chart = AsciiChart::new().add("sizes", histogram);
        assert_eq!(chart.to_string(), format!("sizes: {stats}\n"));
    }

    #[test]
    fn one_is_small() {
        assert!(size_of::<Histogram>() <= 520);
    }
}
