//! `stenocast stt`: the local recogniser as a service that speaks Gladia Live v2.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use tokio::signal::unix::{SignalKind, signal};

use super::{EXIT_BIND, fail, logging};
use crate::config::{LocalSttConfig, LogFormat, default_model_dir};
use crate::local_stt::service::{EngineKind, Limits, SttError, SttOptions, serve};

pub fn command() -> Command {
    let threads = spare_threads();
    let number = || value_parser!(u64).range(1..=100_000);
    Command::new("stt")
        .about("Run the local recogniser (English only) as a Gladia-Live-v2-compatible service")
        .arg(Arg::new("host").long("host").env("STT_HOST").default_value("127.0.0.1").help("Address to listen on"))
        .arg(
            Arg::new("port")
                .long("port")
                .env("STT_PORT")
                .default_value("8090")
                .value_parser(value_parser!(u16))
                .help("Port to listen on; 0 takes a free one, printed when ready"),
        )
        .arg(
            Arg::new("model-dir")
                .long("model-dir")
                .env("MODEL_DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Model files [default: the user's cache; `make models` installs them]"),
        )
        .arg(
            Arg::new("threads")
                .long("threads")
                .env("STT_THREADS")
                .value_parser(number())
                .help(format!("Inference threads [default: {threads}]")),
        )
        .arg(
            Arg::new("max-sessions")
                .long("max-sessions")
                .env("STT_MAX_SESSIONS")
                .value_parser(number())
                .help("Sessions at a time [default: 8 per thread]"),
        )
        .arg(
            Arg::new("engine")
                .long("engine")
                .value_parser(value_parser!(EngineKind))
                .default_value("moonshine")
                .help("marker answers to synthetic tones and needs no model: for tests and drills"),
        )
        .arg(Arg::new("faults").long("faults").action(ArgAction::SetTrue).help("Serve the fault switches (tests only)"))
        .arg(
            Arg::new("keep-audio")
                .long("keep-audio")
                .action(ArgAction::SetTrue)
                .help("Keep each session's audio for GET /v2/live/{id}/file"),
        )
}

pub fn run(args: &ArgMatches) -> ExitCode {
    logging::init(&std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()), LogFormat::Text);
    match actix_rt::System::new().block_on(serve_until_told(options(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if matches!(error, SttError::Bind { .. }) { EXIT_BIND } else { 1 };
            fail(&error.into(), code)
        }
    }
}

fn options(args: &ArgMatches) -> SttOptions {
    let threads = args.get_one::<u64>("threads").map_or_else(spare_threads, |n| *n as usize);
    SttOptions {
        host: args.get_one::<String>("host").cloned().unwrap_or_default(),
        port: args.get_one::<u16>("port").copied().unwrap_or_default(),
        model_dir: args.get_one::<PathBuf>("model-dir").cloned().unwrap_or_else(default_model_dir),
        threads,
        max_sessions: args
            .get_one::<u64>("max-sessions")
            .map_or(LocalSttConfig::default_sessions(threads), |n| *n as usize),
        engine: args.get_one::<EngineKind>("engine").copied().unwrap_or_default(),
        faults: args.get_flag("faults"),
        keep_audio: args.get_flag("keep-audio"),
        limits: Limits::default(),
    }
}

fn spare_threads() -> usize {
    LocalSttConfig::default_threads(std::thread::available_parallelism().map_or(1, usize::from))
}

async fn serve_until_told(options: SttOptions) -> Result<(), SttError> {
    let mut service = serve(options).await?;
    println!("{}", service.ready_line());
    std::io::stdout().flush()?;
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        ended = service.ended() => return ended,
    }
    service.stop().await;
    Ok(())
}
