//! The supervised child process. The children are this test program itself (with the marker engine) and shell scripts.

mod support;

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use stenocast::actors::Shutdown;
use stenocast::actors::stt_process::{SttCommand, SttProcess, SttTiming};
use stenocast::actors::supervision::Observe;
use stenocast::local_stt::{self, EngineKind, Limits, SttOptions};
use stenocast::metrics::Metrics;
use support::wait::{DEADLINE, until};
use tokio::sync::watch;

/// Not a test: what the children run.
#[actix::test]
#[ignore = "the child of the other tests"]
async fn child() {
    let options = SttOptions {
        host: "127.0.0.1".to_owned(),
        port: 0,
        model_dir: "unused".into(),
        threads: 1,
        max_sessions: 1,
        engine: EngineKind::Marker,
        faults: false,
        keep_audio: false,
        limits: Limits::default(),
    };
    let mut service = local_stt::serve(options).await.unwrap();
    println!("\n{}", service.ready_line());
    service.ended().await.unwrap();
}

/// Not a test: a server that is killed.
#[actix::test]
#[ignore = "the parent that another test kills"]
async fn parent() {
    let running = start(script("exec sleep 1000"));
    let state = running.until(|s| s["pid"].is_number()).await;
    println!("\nchild {}", state["pid"]);
    std::future::pending::<()>().await;
}

#[actix::test]
async fn the_child_dies_with_a_killed_server() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "parent", "--include-ignored", "--nocapture"]);
    let mut server = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let child = loop {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
        if let Some(pid) = line.strip_prefix("child ") {
            break pid.parse().unwrap();
        }
    };
    assert!(lives(child));
    server.kill().await.unwrap();
    until("the child dies", async || !lives(child)).await;
}

fn own_child() -> SttCommand {
    let args = ["--exact", "child", "--include-ignored", "--nocapture"].map(str::to_owned).to_vec();
    let millis = Duration::from_millis;
    let timing = SttTiming { ready_within: DEADLINE, health_period: millis(30), health_timeout: millis(1000) };
    SttCommand { program: std::env::current_exe().unwrap(), args, timing }
}

fn script(text: &str) -> SttCommand {
    SttCommand { program: "/bin/sh".into(), args: vec!["-c".to_owned(), text.to_owned()], timing: SttTiming::default() }
}

struct Running {
    actor: Addr<SttProcess>,
    url: watch::Receiver<Option<String>>,
    metrics: Arc<Metrics>,
}

fn start(command: SttCommand) -> Running {
    let metrics = Arc::new(Metrics::new());
    let (tx, url) = watch::channel(None);
    Running { actor: SttProcess::new(command, tx, metrics.clone()).start(), url, metrics }
}

impl Running {
    async fn until(&self, enough: impl Fn(&Value) -> bool) -> Value {
        let state = async || {
            let state = serde_json::to_value(self.actor.send(Observe::default()).await.unwrap()).unwrap();
            if enough(&state) { Ok(state) } else { Err(state) }
        };
        until("the process is in the state", state).await
    }

    async fn until_ready(&self) -> (i32, String) {
        let state = self.until(|s| s["ready"] == true && s["model"].is_string()).await;
        (state["pid"].as_i64().unwrap() as i32, state["url"].as_str().unwrap().to_owned())
    }
}

fn lives(pid: i32) -> bool {
    // A zombie answers signals too.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[actix::test]
async fn the_child_is_found_and_ended_with_its_parent_s_word() {
    let mut running = start(own_child());
    let (pid, url) = running.until_ready().await;
    assert_eq!(running.url.borrow_and_update().as_deref(), Some(url.as_str()));
    assert_eq!(running.metrics.stt_process_up.get(), 1);
    let health = awc::Client::default().get(format!("{url}/health")).send().await;
    assert_eq!(health.unwrap().status(), 200);
    running.actor.send(Shutdown).await.unwrap();
    assert!(!lives(pid));
    assert_eq!(*running.url.borrow(), None);
    assert_eq!(running.metrics.stt_process_up.get(), 0);
}

#[actix::test]
async fn a_killed_and_a_frozen_child_are_replaced() {
    let running = start(own_child());
    let (first, _) = running.until_ready().await;
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    let is_another = |state: &Value, pid: i32| state["ready"] == true && state["pid"] != pid;
    let has_fault = |state: &Value, word: &str| state["lastFault"].as_str().is_some_and(|fault| fault.contains(word));
    let state = running.until(|s| is_another(s, first)).await;
    assert!(has_fault(&state, "SIGKILL"), "{state}");
    let (second, _) = running.until_ready().await;
    kill(Pid::from_raw(second), Signal::SIGSTOP).unwrap();
    let state = running.until(|s| is_another(s, second)).await;
    assert!(has_fault(&state, "frozen"), "{state}");
    assert!(!lives(second));
    // A machine that stands still for seconds makes a healthy child look frozen, too.
    assert!(running.metrics.stt_process_restarts_total.get() >= 2);
    running.actor.send(Shutdown).await.unwrap();
}

#[actix::test]
async fn a_child_that_cannot_start_is_visible_with_its_reason() {
    let running = start(script("echo 'model file x is missing; run scripts/models.sh' >&2; exit 69"));
    let state = running.until(|s| s["state"] == "failed").await;
    let fault = state["lastFault"].as_str().unwrap();
    assert!(fault.contains("scripts/models.sh") && fault.contains("69"), "{fault}");
    assert_eq!(state["restarts"], 5);
    running.actor.send(Shutdown).await.unwrap();
    let nothing = start(SttCommand { program: "/nonexistent/program".into(), ..script("") });
    let state = nothing.until(|s| s["lastFault"].is_string()).await;
    assert!(state["lastFault"].as_str().unwrap().contains("/nonexistent/program"), "{state}");
    nothing.actor.send(Shutdown).await.unwrap();
}

#[actix::test]
async fn a_child_that_never_gets_ready_is_ended() {
    let mut command = script("trap '' TERM; echo hello; sleep 1000");
    command.timing.ready_within = Duration::from_millis(100);
    let running = start(command);
    let state = running.until(|s| s["lastFault"].is_string()).await;
    assert!(state["lastFault"].as_str().unwrap().contains("not ready within 100 ms"), "{state}");
    running.actor.send(Shutdown).await.unwrap();
}

#[actix::test]
async fn the_child_gets_no_keys() {
    let running = start(script("exec sleep 1000"));
    let state = running.until(|s| s["pid"].is_number()).await;
    let path = format!("/proc/{}/environ", state["pid"]);
    let environment = async || {
        let environment = std::fs::read_to_string(&path).unwrap();
        if environment.contains("PATH=") { Ok(environment) } else { Err(environment) }
    };
    let environment = until("the child has become its program", environment).await;
    for pair in environment.split('\0').filter(|pair| !pair.is_empty()) {
        let name = pair.split('=').next().unwrap();
        let passed =
            ["PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "RUST_LOG", "RUST_BACKTRACE", "LOG_FORMAT"];
        // What the shell adds by itself when it becomes the sleep.
        let own = ["PWD", "OLDPWD", "SHLVL", "_"];
        assert!(passed.contains(&name) || own.contains(&name), "{name}");
    }
    running.actor.send(Shutdown).await.unwrap();
}
