//! Gladia's official SDKs, unchanged, against the local service. Each test installs what it needs (npm, pip) under the
//! target directory, with exact versions, and fails where that is impossible.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stenocast::cli::wer::word_errors;
use stenocast::local_stt::{self, EngineKind, Limits, SttOptions, SttService, marker};
use support::npm;
use support::wait::DEADLINE;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

/// Words in a hundred of [`HELD_OUT`] that may be wrong.
const MAX_PERCENT: f64 = 6.0;
const HELD_OUT: [&str; 2] = ["librivox_0920", "librivox_0930"];
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/gladia");

#[derive(Clone, Copy, Debug)]
enum Sdk {
    Js,
    Python,
}

/// Runs an installation command.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; install Python 3.10 and its venv"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed; this test needs python3-venv and a network: {text}");
}

/// The virtual environment with the SDK, installed once for each state of the list of requirements.
fn install_python() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk-python");
    let _alone = npm::alone_in(&dir);
    let wanted = std::fs::read_to_string(format!("{SOURCES}/requirements.txt")).unwrap();
    let (venv, stamp) = (dir.join("venv"), dir.join(".installed"));
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return venv;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    let mut pip = Command::new(venv.join("bin/pip"));
    run(pip.args(["install", "--no-deps", "--requirement"]).arg(format!("{SOURCES}/requirements.txt")));
    std::fs::write(stamp, wanted).unwrap();
    venv
}

fn client(sdk: Sdk, url: &str, pcm: &Path) -> tokio::process::Command {
    let (program, script) = match sdk {
        Sdk::Js => ("node".into(), npm::install("gladia").join("client.mjs")),
        Sdk::Python => (install_python().join("bin/python"), PathBuf::from(format!("{SOURCES}/client.py"))),
    };
    let mut command = tokio::process::Command::new(program);
    command.arg(script);
    command.arg(url).arg(pcm).stdout(Stdio::piped()).kill_on_drop(true);
    for name in ["GLADIA_API_URL", "GLADIA_API_KEY", "GLADIA_REGION", "HTTP_PROXY", "http_proxy"] {
        command.env_remove(name);
    }
    command
}

/// A running client and all that it has reported.
struct Run {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    reports: Vec<Value>,
    _pcm: tempfile::NamedTempFile,
}

impl Run {
    fn start(sdk: Sdk, service: &SttService, audio: &[u8]) -> Self {
        Self::with(sdk, service, audio, None)
    }

    /// `longest_s`: the longest utterance, where it is not the SDK's default.
    fn with(sdk: Sdk, service: &SttService, audio: &[u8], longest_s: Option<u32>) -> Self {
        let pcm = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(pcm.path(), audio).unwrap();
        let mut command = client(sdk, &service.base_url(), pcm.path());
        command.args(longest_s.map(|s| s.to_string()));
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, lines, reports: Vec::new(), _pcm: pcm }
    }

    async fn until(&mut self, enough: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await.expect("a report in time").unwrap();
            let line = line.unwrap_or_else(|| panic!("the client ended: {:?}", self.reports.last()));
            let report: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert!(report["event"] != "failed" && report["event"] != "error", "{report}");
            self.reports.push(report.clone());
            if enough(&report) {
                return report;
            }
        }
    }

    fn all(&self, event: &str) -> Vec<&Value> {
        self.reports.iter().filter(|r| r["event"] == event).collect()
    }

    fn finals(&self) -> Vec<String> {
        self.all("final").iter().map(|r| r["text"].as_str().unwrap().trim().to_owned()).collect()
    }
}

async fn service(engine: EngineKind) -> SttService {
    let model_dir = std::env::var_os("MODEL_DIR").map_or_else(stenocast::config::default_model_dir, PathBuf::from);
    let options = SttOptions {
        host: "127.0.0.1".to_owned(),
        port: 0,
        model_dir,
        threads: 1,
        max_sessions: 2,
        engine,
        faults: true,
        keep_audio: true,
        limits: Limits::default(),
    };
    local_stt::serve(options).await.unwrap()
}

async fn fault(service: &SttService, order: Value) {
    let url = format!("{}/faults", service.base_url());
    assert_eq!(awc::Client::default().post(url).send_json(&order).await.unwrap().status(), 200);
}

fn bytes(samples: impl IntoIterator<Item = i16>) -> Vec<u8> {
    samples.into_iter().flat_map(i16::to_le_bytes).collect()
}

fn check_end(run: &Run, ended: &Value) {
    assert_eq!((&ended["code"], &ended["status"], &ended["riff"]), (&json!(1000), &json!("done"), &json!("RIFF")));
    for key in ["listed", "audio", "deleted"] {
        assert_eq!(ended[key], true, "{key}: {ended}");
    }
    for kind in ["start_session", "start_recording", "end_recording", "speech_start", "speech_end", "post_transcript"] {
        assert!(ended["kinds"][kind].as_u64().is_some_and(|n| n > 0), "{kind}: {ended}");
    }
    assert_eq!(ended["kinds"]["start_session"], 1);
    let full = run.all("full")[0]["text"].as_str().unwrap();
    assert_eq!(full, run.finals().join(" "));
}

