//! Rows that the database will never take, kept for a person to look at: `DATA_DIR/quarantine/{date}.jsonl`.
//!
//! `stenocast quarantine` reads and changes the same files beside a running server; a lock keeps them apart.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::Utc;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::transcript::outbox::Record;
use crate::transcript::{Entry, SessionRecord};

const EXTENSION: &str = ".jsonl";

/// A record that was not stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The database refuses its contents.
    Rejected,
    /// Its number belongs to another entry.
    Conflict,
    /// It is not a record of this version.
    Unreadable,
}

impl Refusal {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Conflict => "conflict",
            Self::Unreadable => "unreadable",
        }
    }
}

impl Refused {
    pub fn new(index: u64, refusal: Refusal, reason: impl Into<String>, record: &Record) -> Self {
        let json = match record {
            Record::Entry(entry) => serde_json::to_value(entry.as_ref()),
            Record::Session(session) => serde_json::to_value(session.as_ref()),
        };
        Self { index, refusal, reason: reason.into(), record: json.unwrap_or(Value::Null) }
    }

    /// The record itself, its strings cleaned; None where this version cannot read it either.
    pub fn to_record(&self) -> Option<Record> {
        if let Value::String(bytes) = &self.record {
            return Record::decode(&hex::decode(bytes).ok()?).ok();
        }
        if let Ok(mut entry) = serde_json::from_value::<Entry>(self.record.clone()) {
            entry.clean();
            return Some(Record::Entry(Arc::new(entry)));
        }
        let session = serde_json::from_value::<SessionRecord>(self.record.clone()).ok()?;
        Some(Record::Session(Arc::new(session)))
    }
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// RFC 3339.
    pub at: String,
    pub refused: Refused,
}

/// The rows in quarantine, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuarantineSummary {
    pub rows: u64,
    /// The reason of the newest.
    pub reason: Option<String>,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Quarantine {
    dir: PathBuf,
    /// Names, lengths and times of the files, and what was in them.
    seen: Arc<Mutex<(Vec<Seen>, QuarantineSummary)>>,
}

type Seen = (PathBuf, u64, Option<std::time::SystemTime>);

impl Quarantine {
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("quarantine"), seen: Arc::default() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Appends and syncs. Blocks.
    pub fn put(&self, refused: &[Refused]) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let _lock = self.lock()?;
        let path = self.dir.join(format!("{}{EXTENSION}", Utc::now().format("%Y-%m-%d")));
        let mut lines = Vec::new();
        for one in refused {
            let kept = Kept { at: Utc::now().to_rfc3339(), refused: one.clone() };
            serde_json::to_writer(&mut lines, &kept)?;
            lines.push(b'\n');
        }
        let mut file = File::options().create(true).append(true).open(path)?;
        file.write_all(&lines)?;
        file.sync_data()
    }

    /// All rows, the oldest first; a row that was set aside twice is there once. A line that is none of ours is left
    /// out. Blocks.
    pub fn list(&self) -> io::Result<Vec<Kept>> {
        let mut rows: Vec<Kept> = Vec::new();
        for path in self.files()? {
            for kept in read(&path)?.into_iter().filter_map(Line::kept) {
                if !rows.iter().any(|row| row.refused == kept.refused) {
                    rows.push(kept);
                }
            }
        }
        Ok(rows)
    }

    /// Takes out these rows; answers how many lines that were. Blocks.
    pub fn remove(&self, gone: impl Fn(&Kept) -> bool) -> io::Result<usize> {
        let mut removed = 0;
        if self.files()?.is_empty() {
            return Ok(0);
        }
        let _lock = self.lock()?;
        for path in self.files()? {
            let lines = read(&path)?;
            let before = lines.len();
            let left: Vec<Line> = lines.into_iter().filter(|line| !line.1.as_ref().is_some_and(&gone)).collect();
            if left.len() == before {
                continue;
            }
            removed += before - left.len();
            replace(&path, &left)?;
        }
        Ok(removed)
    }

    /// Counts the rows. Reads a file again only when it has changed. Blocks.
    pub fn summary(&self) -> io::Result<QuarantineSummary> {
        let look = |path: PathBuf| {
            let metadata = std::fs::metadata(&path).ok();
            (path, metadata.as_ref().map_or(0, std::fs::Metadata::len), metadata.and_then(|m| m.modified().ok()))
        };
        let files: Vec<Seen> = self.files()?.into_iter().map(look).collect();
        let mut seen = self.seen.lock();
        if seen.0 != files {
            let rows = self.list()?;
            let reason = rows.last().map(|kept| kept.refused.reason.clone());
            *seen = (files, QuarantineSummary { rows: rows.len() as u64, reason });
        }
        Ok(seen.1.clone())
    }

    /// Removes the files of days before `day`: they hold what was said, too. Blocks.
    pub fn purge(&self, before: chrono::DateTime<Utc>) -> io::Result<usize> {
        let last = before.format("%Y-%m-%d.jsonl").to_string();
        let is_old = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n < last.as_str());
        let old: Vec<_> = self.files()?.into_iter().filter(is_old).collect();
        old.iter().try_for_each(std::fs::remove_file)?;
        Ok(old.len())
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

    /// The files of rows, the oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
        let is_ours =
            |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(EXTENSION));
        let mut files: Vec<_> = paths.into_iter().filter(is_ours).collect();
        files.sort();
        Ok(files)
    }

    /// Locks the directory itself, as long as the file is open.
    fn lock(&self) -> io::Result<File> {
        let dir = File::open(&self.dir)?;
        dir.lock()?;
        Ok(dir)
    }
}

