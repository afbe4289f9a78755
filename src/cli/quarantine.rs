//! `stenocast quarantine`: the rows that the database has refused, shown, tried again, or given up.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{EXIT_CONFIG, EXIT_UNAVAILABLE, fail, load_config, logging, setting_args};
use crate::config::Config;
use crate::db::delivery::deliver;
use crate::db::{Kept, Quarantine, Store, open_store};
use crate::transcript::outbox::Stored;

/// Some rows are left that should not be, or there are none such.
const EXIT_LEFT: u8 = 1;
/// Rows tried at a time.
const BATCH: usize = 100;

pub fn command() -> Command {
    let index = || {
        let arg = Arg::new("index").num_args(0..).value_parser(value_parser!(u64));
        arg.value_name("INDEX").help("Rows by their index, as list shows them")
    };
    let settings = || {
        let args = setting_args(|s| matches!(s.name, "DATABASE_URL" | "DATA_DIR"));
        args.into_iter().chain([super::dev_arg().hide(true).default_value("true")])
    };
    let all = Arg::new("all").long("all").action(ArgAction::SetTrue).conflicts_with("index").help("Every row");
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("Whole rows, one JSON object a line");
    Command::new("quarantine")
        .about("Rows that the database refused for what is in them: show them, try them again, or give them up")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("list").about("Show them, with the reasons").arg(json).args(settings()))
        .subcommand(
            Command::new("retry")
                .about("Store them now (all, or these); exit code 1 when some are refused again")
                .arg(index())
                .args(settings()),
        )
        .subcommand(
            Command::new("drop").about("Delete them for good").arg(index()).arg(all).args(settings()).after_help(
                "Nothing keeps a copy. `stenocast quarantine list --json` shows everything that is deleted.",
            ),
        )
}

pub fn run(args: &ArgMatches) -> ExitCode {
    let (action, args) = args.subcommand().expect("clap requires a subcommand");
    let config = match load_config(args) {
        Ok(config) => config,
        Err(code) => return code,
    };
    logging::init(&config.server.log_filter, config.server.log_format);
    let quarantine = Quarantine::new(&config.server.data_dir);
    let chosen: Vec<u64> =
        args.try_get_many("index").ok().flatten().map(|all| all.copied().collect()).unwrap_or_default();
    let result = match action {
        "list" => list(&quarantine, args.get_flag("json")),
        "retry" => actix_rt::System::new().block_on(retry(&config, &quarantine, &chosen)),
        _ => discard(&quarantine, &chosen, args.get_flag("all")),
    };
    result.unwrap_or_else(|error| fail(&error, EXIT_CONFIG))
}

fn rows(quarantine: &Quarantine) -> anyhow::Result<Vec<Kept>> {
    quarantine.list().with_context(|| format!("{} cannot be read", quarantine.dir().display()))
}

fn list(quarantine: &Quarantine, json: bool) -> anyhow::Result<ExitCode> {
    let rows = rows(quarantine)?;
    let mut out = std::io::stdout().lock();
    if json {
        rows.iter().try_for_each(|kept| writeln!(out, "{}", serde_json::to_string(kept).unwrap_or_default()))?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{} row(s) in quarantine, {}", rows.len(), quarantine.dir().display())?;
    if rows.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{:>8}  {:20}  {:10}  {:20}  {:>6}  reason", "index", "at", "refusal", "session", "seq")?;
    for Kept { at, refused } in &rows {
        let (session, seq) = place(&refused.record);
        let at = at.get(..19).unwrap_or(at);
        let (refusal, reason) = (refused.refusal.as_str(), refused.reason.replace(char::is_control, " "));
        writeln!(out, "{:>8}  {at:20}  {refusal:10}  {session:20}  {seq:>6}  {reason}", refused.index)?;
    }
    writeln!(out, "`stenocast quarantine retry` stores them where the database takes them now, `drop` deletes them.")?;
    Ok(ExitCode::SUCCESS)
}

/// The row's session and number; a session's own row has no number.
fn place(record: &serde_json::Value) -> (&str, String) {
    let session = record["session"].as_str().or(record["slug"].as_str()).unwrap_or("-");
    (session, record["seq"].as_u64().map_or("-".to_owned(), |seq| seq.to_string()))
}

async fn retry(config: &Config, quarantine: &Quarantine, chosen: &[u64]) -> anyhow::Result<ExitCode> {
    let all = rows(quarantine)?;
    let rows: Vec<Kept> = all.into_iter().filter(|k| chosen.is_empty() || chosen.contains(&k.refused.index)).collect();
    if rows.is_empty() {
        println!("no such row in quarantine");
        return Ok(ExitCode::from(if chosen.is_empty() { 0 } else { EXIT_LEFT }));
    }
    let store = open_store(&config.store)?;
    let (mut stored, mut refused) = (0, 0);
    for part in rows.chunks(BATCH) {
        match store_some(&store, part).await {
            Ok(outcomes) => {
                for (kept, reason) in part.iter().zip(&outcomes) {
                    if let Some(reason) = reason {
                        println!("row {} is refused again: {reason}", kept.refused.index);
                    }
                }
                let taken: Vec<&Kept> =
                    part.iter().zip(&outcomes).filter(|(_, r)| r.is_none()).map(|(k, _)| k).collect();
                quarantine.remove(|kept| taken.iter().any(|one| one.refused == kept.refused))?;
                stored += taken.len();
                refused += part.len() - taken.len();
            }
            Err(error) => {
                println!("{stored} row(s) stored, {} left in quarantine", rows.len() - stored);
                return Ok(fail(&error.context("the rows could not be tried"), EXIT_UNAVAILABLE));
            }
        }
    }
    println!("{stored} row(s) stored, {refused} left in quarantine");
    Ok(ExitCode::from(if refused == 0 { 0 } else { EXIT_LEFT }))
}

/// Why each row is refused again; None: it is stored, or was there.
async fn store_some(store: &Store, rows: &[Kept]) -> anyhow::Result<Vec<Option<String>>> {
    let mut outcomes = vec![None; rows.len()];
    let mut batch = Vec::new();
    for (place, kept) in rows.iter().enumerate() {
        match kept.refused.to_record() {
            Some(record) => batch.push(Stored { index: place as u64, record: Ok(record) }),
            None => outcomes[place] = Some("it is not a record of this version".to_owned()),
        }
    }
    for refused in deliver(store, &batch).await?.refused {
        outcomes[refused.index as usize] = Some(refused.reason);
    }
    Ok(outcomes)
}

fn discard(quarantine: &Quarantine, chosen: &[u64], all: bool) -> anyhow::Result<ExitCode> {
    if chosen.is_empty() && !all {
        anyhow::bail!("which rows? allowed: their indexes, as `stenocast quarantine list` shows them, or --all");
    }
    let before = rows(quarantine)?;
    let is_chosen = |kept: &Kept| all || chosen.contains(&kept.refused.index);
    let dropped = before.iter().filter(|kept| is_chosen(kept)).count();
    quarantine.remove(is_chosen)?;
    println!("{dropped} row(s) dropped, {} left in quarantine", before.len() - dropped);
    Ok(ExitCode::from(if dropped == 0 && !all { EXIT_LEFT } else { 0 }))
}
