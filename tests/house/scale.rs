//! docs/SCALE.md shows what its program prints.

#[path = "../../examples/scale/report/mod.rs"]
mod report;

use report::Load;

use super::source::{read, root};

const DOCUMENT: &str = "docs/SCALE.md";

/// The tables, by the heading that the program gives them.
fn tables() -> Vec<(String, String)> {
    let all = report::print(&Load::default());
    let table = |part: &str| {
        let (name, table) = part.split_once("\n\n").expect("a heading");
        (name.to_owned(), format!("{}\n", table.trim_end()))
    };
    let tables: Vec<_> = all.split("### ").skip(1).map(table).collect();
    assert!(tables.len() >= 8, "{} tables", tables.len());
    tables
}

/// `UPDATE_DOCS=1 cargo test --test house scale` writes them anew.
#[test]
fn the_document_shows_what_the_program_prints() {
    let mut document = read(DOCUMENT);
    for (name, table) in tables() {
        let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
        let from = document.find(&begin).unwrap_or_else(|| panic!("{DOCUMENT} has no {begin}")) + begin.len();
        let to = document.find(&end).unwrap_or_else(|| panic!("{DOCUMENT} has no {end}"));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            document.replace_range(from..to, &table);
        } else {
            assert_eq!(&document[from..to], table, "UPDATE_DOCS=1 cargo test --test house scale mends it");
        }
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(root().join(DOCUMENT), document).expect("written");
    }
}

/// Whoever doubts a figure looks there.
#[test]
fn the_sources_of_the_unit_costs_are_there() {
    let (_, table) = tables().swap_remove(0);
    let rows: Vec<_> = table.lines().skip(2).collect();
    assert!(rows.len() >= 15, "{} unit costs", rows.len());
    for row in rows {
        let source = row.trim_end_matches(" |").rsplit("| ").next().expect("a source");
        let file = source.trim_matches('`');
        assert!(source.starts_with("tried once") || root().join(file).exists(), "{row}");
    }
}