/// One at a time: a model that is late says no interims, and two of them are late on two cores.
static MODEL: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Real speech, the real model, no faults.
async fn hears_speech(sdk: Sdk) {
    let _alone = MODEL.lock().await;
    let service = service(EngineKind::Moonshine).await;
    let wav = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/speech/librivox_0870.wav");
    let audio = bytes(hound::WavReader::open(wav).unwrap().samples::<i16>().map(Result::unwrap));
    let mut run = Run::start(sdk, &service, &audio);
    let ended = run.until(|r| r["event"] == "ended").await;
    check_end(&run, &ended);
    let text = run.finals().join(" ").to_lowercase();
    for words in ["john dashwood", "leisure to consider", "prudently in his power"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(ended["kinds"]["transcript"].as_u64().unwrap() > run.finals().len() as u64, "interims came too");
    service.stop().await;
}

/// Readings on which nothing was tuned, in one breath, with Gladia's own longest utterance (5 s) and with ours.
async fn long_speech_is_cut_between_words(sdk: Sdk) {
    let _alone = MODEL.lock().await;
    let service = service(EngineKind::Moonshine).await;
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/speech").join(name);
    let wav = |name: &str| hound::WavReader::open(fixture(&format!("{name}.wav"))).unwrap();
    let text = |name: &str| std::fs::read_to_string(fixture(&format!("{name}.txt"))).unwrap();
    let samples: Vec<i16> = HELD_OUT.iter().flat_map(|name| wav(name).into_samples().map(Result::unwrap)).collect();
    let audio = bytes(samples);
    let reference: String = HELD_OUT.iter().map(|name| text(name)).collect();
    for longest_s in [None, Some(5), Some(15)] {
        let mut run = Run::with(sdk, &service, &audio, longest_s);
        let ended = run.until(|r| r["event"] == "ended").await;
        check_end(&run, &ended);
        let heard = run.finals().join(" ");
        let errors = word_errors(&reference, &heard);
        println!("{sdk:?}, at most {longest_s:?} s: {} of {} wrong: {:?}", errors.edits, errors.words, run.finals());
        assert!(errors.percent() <= MAX_PERCENT, "{longest_s:?}: {:.1} %: {heard}", errors.percent());
        assert!(longest_s == Some(15) || run.finals().len() >= 2, "there were cuts: {:?}", run.finals());
    }
    service.stop().await;
}

/// The connection is cut while audio is on its way; the SDK resumes.
async fn resumes(sdk: Sdk) {
    let service = service(EngineKind::Marker).await;
    let audio = bytes(marker::track(1, 10, 1500));
    let mut run = Run::start(sdk, &service, &audio);
    run.until(|r| r["event"] == "ack" && r["end"].as_u64() >= Some(100_000)).await;
    fault(&service, json!({"delay_acks_ms": 3_600_000})).await;
    let sent = run.all("sent").last().unwrap()["end"].as_u64().unwrap();
    run.until(|r| r["event"] == "sent" && r["end"].as_u64() >= Some(sent + 100_000)).await;
    fault(&service, json!({"delay_acks_ms": 0})).await;
    fault(&service, json!({"reset": true})).await;
    let ended = run.until(|r| r["event"] == "ended").await;
    assert_eq!(run.all("connected").len(), 2);
    check_end(&run, &ended);
    let expected: Vec<String> = (1..=10).map(|n| format!("marker {n}")).collect();
    assert_eq!(run.finals(), expected);
    let acks: Vec<u64> = run.all("ack").iter().map(|r| r["end"].as_u64().unwrap()).collect();
    assert!(acks.is_sorted(), "acknowledgements never go down");
    service.stop().await;
}

#[actix::test]
async fn the_js_sdk_hears_speech() {
    hears_speech(Sdk::Js).await;
}

#[actix::test]
async fn the_python_sdk_hears_speech() {
    hears_speech(Sdk::Python).await;
}

#[actix::test]
async fn the_js_sdk_hears_long_speech() {
    long_speech_is_cut_between_words(Sdk::Js).await;
}

#[actix::test]
async fn the_python_sdk_hears_long_speech() {
    long_speech_is_cut_between_words(Sdk::Python).await;
}

#[actix::test]
async fn the_js_sdk_resumes_after_a_reset() {
    resumes(Sdk::Js).await;
}

#[actix::test]
async fn the_python_sdk_resumes_after_a_reset() {
    resumes(Sdk::Python).await;
}
