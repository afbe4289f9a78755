//! Modules import what the table "Layers" of ARCHITECTURE.md allows, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{ItemUse, Macro, Path, UseTree};

use super::source::{Source, read, sources};

/// What a module may import, from the table.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let text = read("ARCHITECTURE.md");
    let (_, section) = text.split_once("\n## Layers\n").expect("a section \"Layers\"");
    let section = section.split("\n## ").next().expect("its text");
    let mut table = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
        for module in names(cells[0]) {
            let earlier = table.insert(module.clone(), names(cells[1]));
            assert!(earlier.is_none(), "`{module}` stands twice in the table");
        }
    }
    assert!(table.len() > 10, "the table has {} modules", table.len());
    table
}

/// The module of the first level that a file belongs to: `src/transcript/entry.rs` to `log`.
fn module_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").expect("a file of src");
    let first = below.split('/').next().expect("a name");
    first.strip_suffix(".rs").unwrap_or(first)
}

/// Modules of the crate that a file names, with their lines.
#[derive(Default)]
struct Imports(Vec<(String, usize)>);

impl Imports {
    fn of(source: &Source) -> Self {
        let mut imports = Self::default();
        imports.visit_file(&source.file);
        imports
    }

    fn tree(&mut self, tree: &UseTree, line: usize) {
        match tree {
            UseTree::Path(path) if path.ident == "crate" || path.ident == "stenocast" => self.roots(&path.tree, line),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, line)),
            _ => {}
        }
    }

    fn roots(&mut self, tree: &UseTree, line: usize) {
        match tree {
            UseTree::Path(path) => self.0.push((path.ident.to_string(), line)),
            UseTree::Name(name) => self.0.push((name.ident.to_string(), line)),
            UseTree::Rename(rename) => self.0.push((rename.ident.to_string(), line)),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.roots(tree, line)),
            UseTree::Glob(_) => self.0.push(("*".to_owned(), line)),
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.tree(&item.tree, item.span().start().line);
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|first| first.ident == "crate" || first.ident == "stenocast")
            && let Some(second) = segments.next()
        {
            self.0.push((second.ident.to_string(), path.span().start().line));
        }
        visit::visit_path(self, path);
    }

    /// Macros of other crates hold paths as mere tokens.
    fn visit_macro(&mut self, mac: &'ast Macro) {
        let line = mac.span().start().line;
        let text = mac.tokens.to_string().replace(' ', "");
        let after = text.split("crate::").skip(1);
        let name = |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned();
        self.0.extend(after.map(|rest| (name(rest), line)));
    }
}

#[test]
fn modules_import_what_the_table_of_architecture_md_allows() {
    let allowed = allowed();
    let sources = sources();
    let modules: BTreeSet<_> =
        sources.iter().map(|source| module_of(&source.path)).filter(|name| *name != "lib").collect();
    let named: BTreeSet<_> = allowed.keys().map(String::as_str).collect();
    assert_eq!(modules, named, "modules of src, and those in the table of ARCHITECTURE.md");
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.path != "src/lib.rs") {
        let own = module_of(&source.path);
        for (module, line) in Imports::of(source).0 {
            // Anything else that begins so is a macro of the crate.
            let is_module = module == "*" || modules.contains(&*module);
            if is_module && module != own && !allowed[own].contains(&module) {
                faults.push(format!("{}:{line}: `{own}` imports `{module}`", source.path));
            }
        }
    }
    assert!(faults.is_empty(), "not in the table \"Layers\" of ARCHITECTURE.md:\n{}", faults.join("\n"));
}

#[test]
fn no_permission_of_the_table_is_left_over() {
    let mut left = allowed();
    for source in &sources() {
        if let Some(left) = left.get_mut(module_of(&source.path)) {
            for (module, _) in Imports::of(source).0 {
                left.remove(&module);
            }
        }
    }
    left.retain(|_, modules| !modules.is_empty());
    assert!(left.is_empty(), "allowed and not needed: {left:?}");
}

#[test]
fn arrows_go_one_way() {
    let mut table = allowed();
    while !table.is_empty() {
        let last: Vec<_> =
            table.iter().filter(|(_, imports)| imports.is_empty()).map(|(name, _)| name.clone()).collect();
        assert!(!last.is_empty(), "a circle in the table of ARCHITECTURE.md: {table:?}");
        for name in last {
            table.remove(&name);
            for imports in table.values_mut() {
                imports.remove(&name);
            }
        }
    }
}

#[test]
fn an_import_is_seen_in_whatever_form_it_is_written() {
    let text = "use crate::http::Page;\nuse crate::{cli, db::{self}};\nfn f() { crate::app::start(stenocast::rtmp::X) }\n\
                fn g() { format!(\"{}\", crate::log::now()) }\n#[cfg(test)]\nmod tests { use crate::stt::X; }";
    let mut file = syn::parse_file(text).unwrap();
    file.items.retain(|item| !super::source::is_test(item));
    let source = Source { path: "src/x.rs".to_owned(), text: text.to_owned(), file };
    let seen: Vec<_> = Imports::of(&source).0.into_iter().map(|(name, _)| name).collect();
    assert_eq!(seen, ["http", "cli", "db", "app", "rtmp", "log"]);
}
