//! The example `examples/nextjs`, installed and built under `target/`, as its readers do it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::npm;
use super::wait::DEADLINE;

/// What the example is made of: it finds the client module beside it.
const PARTS: [&str; 2] = ["examples/nextjs", "web"];
/// Left by its tools; everything else is copied.
const LEFT_BEHIND: [&str; 5] = ["node_modules", ".next", "next-env.d.ts", ".env.local", "tsconfig.tsbuildinfo"];
/// A build takes half a minute on one core.
const BUILD_TIMEOUT: Duration = Duration::from_secs(600);

/// The running app; it ends when dropped, with the processes that it has started.
pub struct NextJs {
    pub url: String,
    node: Child,
}

impl NextJs {
    /// The module of livekit-client that it has installed.
    pub async fn livekit_client() -> PathBuf {
        built().await.join("node_modules/livekit-client/dist/livekit-client.esm.mjs")
    }

    /// The production build, with these settings.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        Self::run(&["start"], settings).await
    }

    /// The development server: React runs every effect twice, and says when a page differs from the server's.
    pub async fn develop(settings: &[(&str, &str)]) -> Self {
        let app = Self::run(&["dev"], settings).await;
        // It compiles what is asked for the first time, which takes longer than a browser's patience.
        for path in ["", "/rooms/demo", "/api/token"] {
            let answer = awc::Client::default().get(format!("{}{path}", app.url)).timeout(BUILD_TIMEOUT).send().await;
            answer.expect("the development server answers");
        }
        app
    }

    async fn run(args: &[&str], settings: &[(&str, &str)]) -> Self {
        let place = built().await;
        let mut node = next(&place, args);
        node.args(["--port", "0", "--hostname", "127.0.0.1"]).envs(settings.iter().copied());
        let mut node = node.stdout(Stdio::piped()).process_group(0).spawn().expect("it was installed");
        let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
        let mut app = Self { url: String::new(), node };
        let said = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(at) = line.find("http://127.0.0.1:") {
                    return line[at..].trim().to_owned();
                }
            }
            panic!("it ended, and never said where it listens");
        };
        app.url = tokio::time::timeout(DEADLINE, said).await.expect("it listens in time");
        // Nobody else reads what it says; a full pipe would stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        app
    }
}

impl Drop for NextJs {
    fn drop(&mut self) {
        // The development server is a child's child.
        let group = self.node.id().map(|id| Pid::from_raw(id as i32));
        let _ = group.map(|group| killpg(group, Signal::SIGKILL));
    }
}

/// Copies, installs, lints and builds what has changed since the last time; gives the place.
async fn built() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nextjs");
    let _alone = npm::alone_in(&target);
    let place = target.join(PARTS[0]);
    let files = files();
    let mut digest = Sha256::new();
    for (path, content) in &files {
        digest.update(format!("{path} {}\n", content.len()));
        digest.update(content);
    }
    let digest = hex::encode(digest.finalize());
    let stamp = target.join("built");
    if fs::read_to_string(&stamp).is_ok_and(|built| built == digest) {
        return place;
    }
    let _ = fs::remove_file(&stamp);
    PARTS.iter().for_each(|part| clear(&target.join(part)));
    for (path, content) in &files {
        let path = target.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    npm::install_in(&place);
    let mut lint = npm_run(&place, "lint");
    // By name: it passes over folders that git ignores, as this one is.
    let sources = files.iter().filter_map(|(path, _)| path.strip_prefix("examples/nextjs/"));
    lint.arg("--").args(sources.filter(|path| path.ends_with(".ts") || path.ends_with(".tsx")));
    run(lint).await;
    run(next(&place, &["build"])).await;
    fs::write(stamp, digest).unwrap();
    place
}

/// All files of the example, by their path in the repository and in a fixed order.
fn files() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders: Vec<_> = PARTS.iter().map(|part| root.join(part)).collect();
    while let Some(folder) = folders.pop() {
        for file in fs::read_dir(folder).unwrap().map(|file| file.unwrap()) {
            let path = file.path();
            if LEFT_BEHIND.iter().any(|name| file.file_name() == *name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().expect("a plain name").to_owned();
                files.push((name, fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// Takes away what may not be in the repository any more, and keeps what was installed.
fn clear(folder: &Path) {
    for file in fs::read_dir(folder).into_iter().flatten().map(|file| file.unwrap()) {
        let path = file.path();
        match () {
            () if file.file_name() == "node_modules" || file.file_name() == "installed-lock.json" => {}
            () if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            () => fs::remove_file(path).unwrap(),
        }
    }
}

fn next(place: &Path, args: &[&str]) -> Command {
    let mut node = Command::new("node");
    node.arg("node_modules/next/dist/bin/next").args(args).current_dir(place);
    clean(node)
}

fn npm_run(place: &Path, script: &str) -> Command {
    let mut npm = Command::new("npm");
    npm.args(["run", script]).current_dir(place);
    clean(npm)
}

fn clean(mut command: Command) -> Command {
    for name in ["LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "LIVEKIT_URL", "STENOCAST_URL", "TOKEN_TTL_S", "NODE_ENV"] {
        command.env_remove(name);
    }
    command.env("NEXT_TELEMETRY_DISABLED", "1").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(mut command: Command) {
    let output = tokio::time::timeout(BUILD_TIMEOUT, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{command:?} takes longer than {BUILD_TIMEOUT:?}"));
    let output = output.expect("node and npm are needed; run `apt-get install nodejs npm` (Node 20.9 or newer)");
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).join("\n");
    assert!(output.status.success(), "{command:?}: {said}");
}
