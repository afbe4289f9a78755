//! `stenocast serve`: the server.

use std::io;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{EXIT_BIND, EXIT_CONFIG, EXIT_UNAVAILABLE, dev_arg, fail, links, load_config, logging, setting_args};
use crate::app::{App, StartError};

pub fn command() -> Command {
    let drill = Arg::new("drill")
        .long("drill")
        .action(ArgAction::SetTrue)
        .help("Serve POST /drill, which breaks things on purpose (never in production)");
    let engine = Arg::new("drill-engine")
        .long("drill-engine")
        .requires("drill")
        .value_parser(["moonshine", "marker"])
        .help("What the local recogniser runs; marker answers to synthetic tones")
        .hide(true);
    Command::new("serve").about("Run the server").arg(dev_arg()).arg(drill).arg(engine).args(setting_args(|_| true))
}

pub fn run(args: &ArgMatches) -> ExitCode {
    let mut config = match load_config(args) {
        Ok(config) => config,
        Err(code) => return code,
    };
    config.server.drill = args.get_flag("drill");
    config.server.drill_engine = args.get_one::<String>("drill-engine").cloned();
    logging::init(&config.server.log_filter, config.server.log_format);
    raise_open_files_limit();
    actix_rt::System::new().block_on(async move {
        let listening = Signals::listen().and_then(|signals| Ok((signals, signal(SignalKind::hangup())?)));
        let (mut signals, hangup) = match listening {
            Ok(listening) => listening,
            Err(error) => return fail(&error.into(), EXIT_CONFIG),
        };
        let app = match App::start(config).await {
            Ok(app) => app,
            Err(error) => {
                let code = match error {
                    StartError::Bind { .. } => EXIT_BIND,
                    StartError::Bus(_) => EXIT_UNAVAILABLE,
                    _ => EXIT_CONFIG,
                };
                return fail(&error.into(), code);
            }
        };
        if app.config().server.dev {
            links::print(&app);
        }
        tokio::select! {
            () = signals.next() => {}
            () = reload_on(hangup, &app) => {}
        }
        tokio::spawn(async move {
            signals.next().await;
            tracing::warn!("second signal, leaving at once");
            std::process::exit(130);
        });
        let report = app.shutdown().await;
        tracing::info!(
            rows_left_in_outbox = report.rows_left,
            elapsed_ms = report.elapsed.as_millis() as u64,
            "stopped"
        );
        ExitCode::SUCCESS
    })
}

/// A viewer takes two descriptors, a session about ten; the usual soft limit of 1,024 is soon reached.
fn raise_open_files_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!(%error, soft, hard, "the limit of open files could not be raised");
    }
}

/// The orders to stop, SIGTERM and SIGINT. One object for all of them: a signal that comes between two waits is not missed.
struct Signals {
    term: Signal,
    int: Signal,
}

/// SIGHUP reads the keys again; unhandled it would end the process. A terminal that closes sends it, too.
async fn reload_on(mut hangup: Signal, app: &App) {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP received, reading the API keys again");
        app.reload();
    }
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => tracing::info!("SIGTERM received, stopping"),
            _ = self.int.recv() => tracing::info!("SIGINT received, stopping"),
        }
    }
}
