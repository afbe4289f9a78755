//! Log output: text for people, JSON for collectors.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Sends logs to stderr. A second call changes nothing.
pub fn init(filter: &str, format: LogFormat) {
    let filter = match EnvFilter::try_new(with_quiet_libraries(filter)) {
        Ok(filter) => filter,
        Err(_) => EnvFilter::new(with_quiet_libraries("info")),
    };
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Libraries whose info lines say nothing to an operator, unless the filter names them.
const QUIET: &[&str] = &["actix_server", "ort"];

fn with_quiet_libraries(filter: &str) -> String {
    let quiet = QUIET.iter().filter(|library| !filter.contains(**library)).map(|library| format!(",{library}=warn"));
    std::iter::once(filter.to_owned()).chain(quiet).collect()
}
