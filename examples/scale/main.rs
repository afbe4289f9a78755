//! How large a fleet has to be, what breaks first, and how it comes back: the tables of docs/SCALE.md.
//!
//! `cargo run --example scale -- --sessions 10000 --viewers 1000000 --cores 8 --gib 16 --seed 11`

mod report;

use report::Load;

fn main() {
    let mut load = Load::default();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().and_then(|value| value.parse().ok()).filter(|value| *value > 0.0);
        let value: f64 = value.unwrap_or_else(|| panic!("{name} needs a number above 0"));
        match name.as_str() {
            "--sessions" => load.sessions = value,
            "--viewers" => load.viewers = value,
            "--cores" => load.cores = value,
            "--gib" => load.gib = value,
            "--seed" => load.seed = value as u64,
            other => panic!("{other} is not known; allowed: --sessions, --viewers, --cores, --gib, --seed"),
        }
    }
    print!("{}", report::print(&load));
}
