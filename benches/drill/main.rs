//! `make drill`: every fault of the table, twice with zeros before a release. Arguments choose rows by a part of their
//! name, `--quick` those of `make test`; `--at-a-time N` runs so many beside each other (default 3).

mod harness;
#[path = "../../tests/support/mod.rs"]
mod support;

fn main() {
    let mut words = std::env::args().skip(1);
    let (mut wanted, mut at_a_time, mut quick) = (Vec::new(), 3, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--at-a-time" => at_a_time = words.next().and_then(|n| n.parse().ok()).expect("--at-a-time N"),
            "--quick" => quick = true,
            _ => wanted.push(word),
        }
    }
    let mut faults = harness::faults::all();
    faults.retain(|fault| fault.quick || !quick);
    faults.retain(|fault| wanted.is_empty() || wanted.iter().any(|part| fault.name.contains(part.as_str())));
    let rows = harness::run(faults, at_a_time);
    harness::report::print(&rows);
    std::process::exit(i32::from(rows.is_empty() || rows.iter().any(|row| !row.passed())));
}