/// A line as it is, and what it says.
struct Line(String, Option<Kept>);

impl Line {
    fn kept(self) -> Option<Kept> {
        self.1
    }
}

fn read(path: &Path) -> io::Result<Vec<Line>> {
    let text = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
    let lines = text.lines().filter(|line| !line.is_empty());
    Ok(lines.map(|line| Line(line.to_owned(), serde_json::from_str(line).ok())).collect())
}

/// A file without a line goes.
fn replace(path: &Path, lines: &[Line]) -> io::Result<()> {
    if lines.is_empty() {
        return std::fs::remove_file(path);
    }
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    for Line(text, _) in lines {
        writeln!(file, "{text}")?;
    }
    file.sync_data()?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::{Epoch, Slug};

    fn refused(index: u64, reason: &str) -> Refused {
        let session = SessionRecord::begun(Epoch::from_u128(index.into()), Slug::parse("demo").unwrap(), Utc::now());
        Refused::new(index, Refusal::Rejected, reason, &Record::Session(Arc::new(session)))
    }

    #[test]
    fn old_files_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(dir.path());
        let now = Utc::now();
        assert_eq!(quarantine.purge(now).unwrap(), 0, "there is none yet");
        quarantine.put(&[refused(1, "why")]).unwrap();
        for name in ["2020-01-01.jsonl", "notes.txt"] {
            std::fs::write(quarantine.dir.join(name), "x").unwrap();
        }
        assert_eq!(quarantine.purge(now).unwrap(), 1);
        assert!(quarantine.dir.join("notes.txt").exists(), "it is none of ours");
        assert_eq!(quarantine.summary().unwrap().rows, 1, "that of today");
    }

    #[test]
    fn rows_are_counted_once_and_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(dir.path());
        assert_eq!(quarantine.summary().unwrap(), QuarantineSummary::default());
        let rows = [refused(1, "a"), refused(2, "b"), refused(3, "c")];
        quarantine.put(&rows).unwrap();
        // A batch that was repeated after a crash sets the same rows aside again.
        quarantine.put(&rows[..2]).unwrap();
        std::fs::write(quarantine.dir.join("2020-01-01.jsonl"), "none of ours\n").unwrap();
        let summary = QuarantineSummary { rows: 3, reason: Some("c".into()) };
        assert_eq!(quarantine.summary().unwrap(), summary);
        let found: Vec<_> = quarantine.list().unwrap().into_iter().map(|kept| kept.refused).collect();
        assert_eq!(found, rows);
        assert!(found.iter().all(|one| matches!(one.to_record(), Some(Record::Session(_)))));
        assert_eq!(quarantine.remove(|kept| kept.refused.index == 1).unwrap(), 2, "both lines");
        // Another process sees the change.
        assert_eq!(Quarantine::new(dir.path()).summary().unwrap().rows, 2);
        assert_eq!(quarantine.summary().unwrap().rows, 2);
        assert_eq!(quarantine.remove(|_| true).unwrap(), 3);
        assert_eq!(quarantine.summary().unwrap(), QuarantineSummary::default());
        assert!(quarantine.dir.join("2020-01-01.jsonl").exists(), "what cannot be read is not thrown away");
    }
}
