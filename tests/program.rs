//! The program as its users run it: help, faults of the configuration, ports in use, signals, secrets.

mod support;

use std::process::Stdio;

use support::app::KEY;
use support::nats::{Nats, Version};
use support::stt::marker_service;
use support::viewer::Viewer;
use support::wait::{DEADLINE, until, until_blocking};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stenocast"));
    for setting in stenocast::config::SETTINGS {
        command.env_remove(setting.name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Exit code and what it said on stderr.
async fn refused(mut command: Command) -> (i32, String) {
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends").expect("it runs");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A running server and everything that it logs.
struct Running {
    child: Child,
    http: std::net::SocketAddr,
    rtmp: std::net::SocketAddr,
    /// Everything on stderr so far; closed at its end.
    said: watch::Receiver<String>,
    reading: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(dir: &std::path::Path, more: &[(&str, &str)]) -> Self {
        Self::start_with_filter(dir, more, "stenocast=debug").await
    }

    async fn start_with_filter(dir: &std::path::Path, more: &[(&str, &str)], filter: &str) -> Self {
        let mut command = program(&["serve"]);
        let values = support::app::settings(dir, more);
        command.envs(values).env("LOG_FORMAT", "json").env("RUST_LOG", filter);
        let mut child = command.spawn().expect("the program runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let (saying, mut said) = watch::channel(String::new());
        let reading = tokio::spawn(async move {
            let mut line = String::new();
            while log.read_line(&mut line).await.unwrap() > 0 {
                saying.send_modify(|said| said.push_str(&line));
                line.clear();
            }
        });
        let found = logged(&mut said, "server started").await;
        let line = found.lines().find(|line| line.contains("server started")).expect("it was found");
        let event: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let addr = |name: &str| event[name].as_str().and_then(|a| a.parse().ok()).expect("an address");
        Self { http: addr("http"), rtmp: addr("rtmp"), child, said, reading }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.child.id().expect("it runs") as i32;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits until the log has the text.
    async fn logged(&mut self, text: &str) {
        logged(&mut self.said, text).await;
    }

    /// Waits for the end: exit code and the whole log.
    async fn end(mut self) -> (i32, String) {
        let rest = async {
            while self.said.changed().await.is_ok() {}
            self.child.wait().await.unwrap().code().unwrap_or(-1)
        };
        let code = tokio::time::timeout(DEADLINE, rest).await.expect("it stops");
        let said = self.said.borrow().clone();
        (code, said)
    }
}

/// Waits until `said` has the text, and returns all of it.
async fn logged(said: &mut watch::Receiver<String>, text: &str) -> String {
    let found = tokio::time::timeout(DEADLINE, said.wait_for(|said| said.contains(text))).await;
    let found = found.map(|said| said.map(|said| said.clone()));
    match found {
        Ok(Ok(said)) => said,
        _ => panic!("{text:?} was not logged: {}", *said.borrow()),
    }
}

#[tokio::test]
async fn help_reads_well() {
    for args in
        [&["--help"][..], &["serve", "--help"], &["stt", "--help"], &["token", "--help"], &["migrate", "--help"]]
    {
        let output = program(args).output().await.unwrap();
        assert!(output.status.success());
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(help.contains("Usage: stenocast"), "{help}");
    }
}

#[tokio::test]
async fn dev_prints_links_that_fit_the_settings_and_the_pair_that_it_made_up() {
    let dir = tempfile::tempdir().unwrap();
    let start = |more: &[(&str, &str)]| {
        let mut command = program(&["serve", "--dev", "--port", "0", "--rtmp-port", "0"]);
        command.env("DATA_DIR", dir.path()).env("GLADIA_API_URL", "http://127.0.0.1:9").envs(more.iter().copied());
        command.spawn().unwrap()
    };
    let links = async |mut child: Child, last: &str| {
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = String::new();
        while !said.contains(last) {
            let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.expect("the links in time");
            said += &(line.unwrap().expect("the server lives") + "\n");
        }
        child.kill().await.unwrap();
        said
    };
    let said = links(start(&[]), "keys").await;
    assert!(said.contains("rtmp://localhost:") && said.contains("curl http://"), "{said}");
    let (_, pair) = said.split_once("LIVEKIT_API_KEY=devkey LIVEKIT_API_SECRET=").expect("the pair");
    let secret = stenocast::config::Secret::new(pair.trim());
    let token = said.split("token=").nth(1).unwrap().split_whitespace().next().unwrap();
    let verifier = stenocast::livekit::token::TokenVerifier::new(&[("devkey".into(), secret)]);
    assert!(verifier.verify(token).is_ok(), "it is the pair that signed the link's token");
    let said = links(start(&[("RTMP_PUBLISH_KEY", "s3cret"), ("ADMIN_TOKEN", "s3cret-2")]), "keys").await;
    assert!(said.contains("stenocast token --publish --room demo") && said.contains("Bearer $ADMIN_TOKEN"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    let own = [("LIVEKIT_API_KEY", "own"), ("LIVEKIT_API_SECRET", "s3cret-3")];
    let said = links(start(&own), "token   ").await;
    assert!(!said.contains("s3cret") && !said.contains("keys"), "{said}");
}

#[tokio::test]
async fn the_demo_has_the_exit_codes_of_the_server() {
    assert_eq!(refused(program(&["demo", "--port", "99999"])).await.0, 64);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = refused(program(&["demo", "--port", &port])).await;
    assert_eq!(code, 69, "{said}");
    assert_eq!(said.matches("in use").count(), 1, "said once: {said}");
}

#[tokio::test]
async fn all_faults_of_the_configuration_are_reported_at_once() {
    let mut command = program(&["serve", "--audio-chunk-ms", "7"]);
    command.env("SERVER_MODE", "everything").env("PORT", "notaport").env("LIVEKIT_API_SECRET", "hush-hush");
    let (code, said) = refused(command).await;
    assert_eq!(code, 64);
    for part in
        ["SERVER_MODE is \"everything\"; allowed: both, rtmp, ws", "PORT is \"notaport\"", "20 to 1000", "--dev"]
    {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!said.contains("hush-hush"));
}

#[tokio::test]
async fn a_port_in_use_and_a_bad_directory_are_said_plainly() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let mut command = program(&["serve"]);
    command.envs(support::app::settings(dir.path(), &[("PORT", &port)]));
    let (code, said) = refused(command).await;
    assert_eq!(code, 69, "{said}");
    assert!(said.contains(&port) && said.contains("PORT"), "{said}");

    let file = dir.path().join("a-file");
    std::fs::write(&file, "not a directory").unwrap();
    let mut command = program(&["serve"]);
    command.envs(support::app::settings(&file, &[]));
    let (code, said) = refused(command).await;
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("a-file"), "{said}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_stops_nothing() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let mut server = Running::start(dir.path(), &[("GLADIA_API_URL", &stt.url)]).await;
    server.reading.abort();
    // Its end of the pipe is closed with it.
    while server.said.changed().await.is_ok() {}
    let mut viewer = Viewer::connect(server.http, "demo", "").await;
    let _publisher = live_publisher(dir.path(), &format!("rtmp://{}/live/demo", server.rtmp));
    viewer.until("three finals", |seen| seen.iter().filter(|m| m["isFinal"] == true).count() == 3).await;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    viewer.until_closed().await;
    assert_eq!((viewer.closed, server.end().await.0), (Some(1001), 0));
}

#[tokio::test]
async fn a_server_without_its_root_leaves_for_a_restart() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let server = support::server::Server::start_drill(dir.path(), &[("GLADIA_API_URL", &stt.url)]).await;
    let order = r#"{"crash":"root"}"#;
    let (status, _) = support::server::request(server.http, "POST", "/drill", order).await.unwrap();
    assert_eq!(status, 200);
    let (code, log) = server.end().await;
    assert_eq!(code, 70, "{log}");
}

#[tokio::test]
async fn sigterm_closes_viewers_with_1001_and_keeps_secrets() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let key = ("GLADIA_API_KEY", "gladia-secret-key");
    let more = [
        ("GLADIA_API_URL", stt.url.as_str()),
        key,
        ("ADMIN_TOKEN", "admin-secret"),
        ("RTMP_PUBLISH_KEY", "publish-secret"),
    ];
    let server = Running::start(dir.path(), &more).await;
    let mut viewer = Viewer::connect(server.http, "demo", "").await;
    let unauthorised = get(server.http, "/metrics", None).await;
    assert_eq!(unauthorised.0, 401);
    let (status, metrics) = get(server.http, "/metrics", Some("admin-secret")).await;
    assert_eq!(status, 200);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    viewer.until_closed().await;
    assert_eq!(viewer.closed, Some(1001));
    let (code, log) = server.end().await;
    assert_eq!(code, 0, "{log}");
    let token = support::app::viewer_token("demo");
    for secret in [key.1, "admin-secret", "publish-secret", KEY.1, &token] {
        assert!(!log.contains(secret), "a secret is in the log");
        assert!(!metrics.contains(secret), "a secret is in the metrics");
    }
}

#[tokio::test]
async fn sighup_exchanges_the_keys_of_the_file_and_drops_nobody() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.yaml");
    let path = file.to_string_lossy().into_owned();
    std::fs::write(&file, "# rotated each month\nfirst: file-secret-1\n").unwrap();
    let more = [("GLADIA_API_URL", stt.url.as_str()), ("LIVEKIT_KEYS_FILE", path.as_str())];
    let mut server = Running::start(dir.path(), &more).await;
    let http = server.http;
    let knows = async |key: &str, secret: &str| {
        let room = stenocast::transcript::Slug::parse("demo").unwrap();
        let life = std::time::Duration::from_secs(60);
        let secret = stenocast::config::Secret::new(secret);
        let token = stenocast::livekit::token::mint(key, &secret, "anna", None, &room, life, false);
        // A known token finds a room that is still empty; another one is turned away.
        match get(http, "/api/sessions/demo/transcripts", Some(&token)).await.0 {
            200 => true,
            401 => false,
            other => panic!("status {other}"),
        }
    };
    let mut viewer = Viewer::connect(server.http, "demo", "").await;
    assert!(knows("first", "file-secret-1").await && !knows("second", "file-secret-2").await);
    std::fs::write(&file, "second: file-secret-2, third: file-secret-3\n").unwrap();
    assert!(!knows("second", "file-secret-2").await, "nothing is read before it is asked for");
    server.signal(nix::sys::signal::Signal::SIGHUP);
    server.logged("API keys read again").await;
    assert!(knows("second", "file-secret-2").await && knows("third", "file-secret-3").await);
    assert!(!knows("first", "file-secret-1").await, "it is not in the file any more");
    // What cannot be read changes nothing, and an operator who signals in a storm changes nothing either.
    for wrong in ["second file-secret-2", "", "second: \"file-secret-2\""] {
        std::fs::write(&file, wrong).unwrap();
        let refused = refused_reloads(http).await;
        server.signal(nix::sys::signal::Signal::SIGHUP);
        until("the file is refused", async || refused_reloads(http).await > refused).await;
        assert!(knows("second", "file-secret-2").await, "{wrong:?}");
    }
    std::fs::remove_file(&file).unwrap();
    (0..200).for_each(|_| server.signal(nix::sys::signal::Signal::SIGHUP));
    server.logged("LIVEKIT_KEYS_FILE cannot be read").await;
    let _publisher = live_publisher(dir.path(), &format!("rtmp://{}/live/demo", server.rtmp));
    viewer.until("a final", |seen| seen.iter().any(|m| m["isFinal"] == true)).await;
    assert_eq!(viewer.closed, None, "nobody was dropped");
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, log) = server.end().await;
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("file-secret"), "a secret is in the log");
}

#[tokio::test]
async fn sighup_without_a_file_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Running::start(dir.path(), &[("GLADIA_API_URL", "http://127.0.0.1:9")]).await;
    server.signal(nix::sys::signal::Signal::SIGHUP);
    server.logged("LIVEKIT_KEYS_FILE is not set").await;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(server.end().await.0, 0);
}

