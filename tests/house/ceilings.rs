//! Files and handlers are as short as CONTRIBUTING.md says.

use syn::spanned::Spanned;
use syn::{ImplItem, Item};

use super::source::{Source, read, sources};

/// The numbers of the sentence "About 400 lines without tests are the ceiling; a handler has at most 25."
fn ceilings() -> (usize, usize) {
    let text = read("CONTRIBUTING.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let number = |before: &str| -> usize {
        let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("CONTRIBUTING.md says no more \"{before}\""));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    };
    (number("A file has at most "), number("a handler at most "))
}

/// Lines up to the tests, which are last.
fn lines(source: &Source) -> usize {
    source.text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count()
}

#[test]
fn no_file_is_longer_than_its_ceiling() {
    let (most, _) = ceilings();
    let mut faults = Vec::new();
    for source in &sources() {
        let (path, lines) = (&source.path, lines(source));
        if lines > most {
            faults.push(format!("{path}: {lines} lines without tests"));
        }
    }
    assert!(faults.is_empty(), "the ceiling is {most}:\n{}", faults.join("\n"));
}

fn is_route(source: &Source, item: &syn::ItemFn) -> bool {
    let is_public = matches!(item.vis, syn::Visibility::Public(_));
    source.path.starts_with("src/http/") && is_public && item.sig.asyncness.is_some()
}

/// Handlers are the `handle` of an actor, and what HTTP routes lead to.
#[test]
fn no_handler_is_longer_than_its_ceiling() {
    let (_, most) = ceilings();
    let mut faults = Vec::new();
    let mut seen = 0;
    for source in &sources() {
        let mut check = |name: &syn::Ident, block: &syn::Block| {
            seen += 1;
            // Without its braces.
            let lines = (block.span().end().line - block.span().start().line).saturating_sub(1);
            if lines > most {
                faults.push(format!("{}:{}: `{name}` has {lines} lines", source.path, name.span().start().line));
            }
        };
        for item in &source.file.items {
            match item {
                Item::Impl(item) if item.trait_.is_some() => {
                    for function in &item.items {
                        if let ImplItem::Fn(function) = function
                            && function.sig.ident == "handle"
                        {
                            check(&function.sig.ident, &function.block);
                        }
                    }
                }
                Item::Fn(item) if is_route(source, item) => {
                    check(&item.sig.ident, &item.block);
                }
                _ => {}
            }
        }
    }
    assert!(seen > 50, "{seen} handlers");
    assert!(faults.is_empty(), "the ceiling is {most}:\n{}", faults.join("\n"));
}
