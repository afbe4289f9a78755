//! Prometheus metrics of the process. One struct, made once and handed to whoever counts; no per-room labels.

use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Bucket borders of the latency histograms, in seconds.
const LATENCY_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0,
    10.0,
];

macro_rules! metrics {
    ($($(#[$doc:meta])* $field:ident: $kind:ident $(($($label:literal),+))? = $help:literal;)+) => {
        /// Every series of `/metrics`; the name of a series is `stenocast_` and the field's name.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Registry,
            $($(#[$doc])* pub $field: $kind,)+
        }

        impl Metrics {
            fn unlabelled() -> Self {
                let registry = Registry::new_custom(Some("stenocast".to_owned()), None).expect("a plain prefix");
                $(let $field = metrics!(@make $kind, stringify!($field), $help $(, [$($label),+])?);
                registry.register(Box::new($field.clone())).expect("every series is declared once");)+
                Self { registry, $($field,)+ }
            }
        }
    };
    (@make Histogram, $name:expr, $help:expr) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets(LATENCY_BUCKETS.to_vec())).expect("plain names")
    };
    (@make $kind:ident, $name:expr, $help:expr) => {
        $kind::with_opts(Opts::new($name, $help)).expect("plain names")
    };
    (@make $kind:ident, $name:expr, $help:expr, $labels:expr) => {
        $kind::new(Opts::new($name, $help), &$labels).expect("plain names")
    };
}

metrics! {
    // sessions and actors
    sessions_active: IntGauge = "Sessions that have not ended";
    sessions_total: IntCounter = "Sessions begun";
    reloads_total: IntCounterVec("result") = "Times that SIGHUP had the API keys read again, by ok or refused";
    actors_live: IntGaugeVec("kind") = "Live actors";
    actor_restarts_total: IntCounterVec("kind") = "Actors restarted by their supervisor";
    actor_panics_total: IntCounterVec("kind") = "Actors that ended by a panic";
    actor_escalations_total: IntCounterVec("kind") = "Restart budgets exhausted";
    actor_last_fault_timestamp_seconds: IntGaugeVec("kind") = "Unix time of the last end that was no orderly one; 0: none";
    edge_depth: IntGaugeVec("edge") = "Items waiting between two actors, over all sessions, at scrape time";
    // ingest
    rtmp_connections: IntGauge = "Open RTMP connections";
    rtmp_publishers: IntGauge = "Publishing RTMP connections";
    rtmp_accepted_total: IntCounter = "RTMP connections accepted";
    rtmp_refused_total: IntCounterVec("reason") = "RTMP connections or publishes refused";
    rtmp_closed_total: IntCounterVec("reason") = "RTMP connections ended";
    rtmp_ignored_total: IntCounterVec("kind") = "Items of publishers that are odd, harmless and not used";
    rtmp_bytes_received_total: IntCounter = "Bytes received by RTMP";
    rtmp_takeovers_total: IntCounter = "Publishers displaced by a newer one with the same slug";
    connection_errors_total: IntCounterVec("kind") = "Connections that failed, by rtmp, stt, database or ws";
    // decode
    ffmpeg_processes: IntGauge = "Running ffmpeg children";
    ffmpeg_starts_total: IntCounter = "ffmpeg children started";
    decoder_starts_deferred_total: IntCounter = "Times that a decoder had to wait for the budget of its stream";
    decode_errors_total: IntCounter = "Audio frames that gave no sound, refused tags, and decoders that failed";
    audio_channels_cancel_seconds_total: Counter = "Audio whose channels cancel each other out, heard from the louder one";
    unsupported_audio_total: IntCounterVec("codec") = "Publishers refused for their audio codec";
    // audio accounting, in seconds of audio
    audio_received_seconds_total: Counter = "Audio of publishers, decoded or given up before it was";
    audio_inserted_seconds_total: Counter = "Silence inserted where the publisher sent none";
    audio_skipped_seconds_total: Counter = "Audio that a publisher sent again after it was cut off: it was heard before";
    audio_sent_seconds_total: Counter = "Audio sent to a recogniser at least once";
    audio_resent_seconds_total: Counter = "Audio sent again after a drop or to a new recogniser session";
    audio_acknowledged_seconds_total: Counter = "Audio acknowledged by the recogniser";
    audio_spoken_seconds_total: Counter = "Audio that holds speech";
    audio_finalised_seconds_total: Counter = "Speech that became final text";
    audio_lost_seconds_total: CounterVec("reason") = "Audio that never became text";
    audio_coverage_lowest_ratio: Gauge = "Finalised speech / speech of the live session that has least, of those with 30 s of speech; at scrape time";
    // recogniser
    gladia_bytes_sent_total: IntCounter = "Audio bytes sent to the recogniser, replays included";
    stt_sessions: IntGauge = "Open recogniser sessions";
    stt_connects_total: IntCounterVec("result") = "Attempts to open or resume a recogniser session";
    stt_faults_total: IntCounterVec("fault") = "Recogniser faults by type";
    recogniser_sessions_total: IntCounter = "Recogniser sessions begun; each may be billed";
    recogniser_sessions_deferred_total: IntCounter = "Times that a recogniser session had to wait for the budget of its stream";
    stt_replays_total: IntCounter = "Recogniser sessions begun anew with replay";
    stt_resumes_total: IntCounter = "Recogniser sessions resumed on the same URL";
    stt_stalls_total: IntCounter = "Times that speech brought no answer for STT_STALL_MS";
    stt_messages_total: IntCounterVec("type") = "Messages received from the recogniser";
    stt_messages_ignored_total: IntCounter = "Messages of the recogniser that were not understood";
    stt_messages_odd_total: IntCounterVec("type") = "Messages with a field that was not as the schema has it";
    translations_total: IntCounterVec("outcome") = "Translations from the recogniser: delivered, dropped (of a line that was never shown), failed or missing (its session was over)";
    stt_process_up: IntGauge = "1 while the local recogniser's process is ready";
    stt_process_restarts_total: IntCounter = "Restarts of the local recogniser's process";
    // viewers
    ws_connections: IntGauge = "Connected viewers";
    ws_messages_sent_total: IntCounter = "Messages sent to viewers";
    ws_refused_total: IntCounterVec("status") = "Viewers refused before the upgrade";
    ws_closed_total: IntCounterVec("code") = "Viewers closed by the server";
    ws_bad_messages_total: IntCounter = "Messages of viewers that were not understood";
    // speakers
    speaker_labels_total: IntCounterVec("outcome") = "Finals by their label: named, numbered (a voice that the recogniser tells from others) or unknown";
    speaker_splits_total: IntCounter = "Finals that were cut where their speaker changes";
    speaker_reports_ignored_total: IntCounter = "Reports of a viewer about somebody else, without a token of a room admin";
    track_refused_total: IntCounterVec("status") = "Connections of Track Egress refused before the upgrade";
    track_closed_total: IntCounterVec("code") = "Connections of Track Egress closed by the server";
    track_audio_seconds_total: Counter = "Audio of single microphones that was measured";
    http_requests_total: IntCounterVec("route", "status") = "HTTP requests answered";
    broadcast_entries_total: IntCounterVec("result") = "Entries taken by POST broadcast: accepted or duplicate";
    // LiveKit
    livekit_webhooks_total: IntCounterVec("event", "result") = "Webhooks of LiveKit by event, and whether taken, duplicate, full, forged or unreadable";
    livekit_api_up: IntGauge = "1 while LiveKit's API answers";
    livekit_api_errors_total: IntCounterVec("error") = "Calls of LiveKit's API that failed, beside those that start an egress";
    livekit_rooms: IntGauge = "Rooms of LiveKit that are known to be there";
    livekit_rooms_ignored_total: IntCounterVec("reason") = "Rooms for which nothing is started, by name (no slug) or pattern (LIVEKIT_ROOMS)";
    livekit_missed_total: IntCounterVec("event") = "Events that no webhook had told of and a comparison found";
    egress_active: IntGauge = "Room Composite Egresses that this node knows to run for its rooms";
    egress_starts_total: IntCounterVec("result") = "Tries to start a room's egress: started, found (it ran) or LiveKit's error";
    egress_restarts_total: IntCounterVec("reason") = "Egresses that had begun and are started anew, by failed, stuck, silent or publish_refused";
    egress_duplicates_total: IntCounter = "Egresses stopped since their room had another one";
    track_egress_active: IntGauge = "Track Egresses that this node knows to run";
    track_egress_starts_total: IntCounterVec("result") = "Tries to start a microphone's egress, as egress_starts_total";
    track_egress_restarts_total: IntCounter = "Track Egresses that ended while their track lived";
    // other nodes
    forward_posts_total: IntCounterVec("result") = "Posts to ws nodes by answer: stored, refused, foreign, full, unsure, too_large, denied or incompatible";
    forward_entries_total: IntCounter = "Entries that a ws node has taken, repetitions included";
    forward_queue_rows: IntGaugeVec("target") = "Rows of the outbox that this ws node has not confirmed";
    forward_rows_given_up_total: IntCounterVec("target") = "Rows that were given up for a ws node that was behind the others when the outbox was almost full";
    forward_target_up: IntGaugeVec("target") = "1 while this ws node takes entries";
    rooms_handed_over_total: IntCounter = "Rooms that another node has asked for and was given";
    rooms_adopted_total: IntCounter = "Rooms of nodes that were gone whose sessions this node has adopted";
    bus_up: IntGauge = "1 while the log server of the cluster can be used";
    bus_errors_total: IntCounterVec("kind") = "What went wrong with the log server: disconnected, unsure, full, slow_consumer, server, client, unusable, protocol or reset";
    bus_log_fullness: Gauge = "How full the log server's log is, of 1; when it is full, nothing more is taken";
    bus_stale_messages_total: IntCounter = "Messages of the log that were written by a node which did not own the room: not shown";
    // LiveKit
    livekit_rooms_joined: IntGaugeVec("mode") = "Rooms that our participant is in, by udp, or signalling where UDP is blocked";
    livekit_joins_total: IntCounterVec("result") = "Attempts of our participant to join a room: joined or failed";
    livekit_speaker_updates_total: IntCounter = "Reports of who speaks, heard by our participant";
    livekit_media_bytes_total: IntCounter = "Media that a LiveKit server has sent our participant, which asks for none";
    livekit_captions_total: IntCounterVec("result") = "Captions for LiveKit's rooms: sent, failed (each attempt), late (too old when their turn came), skipped (no longer in memory) or no_room";
    // storage
    batch_queue_size: IntGauge = "Rows that wait for the database";
    batch_rows_total: IntCounterVec("result") = "Rows written: inserted, duplicate, quarantined or conflict";
    batch_flushes_total: IntCounterVec("trigger") = "Batches by trigger: size, timeout or flush";
    quarantine_rows: IntGauge = "Rows in quarantine: the database refused them, somebody has to look";
    database_up: IntGauge = "1 while the database answers";
    outbox_rows: IntGauge = "Rows in the outbox that the database has not confirmed";
    outbox_bytes: IntGauge = "Bytes of the outbox on disk";
    outbox_errors_total: IntCounter = "Failed appends to the outbox, and damaged places found in it at start";
    entries_not_durable_total: IntCounter = "Entries delivered that could be stored nowhere";
    entries_not_durable_timestamp_seconds: IntGauge = "Unix time of the last of them; 0: none";
    // latency
    decode_latency_seconds: Histogram = "Arrival of a chunk's last audio tag to the decoded chunk";
    stt_latency_seconds: Histogram = "Sending the last audio of an utterance to its final";
    server_latency_seconds: Histogram = "Recogniser message received to broadcast";
    delivery_latency_seconds: Histogram = "Recogniser message received to the viewer's socket";
    forward_latency_seconds: Histogram = "Post of entries to a ws node until its answer";
    outbox_append_seconds: Histogram = "Append of one entry to the outbox";
    batch_write_seconds: Histogram = "One batch statement";
    // process
    build_info: GaugeVec("version") = "1, with the version as label";
    node_info: GaugeVec("node", "mode") = "1, with NODE_ID and SERVER_MODE as labels";
    process_resident_bytes: Gauge = "Resident memory of this process";
    process_open_fds: IntGauge = "Open file descriptors of this process";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The label values of series that belong to no domain. Those of the others are declared by [`Metrics::declare`].
const CONNECTION_KINDS: [&str; 4] = ["rtmp", "stt", "database", "ws"];
const RELOAD_RESULTS: [&str; 2] = ["ok", "refused"];
const BATCH_TRIGGERS: [&str; 3] = ["size", "timeout", "flush"];
const FORWARD_RESULTS: [&str; 8] =
    ["stored", "refused", "foreign", "full", "unsure", "too_large", "denied", "incompatible"];
const BUS_ERRORS: [&str; 9] =
    ["disconnected", "unsure", "full", "slow_consumer", "server", "client", "unusable", "protocol", "reset"];
const LIVEKIT_MODES: [&str; 2] = ["udp", "signalling"];
const LIVEKIT_JOINS: [&str; 2] = ["joined", "failed"];
const LIVEKIT_CAPTIONS: [&str; 5] = ["sent", "failed", "late", "skipped", "no_room"];
const TRANSLATION_OUTCOMES: [&str; 4] = ["delivered", "dropped", "failed", "missing"];

/// A series with one label, whose values may be known beforehand.
pub trait Labelled {
    /// Makes the series of a label value appear.
    fn declare(&self, label: &str);
}

impl Labelled for IntCounterVec {
    fn declare(&self, label: &str) {
        drop(self.with_label_values(&[label]));
    }
}

impl Labelled for IntGaugeVec {
    fn declare(&self, label: &str) {
        drop(self.with_label_values(&[label]));
    }
}

impl Labelled for CounterVec {
    fn declare(&self, label: &str) {
        drop(self.with_label_values(&[label]));
    }
}

impl Metrics {
    pub fn new() -> Self {
        let metrics = Self::unlabelled();
        Self::declare(&[&metrics.connection_errors_total], CONNECTION_KINDS);
        Self::declare(&[&metrics.reloads_total], RELOAD_RESULTS);
        Self::declare(&[&metrics.batch_flushes_total], BATCH_TRIGGERS);
        Self::declare(&[&metrics.translations_total], TRANSLATION_OUTCOMES);
        Self::declare(&[&metrics.forward_posts_total], FORWARD_RESULTS);
        Self::declare(&[&metrics.bus_errors_total], BUS_ERRORS);
        Self::declare(&[&metrics.livekit_rooms_joined], LIVEKIT_MODES);
        Self::declare(&[&metrics.livekit_joins_total], LIVEKIT_JOINS);
        Self::declare(&[&metrics.livekit_captions_total], LIVEKIT_CAPTIONS);
        metrics
    }

    /// Makes the series of labels that are known beforehand appear at 0: a series that appears with its first event
    /// hides that event from rates.
    pub fn declare<'a>(series: &[&dyn Labelled], labels: impl IntoIterator<Item = &'a str>) {
        labels.into_iter().for_each(|label| series.iter().for_each(|series| series.declare(label)));
    }

    /// The Prometheus text format 0.0.4.
    pub fn encode(&self) -> String {
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        self.sample_process();
        let mut text = Vec::new();
        let families = self.registry.gather();
        TextEncoder::new().encode(&families, &mut text).expect("writing to memory succeeds");
        String::from_utf8(text).expect("the text format is UTF-8")
    }

    /// Lost audio over all reasons, in ms.
    pub fn lost_audio_ms(&self) -> u64 {
        let families = prometheus::core::Collector::collect(&self.audio_lost_seconds_total);
        let series = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
        (series.map(|m| m.get_counter().get_value()).sum::<f64>() * 1000.0).round() as u64
    }

    fn sample_process(&self) {
        if let Ok(statm) = std::fs::read_to_string("/proc/self/statm") {
            let pages: f64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0.0);
            self.process_resident_bytes.set(pages * 4096.0);
        }
        if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
            self.process_open_fds.set(fds.count() as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_help_and_type_and_the_prefix() {
        let metrics = Metrics::new();
        metrics.sessions_active.set(3);
        metrics.batch_flushes_total.with_label_values(&["size"]).inc();
        let text = metrics.encode();
        assert!(text.contains("stenocast_sessions_active 3"));
        assert!(text.contains("stenocast_batch_flushes_total{trigger=\"size\"} 1"));
        assert!(text.contains("stenocast_connection_errors_total{kind=\"stt\"} 0"), "there before its first event");
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            assert!(line.starts_with("stenocast_"), "{line}");
        }
    }
}
