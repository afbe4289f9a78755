//! Every promise at once, briefly: the quick rows of the fault drill. `make drill` runs the whole table.

#[path = "../benches/drill/harness/mod.rs"]
mod harness;
mod support;

/// Rows at a time: two minutes in all on two cores.
const AT_A_TIME: usize = 4;

#[test]
fn faults_cost_no_final_and_no_row() {
    let faults = harness::faults::all().into_iter().filter(|fault| fault.quick).collect();
    let rows = harness::run(faults, AT_A_TIME);
    harness::report::print(&rows);
    let failed: Vec<&str> = rows.iter().filter(|row| !row.passed()).map(|row| row.name.as_str()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
