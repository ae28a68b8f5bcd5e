//! What the operating system says of this process: memory, processor time, open files.

use std::fs;

/// Ticks of `/proc` a second; fixed in Linux' interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// Bytes of a page on every platform that we are built for.
const PAGE_BYTES: f64 = 4_096.0;

/// Sets the standard `process_*` gauges; does nothing where there is no `/proc`.
pub(crate) fn report_metrics() {
    if let Some(resident) = resident_pages() {
        metrics::gauge!("process_resident_memory_bytes").set(resident * PAGE_BYTES);
    }
    if let Some(ticks) = cpu_ticks() {
        metrics::gauge!("process_cpu_seconds_total").set(ticks / TICKS_PER_SECOND);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        let count = u32::try_from(files.count()).unwrap_or(u32::MAX);
        metrics::gauge!("process_open_fds").set(f64::from(count));
    }
}

fn resident_pages() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

/// User and system time: the 14th and 15th field, counted after the name, which may hold spaces.
fn cpu_ticks() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}
