//! Tests wait for conditions, and one helper does the waiting.

use proc_macro2::{TokenStream, TokenTree};

use super::source::{read, rust_files};

/// Files under `tests/` that may call a sleep, and why.
const MAY: &[(&str, &str)] = &[
    ("tests/cluster_simulation/world.rs", "its time is virtual"),
    ("tests/drill/harness/mod.rs", "a fault of the drill lasts"),
    ("tests/support/chaos_proxy.rs", "what is far away comes late"),
    ("tests/support/pace.rs", "an encoder sends in real time"),
    ("tests/support/wait.rs", "the helper itself looks again"),
];
const SLEEPS: &[&str] = &["sleep", "sleep_ms", "sleep_until"];

/// Names of sleeps in the code; texts and comments do not count.
fn sleeps(tokens: TokenStream) -> usize {
    let of = |token| match token {
        TokenTree::Ident(name) => usize::from(SLEEPS.iter().any(|known| name == known)),
        TokenTree::Group(group) => sleeps(group.stream()),
        _ => 0,
    };
    tokens.into_iter().map(of).sum()
}

#[test]
fn no_test_sleeps() {
    let files = rust_files("tests");
    assert!(files.len() > 80, "{} files", files.len());
    let calls = |path: &str| sleeps(read(path).parse().unwrap_or_else(|error| panic!("{path}: {error}")));
    let found: Vec<_> = files.iter().filter(|path| calls(path) > 0).map(String::as_str).collect();
    let may: Vec<_> = MAY.iter().map(|(path, _)| *path).collect();
    assert_eq!(found, may, "files that sleep, and those that may; `support::wait::until` waits for a condition");
}

#[test]
fn a_sleep_is_seen_in_whatever_form_it_is_written() {
    let count = |text: &str| sleeps(text.parse().expect("tokens"));
    assert_eq!(count("tokio::select! { () = tokio::time::sleep(x) => {} }"), 1);
    assert_eq!(count("use tokio::time::{sleep_until as later};"), 1);
    assert_eq!(count("/// sleep\nfn f() { run(\"sleep 1000\") } // sleep"), 0);
}
