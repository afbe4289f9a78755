//! What is asked of the server and of its streams, made where it is missing. Settings of somebody else are no reason to
//! change them: a person has to.

use std::fmt::Display;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ServerInfo};

use super::names::{DATABASE, LOG, LOG_SUBJECTS, ROOMS, ROOMS_SUBJECTS};
use crate::bus::log_server::ServerError;
use crate::config::NatsConfig;

/// Largest message of the log, with its headers.
pub const MAX_MESSAGE_BYTES: i32 = 1 << 20;
/// Followers of all nodes, and reads that are under way.
const MAX_CONSUMERS: i32 = 10_000;
/// How long the server knows a message's id.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// After so long a message for the database is given to another node.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Most messages for the database that all nodes together are at.
const MAX_ACK_PENDING: i64 = 5_000;
/// The oldest server that keeps one copy as it should.
const OLDEST: (u32, u32) = (2, 9);
/// The oldest server whose clusters let one alone write a room.
const OLDEST_CLUSTER: (u32, u32) = (2, 12);

const NOT_ENABLED: [u64; 2] = [10_039, 10_076];
const NOT_FOUND: u64 = 10_059;
/// Somebody has made it meanwhile.
const NAME_IN_USE: u64 = 10_058;
/// Of a create that this server can never do: no cluster, or not so much disk.
const IMPOSSIBLE: [u64; 4] = [10_074, 10_047, 10_023, 10_028];

/// Looks at the server, the two streams and the consumer, and makes what is missing.
pub async fn ensure(client: &Client, js: &Context, config: &NatsConfig) -> Result<(), ServerError> {
    check_version(&client.server_info(), config.replicas)?;
    for wanted in [log(config), rooms(config)] {
        ensure_stream(js, wanted).await?;
    }
    ensure_consumer(js).await
}

/// A line has at most 16 KiB of text; with its words and their times it may have many times that.
const MIN_PAYLOAD: usize = 256 * 1024;

/// The number in front of a version such as `2.12.0-beta.1`, compared as numbers: "2.9" is older than "2.10".
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn check_version(server: &ServerInfo, replicas: usize) -> Result<(), ServerError> {
    if server.max_payload < MIN_PAYLOAD {
        return Err(ServerError::Unusable(format!(
            "the NATS server {} takes messages of at most {} bytes (max_payload), and a line with all its words may be longer; allowed: {MIN_PAYLOAD} or more",
            server.server_name, server.max_payload
        )));
    }
    let (name, text) = (&server.server_name, &server.version);
    let is_older = |than| version(text).is_some_and(|version| version < than);
    if is_older(OLDEST) {
        return Err(ServerError::Unusable(format!("the NATS server {name} is version {text}; allowed: 2.9 or newer")));
    }
    if replicas > 1 && is_older(OLDEST_CLUSTER) {
        return Err(ServerError::Unusable(format!(
            "the NATS server {name} is version {text}, and clusters before 2.12 let two nodes write one room; allowed: NATS_REPLICAS=1, or NATS 2.12 or newer"
        )));
    }
    Ok(())
}

fn log(config: &NatsConfig) -> Config {
    Config {
        name: LOG.to_owned(),
        subjects: vec![LOG_SUBJECTS.to_owned()],
        max_bytes: config.max_bytes as i64,
        max_age: config.max_age,
        max_message_size: MAX_MESSAGE_BYTES,
        max_messages_per_subject: -1,
        max_consumers: MAX_CONSUMERS,
        duplicate_window: DUPLICATE_WINDOW.min(config.max_age),
        ..plain(config)
    }
}

/// The bucket, as the stream that it is: servers before 2.10 refuse the call that makes buckets.
fn rooms(config: &NatsConfig) -> Config {
    Config {
        name: ROOMS.to_owned(),
        subjects: vec![ROOMS_SUBJECTS.to_owned()],
        max_bytes: -1,
        max_age: Duration::ZERO,
        max_message_size: -1,
        max_messages_per_subject: 1,
        max_consumers: 100,
        duplicate_window: DUPLICATE_WINDOW,
        allow_rollup: true,
        allow_direct: true,
        ..plain(config)
    }
}