#[tokio::test]
async fn a_second_signal_leaves_at_once() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let patient = [("GLADIA_API_URL", stt.url.as_str()), ("SHUTDOWN_TIMEOUT_MS", "600000")];
    let mut server = Running::start(dir.path(), &patient).await;
    let mut viewer = Viewer::connect(server.http, "demo", "").await;
    let _publisher = live_publisher(dir.path(), &format!("rtmp://{}/live/demo", server.rtmp));
    viewer.until("a final", |seen| seen.iter().any(|m| m["isFinal"] == true)).await;
    // The last words are waited for, and do not come.
    stt.fault(serde_json::json!({"stall_results_ms": 3_600_000})).await;
    server.signal(nix::sys::signal::Signal::SIGINT);
    server.logged("SIGINT received").await;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, log) = server.end().await;
    assert_eq!(code, 130, "{log}");
}

#[tokio::test]
async fn a_bus_without_a_server_is_refused_with_the_other_faults() {
    let mut command = program(&["serve", "--dev", "--bus", "nats"]);
    command.env("PORT", "notaport");
    let (code, said) = refused(command).await;
    assert_eq!(code, 64);
    for part in ["NATS_URL is required with BUS=nats", "PORT is"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[tokio::test]
async fn a_nats_server_that_cannot_be_used_ends_the_start_and_one_that_is_not_asked_for_does_not() {
    let nats = Nats::start(Version::Debian).await;
    let dir = tempfile::tempdir().unwrap();
    let (url, dir) = (nats.url().replace("nats://", "nats://me:s3cret@"), dir.path().to_str().unwrap());
    let more = [("NATS_URL", url.as_str()), ("NATS_REPLICAS", "3"), ("BROADCAST_TOKEN", "t"), ("DATA_DIR", dir)];
    let mut command = program(&["serve", "--dev", "--port", "0", "--server-mode", "ws", "--bus", "nats"]);
    command.envs(more);
    let (code, said) = refused(command).await;
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("BUS=nats: the NATS server") && said.contains("NATS_REPLICAS=1"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    let stt = marker_service().await;
    let both = [("GLADIA_API_URL", stt.url.as_str()), ("BUS", "nats"), more[0], more[1]];
    let server = Running::start(std::path::Path::new(dir), &both).await;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, log) = server.end().await;
    assert!(code == 0 && !log.contains("NATS"), "SERVER_MODE=both has no bus: {log}");
}

#[tokio::test]
async fn a_missing_ffmpeg_is_said_at_the_start_and_costs_only_the_sound() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let more = [("GLADIA_API_URL", stt.url.as_str()), ("FFMPEG_PATH", "/nonexistent/ffmpeg")];
    let mut server = Running::start(dir.path(), &more).await;
    server.logged("apt install ffmpeg").await;
    let mut viewer = Viewer::connect(server.http, "mute", "").await;
    let _publisher = live_publisher(dir.path(), &format!("rtmp://{}/live/mute", server.rtmp));
    viewer.until("the trouble is shown", |seen| seen.iter().any(|m| m["status"] == "degraded")).await;
    assert_eq!(get(server.http, "/health", None).await.0, 200);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, log) = server.end().await;
    assert_eq!(code, 0, "{log}");
}

