//! What `deploy/` configures is what the program reads, and docs/DEPLOY.md shows the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use stenocast::config::{BusKind, Config, SETTINGS};
use yaml_rust2::{Yaml, YamlLoader};

use super::source::read;

const FILES: [&str; 2] = ["deploy/compose.yaml", "deploy/compose.http.yaml"];
const EXAMPLE: &str = "deploy/.env.example";

/// A value by its key, also one that `<<` merges in.
fn get<'a>(map: &'a Yaml, key: &str) -> Option<&'a Yaml> {
    let map = map.as_hash()?;
    let own = map.get(&Yaml::String(key.to_owned()));
    own.or_else(|| get(map.get(&Yaml::String("<<".to_owned()))?, key))
}

fn text(value: &Yaml) -> String {
    match value {
        Yaml::String(text) => text.clone(),
        Yaml::Integer(number) => number.to_string(),
        other => panic!("a text or a number is expected, not {other:?}"),
    }
}

/// Keys and values of a map of texts, merged ones included.
fn texts(map: &Yaml) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, value) in map.as_hash().expect("a map") {
        match key.as_str() {
            Some("<<") => all.extend(texts(value)),
            key => drop(all.insert(key.expect("a name").to_owned(), text(value))),
        }
    }
    all
}

fn list(service: &Yaml, key: &str) -> Vec<String> {
    get(service, key).and_then(Yaml::as_vec).map_or_else(Vec::new, |all| all.iter().map(text).collect())
}

fn services(file: &str) -> Vec<(String, Yaml)> {
    let document = YamlLoader::load_from_str(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}")).remove(0);
    let services = get(&document, "services").and_then(Yaml::as_hash).expect("services").clone();
    services.into_iter().map(|(name, service)| (text(&name), service)).collect()
}

fn is_ours(service: &Yaml) -> bool {
    get(service, "image").is_some_and(|image| text(image).contains("STENOCAST_IMAGE"))
}

/// Names in `${NAME…}`.
fn variables(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.split(|c: char| !(c.is_ascii_uppercase() || c == '_')).next().map(str::to_owned);
    text.split("${").skip(1).filter_map(name).collect()
}

/// A value as compose gives it, with a word for each variable that is set, and the default for others.
fn interpolated(mut value: &str) -> String {
    let mut whole = String::new();
    while let Some((before, rest)) = value.split_once("${") {
        let (inside, after) = rest.split_once('}').expect("a closed brace");
        whole += before;
        whole += inside.split_once(":-").map_or("n0123456789abcdef", |(_, default)| default);
        value = after;
    }
    whole + value
}

fn config(environment: &BTreeMap<String, String>, what: &str) -> Config {
    let values: HashMap<String, String> =
        environment.iter().map(|(name, value)| (name.clone(), interpolated(value))).collect();
    Config::load(&values, false).unwrap_or_else(|faults| panic!("{what}: {faults}"))
}

/// Every service that runs the program, with its environment and the configuration that it makes.
fn nodes() -> Vec<(String, Yaml, BTreeMap<String, String>, Config)> {
    let mut nodes = Vec::new();
    for file in FILES {
        for (name, service) in services(file).into_iter().filter(|(_, service)| is_ours(service)) {
            let environment = texts(get(&service, "environment").expect("an environment"));
            let what = format!("{file}: {name}");
            let config = config(&environment, &what);
            nodes.push((what, service, environment, config));
        }
    }
    assert_eq!(nodes.len(), 4, "an ingest node and one with viewers in each file");
    nodes
}

#[test]
fn every_variable_of_a_node_is_a_setting_and_all_together_are_a_configuration() {
    for (what, _, environment, config) in nodes() {
        for (name, value) in &environment {
            let setting = SETTINGS.iter().find(|setting| setting.name == name);
            let setting = setting.unwrap_or_else(|| panic!("{what}: {name} is no setting"));
            assert!(!setting.secret || value.contains("${"), "{what}: {name} has its secret in the file");
        }
        let bus = if what.contains("http") { BusKind::Http } else { BusKind::Nats };
        assert_eq!(config.split.bus, bus, "{what}");
    }
}

