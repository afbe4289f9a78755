//! `stenocast token`: mints a viewer's or admin's token, or a publisher's key.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use chrono::Utc;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{EXIT_CONFIG, fail, load_config, setting_args};
use crate::livekit::token;
use crate::rtmp::publish_key;
use crate::transcript::Slug;

pub fn command() -> Command {
    Command::new("token")
        .about("Mint a viewer's token of a room, or with --publish the URL that an encoder publishes to")
        .arg(Arg::new("room").long("room").required(true).help("The room: slug, LiveKit room name"))
        .arg(Arg::new("identity").long("identity").default_value("viewer").help("Who the token is for"))
        .arg(Arg::new("name").long("name").help("Display name"))
        .arg(
            Arg::new("ttl-s")
                .long("ttl-s")
                .default_value("21600")
                .value_parser(value_parser!(u64).range(1..=31_536_000))
                .help("Life in seconds"),
        )
        .arg(Arg::new("admin").long("admin").action(ArgAction::SetTrue).help("Also grant roomAdmin (POST broadcast)"))
        .arg(Arg::new("publish").long("publish").action(ArgAction::SetTrue).help("Print a publish URL instead"))
        .arg(Arg::new("expires").long("expires").action(ArgAction::SetTrue).help("With --publish: end with --ttl-s"))
        .arg(Arg::new("host").long("host").default_value("localhost").help("With --publish: the server's name"))
        .args(setting_args(|s| s.name.starts_with("LIVEKIT_") || s.name.starts_with("RTMP_P")))
}

pub fn run(args: &ArgMatches) -> ExitCode {
    let config = match load_config(args) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match text(args, &config) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, EXIT_CONFIG),
    }
}

fn text(args: &ArgMatches, config: &crate::config::Config) -> anyhow::Result<String> {
    let string = |name: &str| args.get_one::<String>(name).map(String::as_str);
    let room = Slug::parse(string("room").unwrap_or_default())?;
    let ttl = Duration::from_secs(*args.get_one::<u64>("ttl-s").unwrap_or(&21_600));
    if args.get_flag("publish") {
        let secret =
            config.rtmp.publish_key.as_ref().context("RTMP_PUBLISH_KEY is not set; without it no key is needed")?;
        let expires = args.get_flag("expires").then(|| Utc::now().timestamp() as u64 + ttl.as_secs());
        let key = publish_key(secret, &room, expires);
        let exp = expires.map(|e| format!("&exp={e}")).unwrap_or_default();
        let host = string("host").unwrap_or("localhost");
        return Ok(format!("rtmp://{host}:{}/live/{room}?key={key}{exp}", config.rtmp.port));
    }
    let (key, secret) = &config.auth.keys[0];
    let identity = string("identity").unwrap_or("viewer");
    Ok(token::mint(key, secret, identity, string("name"), &room, ttl, args.get_flag("admin")))
}
