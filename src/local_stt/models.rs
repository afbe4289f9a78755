//! The model files on disk: which there are, and whether they are what they should be.
//!
//! `scripts/models.lock` is the one list of names and SHA-256 hashes, for the install script and for this check. A
//! directory that the script filled holds the file [`MARK`]; there, every file must match. Any other directory is
//! someone's own model and is taken with a warning.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const LOCK: &str = include_str!("../../scripts/models.lock");
/// Written last by the install script.
pub const MARK: &str = "models.lock";
pub const ENCODER: &str = "encoder_model.ort";
pub const DECODER: &str = "decoder_model_merged.ort";
pub const TOKENIZER: &str = "tokenizer.bin";
pub const RUNTIME: &str = "libonnxruntime.so";
pub const VAD: &str = "silero_vad.onnx";
const NEEDED: [&str; 5] = [ENCODER, DECODER, TOKENIZER, RUNTIME, VAD];

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("model file {0} is missing; run scripts/models.sh, or point MODEL_DIR at a directory that has it")]
    Missing(PathBuf),
    #[error(
        "model file {path} is corrupt (SHA-256 {found}, expected {expected}); delete the directory and run scripts/models.sh"
    )]
    Corrupt { path: PathBuf, found: String, expected: String },
    #[error("model file {path} cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("model file {path} cannot be used: {why}")]
    Invalid { path: PathBuf, why: String },
}

/// A directory whose files are all there and checked.
#[derive(Debug, Clone)]
pub struct ModelDir {
    dir: PathBuf,
    /// False for someone's own files.
    pub pinned: bool,
}

impl ModelDir {
    /// Checks presence and hashes. Reads all files: about 0.2 s; not for an arbiter.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let marked = dir.join(MARK).exists();
        let mut pinned = true;
        for name in NEEDED {
            let path = dir.join(name);
            let found = hash(&path)?;
            let expected = expected(name);
            if expected.contains(&found.as_str()) {
                continue;
            }
            if marked {
                return Err(ModelError::Corrupt { path, found, expected: expected.join(" or ") });
            }
            pinned = false;
            tracing::warn!(file = %path.display(), "model file is not a known one; taken as it is");
        }
        Ok(Self { dir: dir.to_owned(), pinned })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// For humans: what model this is.
    pub fn name(&self) -> &'static str {
        if self.pinned { "moonshine tiny-en" } else { "moonshine (own files)" }
    }
}

/// All hashes that are right for `name` (one per architecture).
fn expected(name: &str) -> Vec<&'static str> {
    let fields = LOCK.lines().filter_map(|line| line.strip_prefix("#file "));
    fields
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|f| f.first() == Some(&name))
        .filter_map(|f| f.get(2).copied())
        .collect()
}

fn hash(path: &Path) -> Result<String, ModelError> {
    let read = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing(path.to_owned()),
        _ => ModelError::Read { path: path.to_owned(), source },
    };
    let mut file = std::fs::File::open(path).map_err(read)?;
    let mut digest = Sha256::new();
    std::io::copy(&mut file, &mut digest).map_err(read)?;
    Ok(hex::encode(digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in NEEDED {
            std::fs::write(dir.path().join(name), "not a model").unwrap();
        }
        dir
    }

    #[test]
    fn every_needed_file_is_pinned() {
        for name in NEEDED {
            assert!(!expected(name).is_empty(), "{name}");
            assert!(expected(name).iter().all(|h| h.len() == 64), "{name}");
        }
        assert_eq!(expected(RUNTIME).len(), 2);
    }

    #[test]
    fn a_missing_file_is_named_with_the_remedy() {
        let dir = filled();
        std::fs::remove_file(dir.path().join(TOKENIZER)).unwrap();
        let error = ModelDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.bin is missing") && error.contains("scripts/models.sh"), "{error}");
    }

    #[test]
    fn an_installed_directory_must_match_and_an_own_one_need_not() {
        let dir = filled();
        assert!(!ModelDir::open(dir.path()).unwrap().pinned);
        std::fs::write(dir.path().join(MARK), LOCK).unwrap();
        let error = ModelDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("encoder_model.ort is corrupt") && error.contains("scripts/models.sh"), "{error}");
    }
}