fn plain(config: &NatsConfig) -> Config {
    Config {
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        num_replicas: config.replicas,
        max_messages: -1,
        ..Config::default()
    }
}

async fn ensure_stream(js: &Context, wanted: Config) -> Result<(), ServerError> {
    if let Some(found) = find(js, &wanted.name).await? {
        return check_settings(&found, &wanted);
    }
    let Err(error) = js.create_stream(wanted.clone()).await else { return Ok(()) };
    let fault = format!("the stream {} could not be made: {error}", wanted.name);
    match error.kind() {
        CreateStreamErrorKind::JetStream(said) => match said.error_code().0 {
            NAME_IN_USE => match find(js, &wanted.name).await? {
                Some(found) => check_settings(&found, &wanted),
                None => Err(ServerError::Away(fault)),
            },
            code if IMPOSSIBLE.contains(&code) => Err(ServerError::Unusable(format!(
                "{fault}; it needs a server or a cluster with room for NATS_MAX_BYTES={} and NATS_REPLICAS={}",
                wanted.max_bytes, wanted.num_replicas
            ))),
            code => Err(of_code(code, fault)),
        },
        _ => Err(ServerError::Away(fault)),
    }
}

async fn find(js: &Context, name: &str) -> Result<Option<Config>, ServerError> {
    match js.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(said) if said.error_code().0 == NOT_FOUND => Ok(None),
            GetStreamErrorKind::JetStream(said) => Err(of_code(said.error_code().0, said.to_string())),
            _ => Err(ServerError::Away(format!("JetStream does not answer (is it enabled there?): {error}"))),
        },
    }
}

fn of_code(code: u64, fault: String) -> ServerError {
    if NOT_ENABLED.contains(&code) {
        return ServerError::Unusable(format!("{fault}; start the NATS server with JetStream (nats-server -js)"));
    }
    ServerError::Away(fault)
}

fn check_settings(found: &Config, wanted: &Config) -> Result<(), ServerError> {
    let differences = differences(found, wanted);
    if differences.is_empty() {
        return Ok(());
    }
    let name = &wanted.name;
    Err(ServerError::Unusable(format!(
        "the stream {name} of this NATS server has other settings than this node: {}; change the setting of the nodes, or the stream by `nats stream edit {name}`, or remove it with all that is in it by `nats stream rm {name}`",
        differences.join(", ")
    )))
}

/// Settings that are not as wanted, with what both are.
fn differences(found: &Config, wanted: &Config) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |name: &str, found: &dyn Display, wanted: &dyn Display| {
        let (found, wanted) = (found.to_string(), wanted.to_string());
        if found != wanted {
            differences.push(format!("{name} is {found} and should be {wanted}"));
        }
    };
    compare("subjects", &found.subjects.join(" "), &wanted.subjects.join(" "));
    compare("storage", &format!("{:?}", found.storage), &format!("{:?}", wanted.storage));
    compare("retention", &format!("{:?}", found.retention), &format!("{:?}", wanted.retention));
    compare("discard", &format!("{:?}", found.discard), &format!("{:?}", wanted.discard));
    compare("replicas (NATS_REPLICAS)", &found.num_replicas, &wanted.num_replicas);
    compare("max_age in seconds (NATS_MAX_AGE)", &found.max_age.as_secs_f64(), &wanted.max_age.as_secs_f64());
    compare("max_bytes (NATS_MAX_BYTES)", &found.max_bytes, &wanted.max_bytes);
    compare("max_msgs", &found.max_messages, &wanted.max_messages);
    compare("max_msgs_per_subject", &found.max_messages_per_subject, &wanted.max_messages_per_subject);
    compare("max_msg_size", &found.max_message_size, &wanted.max_message_size);
    compare("max_consumers", &found.max_consumers, &wanted.max_consumers);
    compare("discard_new_per_subject", &found.discard_new_per_subject, &wanted.discard_new_per_subject);
    let window = |config: &Config| config.duplicate_window.as_secs_f64();
    compare("duplicate_window in seconds", &window(found), &window(wanted));
    compare("no_ack", &found.no_ack, &wanted.no_ack);
    compare("sealed", &found.sealed, &wanted.sealed);
    compare("deny_delete", &found.deny_delete, &wanted.deny_delete);
    compare("deny_purge", &found.deny_purge, &wanted.deny_purge);
    let sources = |config: &Config| config.mirror.is_some() || config.sources.as_ref().is_some_and(|s| !s.is_empty());
    compare("taken from other streams", &sources(found), &sources(wanted));
    compare("with a subject transform", &found.subject_transform.is_some(), &wanted.subject_transform.is_some());
    differences
}

