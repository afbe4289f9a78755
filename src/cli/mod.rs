//! The command line: `stenocast serve | stt | demo | token | migrate | quarantine`.

mod demo;
mod links;
mod logging;
mod migrate;
mod quarantine;
mod serve;
mod stt;
mod token;
pub mod wer;

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{Config, SETTINGS, Setting, flag_of};
use crate::db::check_postgres_url;

/// The configuration is wrong (BSD's `EX_USAGE`).
pub const EXIT_CONFIG: u8 = 64;
/// A port cannot be bound (`EX_UNAVAILABLE`).
pub const EXIT_BIND: u8 = 69;
/// The database does not answer, or the log server cannot be used as it is (`EX_UNAVAILABLE`).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// A thread hung for good (`EX_SOFTWARE`); start the server again.
pub const EXIT_WATCHDOG: u8 = 70;

/// Runs the program with these arguments (the first is its name).
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_CONFIG } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match matches.subcommand() {
        Some(("serve", args)) => serve::run(args),
        Some(("stt", args)) => stt::run(args),
        Some(("demo", args)) => demo::run(args),
        Some(("token", args)) => token::run(args),
        Some(("migrate", args)) => migrate::run(args),
        Some(("quarantine", args)) => quarantine::run(args),
        _ => unreachable!("clap requires a subcommand"),
    }
}

/// The whole command line; also what `--help` prints.
pub fn command() -> Command {
    Command::new("stenocast")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Live streams in by RTMP; live, stored, attributable text out by WebSocket")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(stt::command())
        .subcommand(demo::command())
        .subcommand(token::command())
        .subcommand(migrate::command())
        .subcommand(quarantine::command())
}

/// Every setting as a flag, under its group's heading.
fn setting_args(filter: impl Fn(&Setting) -> bool) -> Vec<Arg> {
    let wanted = SETTINGS.iter().filter(|s| filter(s));
    let arg = |s: &'static Setting| {
        let default = match s.default.shown() {
            "" => String::new(),
            shown => format!(" [default: {shown}]"),
        };
        Arg::new(s.name)
            .long(flag_of(s.name))
            .value_name(s.name)
            .help(format!("{}{default}", s.help))
            .help_heading(format!("Settings: {} (also environment variables)", s.group))
            .action(ArgAction::Set)
    };
    wanted.map(arg).collect()
}

fn dev_arg() -> Arg {
    Arg::new("dev")
        .long("dev")
        .action(ArgAction::SetTrue)
        .help("For a first look: makes a random token secret, prints ready links, and binds loopback only")
}

/// The environment, with flags over it.
fn setting_values(args: &ArgMatches) -> HashMap<String, String> {
    let mut values = Config::environment();
    for setting in SETTINGS {
        if let Ok(Some(value)) = args.try_get_one::<String>(setting.name) {
            values.insert(setting.name.to_owned(), value.clone());
        }
    }
    values
}

/// The configuration, or its faults on stderr and the exit code.
fn load_config(args: &ArgMatches) -> Result<Config, ExitCode> {
    let flag = |name: &str| args.try_get_one::<bool>(name).ok().flatten().copied().unwrap_or(false);
    // A publish URL needs no token secret.
    let dev = flag("dev") || flag("publish");
    Config::load_checked(&setting_values(args), dev, check_postgres_url).map_err(|faults| {
        eprint!("stenocast: {faults}");
        ExitCode::from(EXIT_CONFIG)
    })
}

/// Prints an error with its causes.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("stenocast: {error:#}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_has_every_setting() {
        command().debug_assert();
        let mut command = command();
        let serve = command.find_subcommand_mut("serve").unwrap();
        let help = serve.render_long_help().to_string();
        for setting in SETTINGS {
            assert!(help.contains(&format!("--{}", flag_of(setting.name))), "{}", setting.name);
        }
    }

    #[test]
    fn flags_win_over_the_environment() {
        let matches = command().get_matches_from(["stenocast", "serve", "--dev", "--rtmp-port", "0"]);
        let (_, args) = matches.subcommand().unwrap();
        assert_eq!(setting_values(args)["RTMP_PORT"], "0");
        assert_eq!(load_config(args).unwrap().rtmp.port, 0);
    }
}
