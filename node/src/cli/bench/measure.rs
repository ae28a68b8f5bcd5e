//! What a run costs: processor time and memory of this process and of a server, medians with their
//! spread.
//!
//! Reads clocks and `/proc`; decides nothing. Linux only, as the figures are.

use std::{cell::Cell, fs, time::Duration};

use anyhow::bail;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Ticks of `/proc` a second; fixed in Linux' interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// How often memory is looked at.
const MEMORY_EVERY: Duration = Duration::from_millis(20);

/// A median and how far the runs lie from it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    /// The middle one; of an even number the mean of the two middle ones.
    pub(super) median: f64,
    /// The smallest.
    pub(super) min: f64,
    /// The largest.
    pub(super) max: f64,
}

impl Spread {
    /// Returns `None` when there are no values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            min: *values.first()?,
            max: *values.last()?,
        })
    }
}

/// Processor time of this process, all threads, those that ended too.
pub(super) fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

/// Processor time of the children that ended and were waited for; in steps of 10 ms.
pub(super) fn children_cpu() -> Duration {
    let ticks = proc_stat("self").map_or(0.0, |stat| stat.ended_ticks);
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// What `/proc` tells of a process.
struct ProcStat {
    parent: u32,
    /// Its processor time.
    ticks: f64,
    /// That of its children that ended and were waited for.
    ended_ticks: f64,
}

/// Returns `None` when there is no such process.
fn proc_stat(process: &str) -> Option<ProcStat> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Counted after the name, which may hold spaces: state, parent, and from the 12th on user and
    // system time, of the process and of its children.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let times = fields.skip(9).take(4).map(|field| field.parse().ok());
    let times: Vec<f64> = times.collect::<Option<_>>()?;
    let (own, ended) = times.split_at_checked(2)?;
    Some(ProcStat {
        parent,
        ticks: own.iter().sum(),
        ended_ticks: ended.iter().sum(),
    })
}

/// Processor time of a server: of the process, of its children, and of those that have ended; in steps
/// of 10 ms.
pub(super) fn server_cpu(pid: u32) -> Duration {
    let own = proc_stat(&pid.to_string());
    let own = own.map_or(0.0, |stat| stat.ticks + stat.ended_ticks);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = processes.map(|entry| entry.file_name());
    let children = names.filter_map(|name| {
        let name = name.to_str()?;
        let is_process = name.starts_with(|first: char| first.is_ascii_digit());
        is_process.then(|| proc_stat(name)).flatten()
    });
    let children = children.filter(|stat| stat.parent == pid);
    let ticks = own + children.map(|stat| stat.ticks).sum::<f64>();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// Processor time of another process, all threads, in steps of 10 ms; zero when there is none.
pub(super) fn process_cpu(pid: u32) -> Duration {
    let ticks = proc_stat(&pid.to_string()).map_or(0.0, |stat| stat.ticks);
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// Resident memory of this process in MiB; 0 where there is no `/proc`.
pub(super) fn resident_mib() -> f64 {
    process_resident_mib("self")
}

/// Resident memory of a process in MiB; 0 when there is none.
pub(super) fn process_resident_mib(process: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

/// Waits for something and returns the most memory, in MiB, that was seen meanwhile as well.
pub(super) async fn with_memory<T>(
    memory: impl Fn() -> f64,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, f64)> {
    let peak = Cell::new(memory());
    let watch = async {
        loop {
            peak.set(peak.get().max(memory()));
            tokio::time::sleep(MEMORY_EVERY).await;
        }
    };
    let done = tokio::select! {
        done = work => done?,
        () = watch => bail!("memory is watched for ever"),
    };
    Ok((done, peak.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.min, odd.median, odd.max), (1.0, 2.0, 3.0));
        let even = Spread::of([4.0, 1.0]).unwrap();
        assert_eq!(even.median, 2.5);
    }

    #[test]
    fn work_costs_processor_time() {
        let before = own_cpu();
        let mut sum = 0_u64;
        while own_cpu() < before + Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(resident_mib() > 0.5);
        let own = proc_stat("self").unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(server_cpu(std::process::id()) >= children_cpu());
        assert_eq!(server_cpu(u32::MAX), Duration::ZERO);
    }
}
