//! Node programs of the tests, installed under `target/` with the versions of their lock file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Copies `tests/sdk/{name}` to the build directory, runs `npm ci` there when needed and gives the place.
pub fn install(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name);
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk").join(name);
    let _alone = alone_in(&place);
    for file in fs::read_dir(&source).unwrap().map(|file| file.unwrap()) {
        replace(&place.join(file.file_name()), &fs::read(file.path()).unwrap());
    }
    install_in(&place);
    place
}

/// Runs `npm ci` in a place whose lock file is not the installed one. Nobody else may install there meanwhile.
pub fn install_in(place: &Path) {
    let lock = fs::read(place.join("package-lock.json")).unwrap();
    let installed = place.join("installed-lock.json");
    if fs::read(&installed).ok().as_ref() != Some(&lock) {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(place);
        let output = npm.output().expect("npm is needed; run `apt-get install nodejs npm` (Node 20 or newer)");
        assert!(output.status.success(), "npm ci failed: {}", String::from_utf8_lossy(&output.stderr));
        fs::write(&installed, lock).unwrap();
    }
}

/// Tests are threads and processes: who holds this is the only one of both that installs in `dir`.
pub fn alone_in(dir: &Path) -> File {
    fs::create_dir_all(dir).unwrap();
    let guard = File::create(dir.join(".lock")).unwrap();
    guard.lock().unwrap();
    guard
}

/// At once, and only if it differs: the program of another test may be reading the file.
fn replace(path: &Path, content: &[u8]) {
    if fs::read(path).is_ok_and(|old| old == content) {
        return;
    }
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}
