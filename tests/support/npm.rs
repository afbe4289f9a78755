//! Node programs of the tests, installed under `target/` with the versions of their lock file.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Copies `tests/sdk/{name}` to the build directory, runs `npm ci` there when needed and gives the place.
pub fn install(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name);
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk").join(name);
    std::fs::create_dir_all(&place).unwrap();
    let lock = std::fs::read(source.join("package-lock.json")).unwrap();
    let installed = place.join("installed-lock.json");
    for file in std::fs::read_dir(&source).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), place.join(file.file_name())).unwrap();
    }
    if std::fs::read(&installed).ok().as_ref() != Some(&lock) {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&place);
        let output = npm.output().expect("npm is needed; run `apt-get install nodejs npm` (Node 20 or newer)");
        assert!(output.status.success(), "npm ci failed: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(&installed, lock).unwrap();
    }
    place
}
