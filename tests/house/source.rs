//! Our own source, parsed, without its tests.

use std::path::{Path, PathBuf};

use syn::{Attribute, File, Item};

/// A file of `src/`.
pub struct Source {
    /// From the root of the tree, as `src/transcript/entry.rs`.
    pub path: String,
    pub text: String,
    pub file: File,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file of `src/` but those of tests, by path.
pub fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    paths.retain(|path| path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs"));
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a text file");
        let mut file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.items.retain(|item| !is_test(item));
        let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        Source { path, text, file }
    };
    let sources: Vec<_> = paths.into_iter().map(read).collect();
    assert!(sources.len() > 100, "the source is not where it was: {} files", sources.len());
    sources
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { walk(&path, paths) } else { paths.push(path) }
    }
}

/// `#[cfg(test)]` modules, functions and impls.
pub fn is_test(item: &Item) -> bool {
    let attributes = match item {
        Item::Mod(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(is_cfg_test)
}

fn is_cfg_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|ident| ident == "test")
}