#[tokio::test]
async fn a_corrupt_model_is_named_with_its_remedy_and_the_server_stays() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for name in ["encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin", "libonnxruntime.so"] {
        std::fs::write(models.join(name), "not a model").unwrap();
    }
    std::fs::write(models.join("silero_vad.onnx"), "not a model").unwrap();
    std::fs::write(models.join("models.lock"), "").unwrap();
    let mut server = Running::start(dir.path(), &[("MODEL_DIR", models.to_str().unwrap())]).await;
    server.logged("encoder_model.ort is corrupt").await;
    server.logged("run scripts/models.sh").await;
    let (status, health) = get(server.http, "/health", None).await;
    assert_eq!(status, 200);
    assert!(health.contains(r#""status":"degraded""#) && health.contains(r#""state":"down""#), "{health}");
    let mut viewer = Viewer::connect(server.http, "demo", "").await;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    viewer.until_closed().await;
    let (code, log) = server.end().await;
    assert_eq!(code, 0, "{log}");
}

/// With a whole session: publisher with key, viewer with its token in the query, recogniser with its own in the URL.
#[tokio::test]
async fn no_secret_of_a_session_is_logged_or_measured() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let more = [
        ("GLADIA_API_URL", stt.url.as_str()),
        ("GLADIA_API_KEY", "gladia-secret-key"),
        ("RTMP_PUBLISH_KEY", "publish-secret"),
        ("BROADCAST_TOKEN", "broadcast-secret"),
    ];
    let mut server = Running::start_with_filter(dir.path(), &more, "trace").await;
    let token = support::app::viewer_token("demo");
    let key = stenocast::rtmp::publish_key(
        &stenocast::config::Secret::new("publish-secret"),
        &stenocast::transcript::Slug::parse("demo").unwrap(),
        None,
    );
    let mut viewer = Viewer::connect(server.http, "demo", &format!("&token={token}")).await;
    let _publisher = live_publisher(dir.path(), &format!("rtmp://{}/live/demo?key={key}", server.rtmp));
    viewer.until("two finals", |seen| support::viewer::finals(seen).len() >= 2).await;
    viewer.send(&serde_json::json!({"type": "auth", "token": token})).await;
    assert_eq!(get(server.http, &format!("/api/sessions/demo/transcripts?token={token}"), None).await.0, 200);
    stt.drop_sockets().await;
    server.logged("recogniser").await;
    viewer.until("it goes on", |seen| support::viewer::finals(seen).len() >= 4).await;
    let checkpoint = recogniser_token(dir.path());
    let (_, metrics) = get(server.http, "/metrics", None).await;
    let (_, tree) = get(server.http, "/metrics?format=json", None).await;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, log) = server.end().await;
    assert_eq!(code, 0);
    let secrets = ["gladia-secret-key", "publish-secret", "broadcast-secret", KEY.1, &token, &key, &checkpoint];
    for secret in secrets {
        for (place, text) in [("log", &log), ("metrics", &metrics), ("tree", &tree)] {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "a secret is in the {place}: {line:?}");
        }
    }
}

