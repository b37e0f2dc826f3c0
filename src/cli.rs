//! The command line: what can be asked of the binary, and who answers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands;

/// One PostgreSQL port in front of a herd of servers: pooling, a result cache and fan-out that are right or refused.
#[derive(Debug, Parser)]
#[command(name = "pgherd", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do; `serve` where nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The configuration file.
    #[arg(short, long, global = true, default_value = "proxy.toml", value_name = "FILE")]
    pub config: PathBuf,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients until SIGTERM or Ctrl-C (the default).
    Serve,
    /// Check the configuration, then try everything that it names: servers, logins, shards, Redis, certificates.
    Check,
    /// Show which plan a statement would get, and why, without running it.
    Explain(commands::explain::Arguments),
    /// Write a proxy.toml from PgBouncer's configuration, and list what has no equivalent.
    Import(commands::import::Arguments),
    /// Show what pgherd does, on throw-away servers, and then keep them up to try.
    Demo(commands::demo::Options),
}

/// Reads the command line and does what it says. Exit codes: 0 done, 1 failed, 2 the command line itself is wrong.
pub fn run() -> ExitCode {
    let Cli { command, config } = Cli::parse();
    match command.unwrap_or(Command::Serve) {
        Command::Serve => commands::serve::run(&config),
        Command::Check => commands::check::main(&config),
        Command::Explain(arguments) => commands::explain::main(&config, &arguments),
        Command::Import(arguments) => commands::import::main(&arguments),
        Command::Demo(options) => commands::demo::main(&options),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_commands_agree_with_themselves() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_what_nothing_means() {
        let cli = parse("pgherd").expect("a command line");
        assert!(cli.command.is_none());
        assert_eq!(cli.config, Path::new("proxy.toml"));
    }

    #[test]
    fn the_file_may_be_named_before_and_behind_the_command() {
        for line in ["pgherd -c a.toml check", "pgherd check --config a.toml", "pgherd --config=a.toml check"] {
            let cli = parse(line).expect(line);
            assert!(matches!(cli.command, Some(Command::Check)), "{line}");
            assert_eq!(cli.config, Path::new("a.toml"), "{line}");
        }
    }

    #[test]
    fn explain_takes_a_statement_a_database_and_a_user() {
        let cli =
            Cli::try_parse_from(["pgherd", "explain", "select 1", "-d", "app", "-u", "ann"]).expect("a command line");
        let Some(Command::Explain(arguments)) = cli.command else { panic!("not explain") };
        assert_eq!((arguments.sql.as_str(), arguments.database.as_deref()), ("select 1", Some("app")));
        assert_eq!(arguments.user.as_deref(), Some("ann"));
    }

    #[test]
    fn a_wrong_command_line_is_refused() {
        for line in ["pgherd frobnicate", "pgherd serve extra", "pgherd --config", "pgherd explain"] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
