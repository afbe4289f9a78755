//! The table of faults, by what breaks.

mod crowd;
mod database;
mod decoder;
mod process;
mod publisher;
mod recogniser;

use super::Fault;

/// Every row, in the order of the printed table.
pub fn all() -> Vec<Fault> {
    [decoder::FAULTS, recogniser::FAULTS, publisher::FAULTS, database::FAULTS, process::FAULTS, crowd::FAULTS].concat()
}