/// Kills the process in the middle of a word; its successor rejoins the recogniser. Twice, so that adopted sessions are
/// adopted again.
#[tokio::test]
async fn after_kill_9_the_session_goes_on_and_no_line_comes_twice() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let more = [("GLADIA_API_URL", stt.url.as_str()), ("SESSION_GRACE_MS", "8000")];
    let (mut seqs, mut texts, mut resume) = (Vec::new(), Vec::new(), String::new());
    let mut gaps = Vec::new();
    for life in 0..3u32 {
        let server = Running::start(dir.path(), &more).await;
        let mut viewer = Viewer::connect(server.http, "demo", &resume).await;
        assert_eq!(viewer.hello["recovered"], true, "life {life}: {}", viewer.hello);
        let url = format!("rtmp://{}/live/demo", server.rtmp);
        let markers = life * 100 + 1..=life * 100 + 12;
        let file = dir.path().join("marked.wav");
        support::publisher::write_wav(&file, &support::publisher::marked_audio(markers, 700));
        let publisher = support::publisher::ffmpeg(&file, &url, true);
        let own = format!("marker {}", life * 100 + 4);
        viewer.until(&own, |seen| seen.iter().any(|m| m["text"] == own && m["isFinal"] == true)).await;
        if life < 2 {
            server.signal(nix::sys::signal::Signal::SIGKILL);
            viewer.until_closed().await;
        } else {
            assert!(publisher.wait_with_output().await.unwrap().status.success());
            viewer.until_ended().await;
        }
        let epoch = viewer.seen.iter().find_map(|m| m["epoch"].as_str()).expect("an epoch").to_owned();
        seqs.extend(viewer.seqs());
        texts.extend(viewer.finals());
        gaps.extend(viewer.seen.iter().filter(|m| m["type"] == "gap").cloned());
        resume = format!("&epoch={epoch}&after={}", seqs.last().unwrap());
    }
    support::viewer::assert_contiguous(&seqs, 1);
    // A word that the kill has cut in two says no more than that it was one.
    let whole: Vec<_> = texts.iter().filter(|text| *text != "marker ?").collect();
    let distinct: std::collections::HashSet<_> = whole.iter().collect();
    assert_eq!(distinct.len(), whole.len(), "a line came twice: {texts:?}");
    let last: Vec<String> = (201..=212).map(|n| format!("marker {n}")).collect();
    assert!(texts.ends_with(&last), "{texts:?}");
    assert!(gaps.iter().all(|gap| gap["reason"] == "process_restart"), "{gaps:?}");
    // What was in the killed process's memory is a gap of its own, which touches the time without a process.
    let ms = |gap: &serde_json::Value, name: &str| gap[name].as_u64().expect("a time");
    let mut spans: Vec<_> = gaps.iter().map(|gap| (ms(gap, "startMs"), ms(gap, "endMs"))).collect();
    spans.sort_unstable();
    let holes = spans.chunk_by(|a, b| a.1 == b.0).count();
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "no time is announced twice: {gaps:?}");
    assert_eq!(holes, 2, "one for each kill: {gaps:?}");
}

