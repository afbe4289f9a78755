//! `stenocast demo`: the whole product in half a minute. Starts a server, publishes bundled human speech with a real
//! ffmpeg, prints the captions as a viewer receives them, and ends with figures.

mod clips;
mod viewer;

use std::io::Write;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};
use tokio::time::Instant;

use super::wer::word_errors;
use super::{EXIT_BIND, EXIT_CONFIG, fail, links, logging, setting_args, setting_values};
use crate::actors::session_registry::EndSession;
use crate::app::{App, StartError};
use crate::config::{Config, ConfigFaults, LogFormat};
use crate::transcript::Slug;
use viewer::Heard;

/// The model is read from disk and warmed up in a second or two; a cold disk may take longer.
const RECOGNISER_TIMEOUT: Duration = Duration::from_secs(60);
const END_TIMEOUT: Duration = Duration::from_secs(20);

pub fn command() -> Command {
    Command::new("demo")
        .about("Publish bundled speech with ffmpeg and print its captions; ends by itself")
        .args(setting_args(|s| matches!(s.name, "PORT" | "RTMP_PORT" | "FFMPEG_PATH" | "MODEL_DIR" | "STT_THREADS")))
}

pub fn run(args: &ArgMatches) -> ExitCode {
    logging::init(&std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()), LogFormat::Text);
    match actix_rt::System::new().block_on(demo(args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => fail(&error, exit_code(&error)),
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(StartError::Bind { .. }) => EXIT_BIND,
        _ if error.is::<ConfigFaults>() => EXIT_CONFIG,
        _ => 1,
    }
}

/// True when nothing was lost.
async fn demo(args: &ArgMatches) -> anyhow::Result<bool> {
    let data_dir = temporary_directory()?;
    let outcome = run_in(args, &data_dir).await;
    let _ = std::fs::remove_dir_all(&data_dir);
    outcome
}

async fn run_in(args: &ArgMatches, data_dir: &Path) -> anyhow::Result<bool> {
    let mut values = setting_values(args);
    values.insert("DATA_DIR".into(), data_dir.display().to_string());
    // It publishes to itself and stores for itself.
    for name in ["DATABASE_URL", "RTMP_PUBLISH_KEY", "SERVER_MODE"] {
        values.remove(name);
    }
    for (name, usual) in [("PORT", 8080), ("RTMP_PORT", 1937)] {
        values.entry(name.into()).or_insert_with(|| free_port(usual).to_string());
    }
    let app = App::start(Config::load(&values, true)?).await?;
    let heard = publish_and_listen(&app, data_dir).await;
    let rows = app.stored_entries(&Slug::parse(links::DEMO_ROOM)?).await.map(|rows| rows.len());
    let lost_ms = app.metrics().lost_audio_ms();
    let received_ms = (app.metrics().audio_received_seconds_total.get() * 1000.0) as u64;
    let recognised_ms = (app.metrics().audio_acknowledged_seconds_total.get() * 1000.0) as u64;
    app.shutdown().await;
    let (heard, text) = heard?;
    let rows = rows.context("the rows could not be counted")?;
    Ok(summarise(&heard, &text, Audio { received_ms, recognised_ms, lost_ms }, rows))
}

struct Audio {
    received_ms: u64,
    recognised_ms: u64,
    lost_ms: u64,
}

async fn publish_and_listen(app: &App, data_dir: &Path) -> anyhow::Result<(Heard, String)> {
    let room = Slug::parse(links::DEMO_ROOM)?;
    let token = links::viewer_token(app, &room, "demo-viewer");
    println!("captions page: {}", links::captions_url(app, &room, &token));
    wait_for_recogniser(app).await?;
    let programme = clips::programme();
    let wav = data_dir.join("demo.wav");
    std::fs::write(&wav, &programme.wav).with_context(|| format!("cannot write {}", wav.display()))?;
    let listening = actix_rt::spawn(viewer::listen(app.http_addr(), room.clone(), token));
    println!("publishing {} clips of human speech with ffmpeg:\n", programme.clips);
    let published = publish(app, &wav, &room).await;
    let deadline = Instant::now() + END_TIMEOUT;
    app.root().send(EndSession { slug: room, reason: "demo_over".into(), deadline }).await?;
    published?;
    let heard = tokio::time::timeout(END_TIMEOUT, listening).await.context("the viewer did not see the end")??;
    Ok((heard?, programme.text))
}

async fn wait_for_recogniser(app: &App) -> anyhow::Result<()> {
    print!("loading the speech model … ");
    std::io::stdout().flush()?;
    let begun = Instant::now();
    app.recogniser_ready(RECOGNISER_TIMEOUT)
        .await
        .context("the recogniser did not start; `make models` installs its files, RUST_LOG=info says more")?;
    println!("{:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

async fn publish(app: &App, wav: &Path, room: &Slug) -> anyhow::Result<()> {
    let Some(rtmp) = app.rtmp_addr() else { bail!("the RTMP listener is not there") };
    let url = format!("rtmp://{rtmp}/live/{room}");
    let ffmpeg = &app.config().audio.ffmpeg_path;
    let mut command = tokio::process::Command::new(ffmpeg);
    command.args(["-hide_banner", "-loglevel", "error", "-re", "-i"]).arg(wav);
    command.args(["-c:a", "aac", "-b:a", "128k", "-ar", "44100", "-ac", "2", "-f", "flv", &url]);
    let status = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("cannot run {}; install it with: apt-get install ffmpeg", ffmpeg.display()))?;
    if !status.success() {
        bail!("ffmpeg could not publish: {status}");
    }
    Ok(())
}

fn summarise(heard: &Heard, text: &str, audio: Audio, rows: usize) -> bool {
    let errors = word_errors(text, &heard.text());
    let (p50, p95) = (heard.final_latency_ms(0.5), heard.final_latency_ms(0.95));
    println!(
        "\nsummary: {} clips · {} words · word error rate {:.1} % · audio received {:.1} s, recognised {:.1} s, lost {} ms · \
         rows stored {} of {} · first interim {} ms · speech end -> final p50 {p50} ms, p95 {p95} ms",
        clips::CLIPS.len(),
        errors.words,
        errors.percent(),
        audio.received_ms as f64 / 1000.0,
        audio.recognised_ms as f64 / 1000.0,
        audio.lost_ms,
        rows,
        heard.durable,
        heard.first_interim_ms.unwrap_or(0),
    );
    let complete = heard.is_contiguous() && audio.lost_ms == 0 && rows == heard.durable;
    if !complete || errors.percent() > 15.0 {
        println!("the demo did not go as it should; RUST_LOG=info makes it say more");
        return false;
    }
    true
}

/// The usual port, or any free one when it is in use.
fn free_port(usual: u16) -> u16 {
    match std::net::TcpListener::bind(("127.0.0.1", usual)) {
        Ok(_) => usual,
        Err(_) => 0,
    }
}

fn temporary_directory() -> anyhow::Result<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("stenocast-demo-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
