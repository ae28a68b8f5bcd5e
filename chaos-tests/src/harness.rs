//! The world of a run: real processes, each ended and reaped when its owner is dropped, and ended
//! when the harness is killed.

mod caretaker;
pub mod node;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod sql;
pub mod wait;