#[test]
fn a_node_keeps_its_data_and_its_name_and_has_time_to_stop() {
    let mut volumes = BTreeSet::new();
    for (what, service, environment, config) in nodes() {
        let data = config.server.data_dir.to_str().expect("UTF-8").to_owned();
        let mounts = list(&service, "volumes");
        let mount = mounts.iter().find(|mount| mount.ends_with(&format!(":{data}")));
        let file = what.split(':').next().expect("a file").to_owned();
        let mount = mount.unwrap_or_else(|| panic!("{what}: DATA_DIR {data} is on no volume"));
        assert!(volumes.insert((file, mount.clone())), "{what}: {mount} is another node's, too");
        assert_eq!(get(&service, "hostname").map(text).as_ref(), environment.get("NODE_ID"), "{what}");
        let grace = get(&service, "stop_grace_period").map(text).expect("a time");
        let grace: u64 = grace.trim_end_matches('s').parse().expect("seconds");
        assert!(Duration::from_secs(grace) >= config.server.shutdown_timeout + Duration::from_secs(5), "{what}");
    }
}

#[test]
fn what_is_published_is_what_the_document_says() {
    let document = read("docs/DEPLOY.md");
    let (_, ports) = document.split_once("\n## Ports\n").expect("a section \"Ports\"");
    let ports = ports.split("\n## ").next().expect("its text");
    for file in FILES {
        for (name, service) in services(file) {
            assert!(get(&service, "healthcheck").is_some(), "{file}: {name} has no health check");
            let published = list(&service, "ports");
            if !is_ours(&service) {
                assert!(published.is_empty(), "{file}: {name} is published");
                continue;
            }
            let environment = texts(get(&service, "environment").expect("an environment"));
            let config = config(&environment, file);
            let port = if config.server.mode.ingests() { config.rtmp.port } else { config.server.port };
            let [only] = &published[..] else { panic!("{file}: {name} publishes {published:?}") };
            assert!(only.ends_with(&format!(":{port}")), "{file}: {name} publishes {only}, not {port}");
            assert!(ports.contains(&format!("| {port} |")), "docs/DEPLOY.md does not say {port}");
        }
    }
}

#[test]
fn the_example_of_the_environment_has_what_is_asked_for_and_no_secret() {
    let example = read(EXAMPLE);
    let lines = example.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let example: BTreeMap<&str, &str> = lines.map(|line| line.split_once('=').expect("NAME=value")).collect();
    let asked: BTreeSet<String> = FILES.iter().flat_map(|file| variables(&read(file))).collect();
    assert_eq!(example.keys().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), asked);
    for file in FILES {
        let text = read(file);
        for (name, value) in &example {
            let required = text.contains(&format!("${{{name}:?"));
            assert!(!required || value.is_empty(), "{EXAMPLE}: {name} has a value that somebody may leave as it is");
        }
    }
}

/// Words in backquotes, of all that is said about deploying.
fn words() -> BTreeSet<String> {
    let text = ["docs/DEPLOY.md", "docs/SCALE.md"].map(read).concat();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let quoted = text.split('`').skip(1).step_by(2).filter(|text| !text.contains('\n'));
    quoted.flat_map(|text| text.split(move |c| !is_word(c))).map(str::to_owned).collect()
}

#[test]
fn settings_and_metrics_that_the_pages_name_are_there() {
    let (metrics, example) = (read("src/metrics.rs"), read(EXAMPLE));
    let is_setting = |word: &str| {
        let is_asked = example.lines().any(|line| line.starts_with(&format!("{word}=")));
        is_asked || word == "STENOCAST_BIN" || SETTINGS.iter().any(|setting| setting.name == word)
    };
    let (mut seen, mut faults) = ((0, 0), Vec::new());
    for word in words() {
        if let Some(metric) = word.strip_prefix("stenocast_") {
            seen.0 += 1;
            faults.extend((!metrics.contains(&format!("    {metric}: "))).then_some(word));
        } else if word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            seen.1 += 1;
            faults.extend((!is_setting(&word)).then_some(word));
        }
    }
    assert!(seen.0 >= 5 && seen.1 >= 25, "{seen:?} metrics and settings");
    assert!(faults.is_empty(), "neither a metric nor a setting: {faults:?}");
}
