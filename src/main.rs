//! The `stenocast` program.

fn main() -> std::process::ExitCode {
    stenocast::cli::run(std::env::args_os())
}
