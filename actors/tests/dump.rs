//! Reading existing rows from real servers: what is read, at which position, and what can go wrong.

#[cfg(test)]
#[path = "dump/faults.rs"]
mod faults;
#[cfg(test)]
#[path = "dump/planning.rs"]
mod planning;
#[cfg(test)]
#[path = "dump/positions.rs"]
mod positions;
#[cfg(test)]
#[path = "dump/ranges.rs"]
mod ranges;
#[cfg(test)]
#[path = "dump/world.rs"]
mod world;
#[cfg(test)]
#[path = "dump/zoo.rs"]
mod zoo;