/// The consumer of those who write the database, all nodes together.
pub fn database() -> pull::Config {
    pull::Config {
        durable_name: Some(DATABASE.to_owned()),
        filter_subject: LOG_SUBJECTS.to_owned(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: MAX_ACK_PENDING,
        max_deliver: -1,
        ..pull::Config::default()
    }
}

async fn ensure_consumer(js: &Context) -> Result<(), ServerError> {
    let away = |error: &dyn Display| ServerError::Away(format!("the consumer {DATABASE}: {error}"));
    let log = js.get_stream_no_info(LOG).await.map_err(|e| away(&e))?;
    let wanted = database();
    let made: PullConsumer = log.get_or_create_consumer(DATABASE, wanted.clone()).await.map_err(|e| away(&e))?;
    let found = &made.cached_info().config;
    let is_ours = found.ack_policy == wanted.ack_policy && found.filter_subject == wanted.filter_subject;
    if !is_ours || found.max_deliver > 0 {
        return Err(ServerError::Unusable(format!(
            "the consumer {DATABASE} of the stream {LOG} has other settings than this node wants: explicit acks without a limit of deliveries, of {LOG_SUBJECTS}; remove it by `nats consumer rm {LOG} {DATABASE}`"
        )));
    }
    Ok(())
}

/// The code of an error that the server has sent; 0: it has not.
pub fn code(error: &(dyn std::error::Error + 'static)) -> u64 {
    let said = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    said.map_or(0, |said| said.error_code().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(version: &str) -> ServerInfo {
        ServerInfo {
            version: version.to_owned(),
            server_name: "n1".to_owned(),
            max_payload: 1 << 20,
            ..ServerInfo::default()
        }
    }

    #[test]
    fn versions_are_numbers() {
        let fits = |text, replicas| check_version(&server(text), replicas).is_ok();
        assert!(
            fits("2.9.10", 1) && fits("2.10.0", 1) && fits("2.15.1", 3) && fits("2.12.0-RC.1", 3) && fits("3.0.0", 3)
        );
        assert!(!fits("2.8.4", 1) && !fits("1.4.1", 1) && !fits("2.9.10", 3) && !fits("2.11.6", 3));
        let text = check_version(&server("2.9.10"), 3).unwrap_err().to_string();
        assert!(text.contains("n1 is version 2.9.10") && text.contains("NATS_REPLICAS=1, or NATS 2.12"), "{text}");
    }

    #[test]
    fn a_difference_says_what_is_and_what_is_wanted() {
        let values = [("NATS_MAX_BYTES".to_owned(), "1MiB".to_owned())].into();
        let config = crate::config::Config::load(&values, true).unwrap().split.nats;
        let wanted = log(&config);
        assert_eq!(differences(&wanted, &wanted), [""; 0]);
        let found = Config { max_bytes: 17, discard: DiscardPolicy::Old, ..wanted.clone() };
        let text = check_settings(&found, &wanted).unwrap_err().to_string();
        for part in [
            "discard is Old and should be New",
            "max_bytes (NATS_MAX_BYTES) is 17 and should be 1048576",
            "edit SC_LOG",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
