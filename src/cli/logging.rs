//! Log output: text for people, JSON for collectors.

use std::fmt;
use std::io::{self, IsTerminal};

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;

/// Sends logs to stderr. A second call changes nothing.
pub fn init(filter: &str, format: LogFormat) {
    let filter = match EnvFilter::try_new(with_quiet_libraries(filter)) {
        Ok(filter) => filter,
        Err(_) => EnvFilter::new(with_quiet_libraries("info")),
    };
    let colours = std::io::stderr().is_terminal();
    // The library's own word about a line that cannot be written would be a panic, in whichever actor has said it.
    let builder = tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter);
    let builder = builder.with_writer(|| Tolerant(std::io::stderr())).with_ansi(colours);
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.fmt_fields(JsonFields::new()).event_format(JsonLines).try_init(),
    };
}

/// A log that cannot be written (its reader is gone, its disk is full) is no reason to stop anything.
struct Tolerant<W>(W);

impl<W: io::Write> io::Write for Tolerant<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        Ok(self.0.write(line).unwrap_or(line.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Libraries whose info lines say nothing to an operator, unless the filter names them.
const QUIET: &[&str] = &["actix_server", "ort"];

fn with_quiet_libraries(filter: &str) -> String {
    let quiet = QUIET.iter().filter(|library| !filter.contains(**library)).map(|library| format!(",{library}=warn"));
    std::iter::once(filter.to_owned()).chain(quiet).collect()
}

/// One object a line: `timestamp`, `level`, `target`, `message`, the event's fields, and those of the spans around it that
/// the event does not name itself. No key comes twice: an event's own `timestamp` (when the recogniser spoke) is the one.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let meta = event.metadata();
        let mut line = Map::new();
        line.insert("timestamp".into(), json!(Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)));
        line.insert("level".into(), json!(meta.level().as_str()));
        line.insert("target".into(), json!(meta.target()));
        for span in ctx.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.as_str());
            if let Ok(Value::Object(fields)) = serde_json::from_str(fields) {
                for (name, value) in fields {
                    line.entry(name).or_insert(value);
                }
            }
        }
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().trim_start_matches("r#").to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, json!(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_is_one_object_without_a_key_that_comes_twice() {
        let sink = Sink::default();
        let writer = sink.clone();
        let builder = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let subscriber = builder.fmt_fields(JsonFields::new()).event_format(JsonLines).finish();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("bridge", session = "demo", epoch = 7);
            let _entered = span.enter();
            tracing::info!(timestamp = "2026-01-01T00:00:00.000Z", epoch = 8, ok = true, quote = %"a\"b", "said");
        });
        let text = String::from_utf8(sink.0.lock().clone()).unwrap();
        assert_eq!(text.matches("\"timestamp\"").count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        let expected = json!({"timestamp": "2026-01-01T00:00:00.000Z", "level": "INFO", "session": "demo", "epoch": 8,
            "ok": true, "quote": "a\"b", "message": "said", "target": line["target"]});
        assert_eq!(line, expected);
    }
}
