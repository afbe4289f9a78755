//! Whatever the documents name of the tree is there.

use super::source::{read, root};

/// Parts of the tree whose files are named; anything else in backquotes is an address, a setting, or a file of others.
const BEGINS: &[&str] = &[
    "src/",
    "tests/",
    "benches/",
    "fuzz/",
    "docs/",
    "examples/",
    "web/",
    "scripts/",
    "migrations/",
    "deploy/",
    ".ci/",
];

fn documents() -> Vec<String> {
    let mut documents = vec!["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"];
    documents.retain(|name| root().join(name).exists());
    let mut documents: Vec<String> = documents.into_iter().map(str::to_owned).collect();
    for entry in std::fs::read_dir(root().join("docs")).expect("docs/") {
        let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    documents
}

/// Texts in backquotes on a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn every_file_that_a_document_names_is_there() {
    let (mut faults, mut seen) = (Vec::new(), 0);
    for document in documents() {
        for (number, line) in (1..).zip(read(&document).lines()) {
            for name in quoted(line).filter(|name| BEGINS.iter().any(|begin| name.starts_with(begin))) {
                let path = name.split(['*', '{', ' ', ':', '#']).next().expect("a text");
                // `tests/reports/` and `src/transcript/{a,b}.rs` name a folder.
                let is_whole = path == name;
                let there =
                    if is_whole { root().join(path) } else { root().join(path.rsplit_once('/').expect("a folder").0) };
                seen += 1;
                if !there.exists() {
                    faults.push(format!("{document}:{number}: {name}"));
                }
            }
        }
    }
    assert!(seen > 40, "{seen} names");
    assert!(faults.is_empty(), "not in the tree:\n{}", faults.join("\n"));
}

/// A row of a table of ARCHITECTURE.md, as its cells.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let text = read("ARCHITECTURE.md");
    let (_, section) =
        text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section \"{heading}\""));
    let section = section.split("\n## ").next().expect("its text");
    let is_row = |line: &&str| line.starts_with('|') && !line.starts_with("|---") && !line.starts_with("|-");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    section.lines().filter(is_row).skip(1).map(cells).collect()
}

#[test]
fn where_is_names_a_file_and_a_thing_in_it_for_each_behaviour() {
    let rows = rows("Where is …?");
    assert!(rows.len() >= 18, "{} behaviours", rows.len());
    for row in rows {
        let names: Vec<_> = quoted(&row[1]).collect();
        let files: Vec<_> = names.iter().filter(|name| name.starts_with("src/") || name.starts_with("web/")).collect();
        assert!(!files.is_empty(), "no file for: {}", row[0]);
        let texts: Vec<_> = files.iter().map(|file| read(file)).collect();
        for thing in names.iter().filter(|name| !name.contains('/')) {
            assert!(texts.iter().any(|text| text.contains(thing)), "{thing} is not in {files:?}: {}", row[0]);
        }
    }
}

#[test]
fn words_of_the_glossary_are_words_of_the_code() {
    let rows = rows("Words");
    assert!(rows.len() >= 20, "{} words", rows.len());
    let code: String = super::source::sources().into_iter().map(|source| source.text).collect();
    for row in rows {
        for name in quoted(&row[2]) {
            assert!(code.contains(name), "the code has no {name}, which stands for: {}", row[0]);
        }
    }
}
