//! The child process itself: how it is started, followed and ended.

use std::cell::Cell;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use actix::Addr;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::super::supervision::Exit;
use super::{News, SttCommand, SttProcess, What};
use crate::local_stt::parse_ready_line;

/// Between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(200);
/// All that the child gets of our environment: it needs no keys, so it has none.
const ENVIRONMENT: [&str; 9] =
    ["PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "RUST_LOG", "RUST_BACKTRACE", "LOG_FORMAT"];

/// The address that a child's watcher reports to.
pub(super) struct Tell {
    pub to: Addr<SttProcess>,
    pub generation: u64,
}

impl Tell {
    pub fn tell(&self, what: What) {
        self.to.do_send(News { generation: self.generation, what });
    }
}

pub(super) fn spawn(command: &SttCommand) -> std::io::Result<Child> {
    let mut child = Command::new(&command.program);
    child.args(&command.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    child.env_clear().envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // Its own group: a Ctrl-C in the terminal is for us, who still need it for the last words.
    child.process_group(0);
    let parent = nix::unistd::getpid();
    let die_with_parent = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: prctl and getppid are async-signal-safe, and nothing is allocated.
    unsafe { child.pre_exec(die_with_parent) };
    child.spawn()
}

/// Follows a child from its start to its end.
pub(super) async fn watch_child(mut child: Child, stopped: oneshot::Receiver<()>, ready_within: Duration, tell: Tell) {
    let is_ready = Cell::new(false);
    let on_stdout = |line: String| match parse_ready_line(&line) {
        Some(url) => {
            is_ready.set(true);
            tell.tell(What::Ready(url.to_owned()));
        }
        None => tracing::debug!(target: "stenocast::local_stt", "{line}"),
    };
    let on_stderr = |line| tell.tell(What::Said(line));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let output = async { tokio::join!(read_lines(stdout, on_stdout), read_lines(stderr, on_stderr)) };
    let late = tokio::time::sleep(ready_within);
    tokio::pin!(late, stopped, output);
    let (mut reading, mut timing) = (true, true);
    let exit = loop {
        tokio::select! {
            _ = &mut output, if reading => reading = false,
            status = child.wait() => break exit_of(status),
            _ = &mut stopped => break end(&mut child).await,
            () = &mut late, if timing => {
                timing = false;
                if !is_ready.get() {
                    end(&mut child).await;
                    break Exit::Failed(format!("not ready within {} ms", ready_within.as_millis()));
                }
            }
        }
    };
    // What it said last is often why it ended.
    if reading {
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, output).await;
    }
    tell.tell(What::Ended(exit));
}

async fn read_lines<R: AsyncRead + Unpin>(reader: Option<R>, mut each: impl FnMut(String)) {
    let Some(reader) = reader else { return };
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        each(line);
    }
}

fn exit_of(status: std::io::Result<ExitStatus>) -> Exit {
    Exit::Failed(status.map_or_else(|e| e.to_string(), |status| status.to_string()))
}

/// SIGTERM, then SIGKILL.
async fn end(child: &mut Child) -> Exit {
    use nix::sys::signal::{Signal, kill};
    if let Some(pid) = child.id() {
        let _ = kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGTERM);
    }
    if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    Exit::Normal
}

pub(super) async fn health(url: &str, timeout: Duration) -> Option<serde_json::Value> {
    let client = awc::Client::builder().timeout(timeout).finish();
    let mut answer = client.get(url).send().await.ok().filter(|a| a.status().is_success())?;
    answer.json().await.ok()
}
