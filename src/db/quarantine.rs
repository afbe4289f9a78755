//! Rows that the database will never take, kept for a person to look at: `DATA_DIR/quarantine/{date}.jsonl`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::Utc;
use serde::Serialize;
use serde_json::Value;

use crate::log::outbox::Record;

/// A record that was not stored.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Its index in the outbox.
    pub index: u64,
    pub refusal: Refusal,
    /// The database's words.
    pub reason: String,
    /// The entry or session as JSON; where that cannot be read, its bytes in hex.
    pub record: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The database refuses its contents.
    Rejected,
    /// Its number belongs to another entry.
    Conflict,
    /// It is not a record of this version.
    Unreadable,
}

impl Refused {
    pub fn new(index: u64, refusal: Refusal, reason: impl Into<String>, record: &Record) -> Self {
        let json = match record {
            Record::Entry(entry) => serde_json::to_value(entry.as_ref()),
            Record::Session(session) => serde_json::to_value(session.as_ref()),
        };
        Self { index, refusal, reason: reason.into(), record: json.unwrap_or(Value::Null) }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Quarantine {
    dir: PathBuf,
}

impl Quarantine {
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("quarantine") }
    }

    /// Appends and syncs. Blocks.
    pub fn put(&self, refused: &[Refused]) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(format!("{}.jsonl", Utc::now().format("%Y-%m-%d")));
        let mut lines = Vec::new();
        for one in refused {
            let at = Utc::now().to_rfc3339();
            serde_json::to_writer(&mut lines, &serde_json::json!({ "at": at, "refused": one }))?;
            lines.push(b'\n');
        }
        let mut file = std::fs::File::options().create(true).append(true).open(path)?;
        file.write_all(&lines)?;
        file.sync_data()
    }

    /// Removes the files of days before `day`: they hold what was said, too. Blocks.
    pub fn purge(&self, before: chrono::DateTime<Utc>) -> io::Result<usize> {
        let last = before.format("%Y-%m-%d.jsonl").to_string();
        let mut purged = 0;
        let files = match std::fs::read_dir(&self.dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        for file in files {
            let path = file?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if name.ends_with(".jsonl") && name < last.as_str() {
                std::fs::remove_file(&path)?;
                purged += 1;
            }
        }
        Ok(purged)
    }

    /// Appends on a blocking thread and says so for each row. What cannot even be put aside is written to the log: it
    /// must not stop the rows behind it.
    pub async fn set_aside(&self, refused: &[Refused]) {
        if refused.is_empty() {
            return;
        }
        let (this, rows) = (self.clone(), refused.to_vec());
        let put = tokio::task::spawn_blocking(move || this.put(&rows)).await;
        let result = put.unwrap_or_else(|e| Err(io::Error::other(e)));
        for one in refused {
            let (index, reason, dir) = (one.index, &one.reason, self.dir.display());
            match &result {
                Ok(()) => {
                    tracing::error!(index, refusal = ?one.refusal, reason, %dir, "a row was refused; it is in quarantine");
                }
                Err(error) => {
                    tracing::error!(%error, reason, record = %one.record, "a row was refused and could not be put in quarantine");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(dir.path());
        let now = Utc::now();
        assert_eq!(quarantine.purge(now).unwrap(), 0, "there is none yet");
        let record = Record::Session(std::sync::Arc::new(crate::log::SessionRecord::begun(
            crate::log::Epoch::nil(),
            crate::log::Slug::parse("demo").unwrap(),
            now,
        )));
        quarantine.put(&[Refused::new(1, Refusal::Rejected, "why", &record)]).unwrap();
        for name in ["2020-01-01.jsonl", "notes.txt"] {
            std::fs::write(quarantine.dir.join(name), "x").unwrap();
        }
        assert_eq!(quarantine.purge(now).unwrap(), 1);
        assert_eq!(std::fs::read_dir(&quarantine.dir).unwrap().count(), 2, "that of today, and what is none of ours");
    }
}
