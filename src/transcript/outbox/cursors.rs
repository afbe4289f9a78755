//! Positions of consumers: `outbox/cursors/{name}`, replaced atomically. A lost or damaged cursor costs nothing
//! but a replay, and consumers are idempotent; so it is written seldom and never synced.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Name of a consumer and the highest index that it has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub name: String,
    pub confirmed: u64,
}

/// The cursors of `names`; 0 where there is no readable file.
pub fn load(dir: &Path, names: &[String]) -> Vec<Cursor> {
    names.iter().map(|name| Cursor { name: name.clone(), confirmed: read(&path_of(dir, name)).unwrap_or(0) }).collect()
}

/// Forgets consumers that are no longer there: if one of that name comes back, it starts with the oldest record.
pub fn remove_others(dir: &Path, names: &[String]) -> io::Result<()> {
    let known: Vec<PathBuf> = names.iter().map(|name| path_of(dir, name)).collect();
    for file in std::fs::read_dir(dir.join("cursors"))? {
        let path = file?.path();
        if !known.contains(&path) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

pub fn save(dir: &Path, cursor: &Cursor) -> io::Result<()> {
    let path = path_of(dir, &cursor.name);
    let temporary = path.with_extension("tmp");
    let text = cursor.confirmed.to_string();
    let mut file = std::fs::File::create(&temporary)?;
    writeln!(file, "{text} {:08x}", crc32fast::hash(text.as_bytes()))?;
    std::fs::rename(&temporary, &path)
}

fn read(path: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let (number, crc) = text.trim_end().split_once(' ')?;
    let good = u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(number.as_bytes());
    number.parse().ok().filter(|_| good)
}

/// A consumer may be named by a URL: what is not a plain character is written in hex.
fn path_of(dir: &Path, name: &str) -> PathBuf {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let safe: String =
        name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02x}") }).collect();
    dir.join("cursors").join(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_a_damaged_one_starts_at_zero() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("cursors")).unwrap();
        let names = ["database".to_owned(), "http://ws-1:8080/a".to_owned()];
        for (cursor, confirmed) in load(dir.path(), &names).into_iter().zip([7, 1 << 40]) {
            assert_eq!(cursor.confirmed, 0);
            save(dir.path(), &Cursor { confirmed, ..cursor }).unwrap();
        }
        let found: Vec<_> = load(dir.path(), &names).into_iter().map(|c| c.confirmed).collect();
        assert_eq!(found, [7, 1 << 40]);
        std::fs::write(path_of(dir.path(), "database"), "8 00000000\n").unwrap();
        assert_eq!(load(dir.path(), &names)[0].confirmed, 0);
    }
}