/// The token of the recogniser session's URL, from the newest checkpoint.
fn recogniser_token(data_dir: &std::path::Path) -> String {
    until_blocking("a URL in the checkpoint", || {
        let files = std::fs::read_dir(data_dir.join("sessions")).unwrap().map(|file| file.unwrap().path());
        // The next one is being written beside it.
        let file = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "json"));
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let (_, rest) = text.split_once("token=").ok_or_else(|| text.clone())?;
        Ok::<_, String>(rest.split(['"', '&']).next().unwrap().to_owned())
    })
}

/// Publishes marked audio in real time, longer than any test waits for it.
fn live_publisher(dir: &std::path::Path, url: &str) -> Child {
    let file = dir.join("marked.wav");
    support::publisher::write_wav(&file, &support::publisher::marked_audio(1..=60, 700));
    support::publisher::ffmpeg(&file, url, true)
}

/// Status and body of a GET.
/// SIGHUPs that have changed nothing.
async fn refused_reloads(http: std::net::SocketAddr) -> u64 {
    let (_, metrics) = get(http, "/metrics", None).await;
    let series = "stenocast_reloads_total{result=\"refused\"} ";
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)).expect("the series is declared");
    value.trim().parse().expect("a count")
}

async fn get(http: std::net::SocketAddr, path: &str, bearer: Option<&str>) -> (u16, String) {
    use tokio::io::AsyncWriteExt;
    let mut socket = tokio::net::TcpStream::connect(http).await.unwrap();
    let auth = bearer.map(|b| format!("Authorization: Bearer {b}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n{auth}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (status, answer)
}
