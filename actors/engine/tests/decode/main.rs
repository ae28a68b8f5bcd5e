//! The decoder against its rules, an independent reading of the same changes, and real servers.

// The attribute tells clippy that these modules are tests, helpers included.
#[cfg(test)]
mod agreement;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod server;
