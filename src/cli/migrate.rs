//! `stenocast migrate`: the database's schema, up, down or shown.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};

use super::{EXIT_CONFIG, fail, load_config, logging, setting_args};
use crate::db::open_store;

pub fn command() -> Command {
    Command::new("migrate")
        .about("Bring the database's schema up to date (serve does so at start), take it back, or show it")
        .arg(Arg::new("action").value_parser(["up", "down", "status"]).default_value("up"))
        .args(setting_args(|s| matches!(s.name, "DATABASE_URL" | "DATA_DIR")))
        .arg(super::dev_arg().hide(true).default_value("true"))
}

pub fn run(args: &ArgMatches) -> ExitCode {
    let config = match load_config(args) {
        Ok(config) => config,
        Err(code) => return code,
    };
    logging::init(&config.server.log_filter, config.server.log_format);
    let action = args.get_one::<String>("action").map_or("up", String::as_str);
    match actix_rt::System::new().block_on(migrate(&config, action)) {
        Ok((version, place)) => {
            println!("schema version: {}", version.as_deref().unwrap_or("none"));
            println!("database: {place}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, EXIT_CONFIG),
    }
}

/// The schema's version, and where it is.
async fn migrate(config: &crate::config::Config, action: &str) -> anyhow::Result<(Option<String>, String)> {
    let store = open_store(&config.store)?;
    match action {
        "up" => store.migrate().await.context("the migration failed")?,
        "down" => store.revert().await.context("the schema could not be taken back")?,
        _ => {}
    }
    let version = store.schema_version().await.context("the schema version could not be read")?;
    Ok((version, format!("{} {}", store.backend_name(), store.place())))
}
