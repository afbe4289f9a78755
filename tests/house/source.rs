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
    let parsed = |path: String| {
        let text = read(&path);
        let mut file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        file.items.retain(|item| !is_test(item));
        Source { path, text, file }
    };
    let paths = rust_files("src").into_iter().filter(|path| !path.ends_with("/tests.rs"));
    let sources: Vec<_> = paths.map(parsed).collect();
    assert!(sources.len() > 100, "the source is not where it was: {} files", sources.len());
    sources
}

/// Rust files below a folder of the tree, by path.
pub fn rust_files(folder: &str) -> Vec<String> {
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    let below_root = |path: PathBuf| path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
    let mut paths: Vec<_> = paths.into_iter().map(below_root).filter(|path| path.ends_with(".rs")).collect();
    paths.sort();
    paths
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
