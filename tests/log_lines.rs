//! Every log call of `src/` keeps the rules of docs/LOGGING.md.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "event"];
/// Names that other programs count on.
const FIXED_FIELDS: [&str; 2] = ["httpLatencyMs", "totalLatencyFromGladiaMs"];
const FIXED_MESSAGES: [&str; 4] = [
    "Audio chunk sent to Gladia",
    "Transcript received from Gladia",
    "Transcript posted to WS broadcast",
    "Transcript delivery latency",
];

struct Call {
    place: String,
    fields: Vec<String>,
    message: String,
    text: String,
}

/// Each part of `text` up to the bracket that ends it, split at its commas; strings are passed over.
fn arguments(text: &str) -> Vec<String> {
    let (mut parts, mut part, mut depth, mut in_string) = (Vec::new(), String::new(), 0, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => part.extend([Some(c), chars.next()].into_iter().flatten()),
            '"' => {
                in_string = !in_string;
                part.push(c);
            }
            ')' | ']' | '}' if !in_string && depth == 0 => break,
            ',' if !in_string && depth == 0 => parts.push(std::mem::take(&mut part)),
            _ => {
                depth += i32::from(!in_string && "([{".contains(c)) - i32::from(!in_string && ")]}".contains(c));
                part.push(c);
            }
        }
    }
    parts.push(part);
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn calls(path: &str, source: &str) -> Vec<Call> {
    // Tests may say what they like.
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut found = Vec::new();
    for level in LEVELS {
        let begin = format!("tracing::{level}!(");
        for (at, _) in source.match_indices(&begin) {
            let parts = arguments(&source[at + begin.len()..]);
            let place = format!("{path}:{}", source[..at].matches('\n').count() + 1);
            let end = parts.iter().position(|part| part.starts_with('"')).unwrap_or(parts.len());
            let is_option = |part: &&String| part.starts_with("target:") || part.starts_with("tracing::Level::");
            let name =
                |part: &String| part.split('=').next().unwrap_or(part).trim().trim_start_matches(['%', '?']).to_owned();
            found.push(Call {
                place,
                fields: parts[..end].iter().filter(|part| !is_option(part)).map(name).collect(),
                message: parts.get(end).map(|text| text.trim_matches('"').to_owned()).unwrap_or_default(),
                text: parts.join(", "),
            });
        }
    }
    found
}

/// What is wrong with a call.
fn faults(call: &Call, documented: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut wrong = |what: String| faults.push(format!("{}: {what}", call.place));
    for field in &call.fields {
        let is_snake = field.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !is_snake && !FIXED_FIELDS.contains(&field.as_str()) {
            wrong(format!("field {field} is not snake_case"));
        }
        if field == "message" {
            wrong("a field takes the message's place".to_owned());
        }
        if !documented.contains(field) {
            wrong(format!("field {field} is not in the table of docs/LOGGING.md"));
        }
    }
    let first = call.message.split([' ', ',']).next().unwrap_or_default();
    let is_name = first.len() > 1 && first.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let is_lower = call.message.starts_with(|c: char| c.is_lowercase() || c == '{');
    if !is_lower && !is_name && !FIXED_MESSAGES.contains(&call.message.as_str()) {
        wrong(format!("message {:?} does not begin in lower case", call.message));
    }
    if call.message.ends_with('.') {
        wrong(format!("message {:?} ends with a full stop", call.message));
    }
    if call.text.contains("expose()") {
        wrong("a secret is exposed".to_owned());
    }
    faults
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().is_some_and(|n| n != "tests.rs") {
            found.push(path);
        }
    }
}

/// The names in the first column of the table.
fn documented() -> BTreeSet<String> {
    let text = include_str!("../docs/LOGGING.md");
    let rows = text.lines().skip_while(|line| *line != "## Fields").filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(','));
    names.map(|name| name.trim().trim_matches('`').to_owned()).collect()
}

#[test]
fn every_log_call_keeps_the_rules_and_every_documented_field_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let documented = documented();
    let (mut wrong, mut used, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for file in files {
        let place = file.strip_prefix(root).unwrap().display().to_string();
        for call in calls(&place, &std::fs::read_to_string(&file).unwrap()) {
            wrong.extend(faults(&call, &documented));
            used.extend(call.fields);
            count += 1;
        }
    }
    wrong.extend(documented.difference(&used).map(|name| format!("docs/LOGGING.md: no call has the field {name}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "{count} calls were found");
}

#[test]
fn the_judge_sees_what_is_wrong() {
    let source =
        r#"tracing::info!(session = %f(a, "b, c)"), lastSeq = 3, message = kind, key = %k.expose(), "It ends.");"#;
    let [call] = calls("x.rs", source).try_into().unwrap_or_else(|_| panic!("one call"));
    assert_eq!(call.fields, ["session", "lastSeq", "message", "key"]);
    let known = ["session", "lastSeq", "message"].map(str::to_owned).into();
    let said = faults(&call, &known).join("\n");
    for part in [
        "lastSeq is not snake",
        "takes the message's place",
        "field key is not in",
        "lower case",
        "full stop",
        "exposed",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let good = calls("x.rs", "tracing::warn!(%error, rows,\n    \"rows wait\");").remove(0);
    assert!(faults(&good, &["error", "rows"].map(str::to_owned).into()).is_empty());
}
