//! The table of faults, by what breaks.

mod crowd;
mod database;
mod decoder;
mod nats;
mod network;
mod nodes;
mod process;
mod publisher;
mod recogniser;

use super::Fault;

/// Every row, in the order of the printed table.
pub fn all() -> Vec<Fault> {
    [
        decoder::FAULTS,
        recogniser::FAULTS,
        network::FAULTS,
        publisher::FAULTS,
        database::FAULTS,
        process::FAULTS,
        crowd::FAULTS,
        nodes::FAULTS,
        nats::FAULTS,
    ]
    .concat()
}

/// Those that strike the database, or the disk before it.
pub fn of_the_database() -> Vec<Fault> {
    database::FAULTS.to_vec()
}

pub fn beside_the_database() -> Vec<Fault> {
    [decoder::FAULTS, recogniser::FAULTS, publisher::FAULTS, process::FAULTS, crowd::FAULTS].concat()
}
