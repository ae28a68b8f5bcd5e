//! `pgcapture config check|schema|show`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    Failure, Global,
    output::{self, Format},
};
use crate::config::{Config, ConfigError, FlagSetting};

/// Commands about the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check files, environment and flags; exit code 2 when something is wrong.
    Check(FileArgs),
    /// Print the JSON Schema of the file, for editors.
    Schema,
    /// Print the configuration in force; secrets appear as references only.
    Show(FileArgs),
}

/// Where the configuration comes from.
#[derive(Args, Clone, Debug, Default)]
pub struct FileArgs {
    /// Configuration file; may be given several times, the later wins.
    #[arg(short, long = "config", value_name = "FILE", env = "PGCAPTURE_CONFIG")]
    pub config: Vec<PathBuf>,
    /// Set one key: --set limits.sessions=100
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

impl FileArgs {
    /// Reads the configuration.
    pub(super) fn load(&self, more: &[FlagSetting]) -> Result<Config, Failure> {
        let mut flags = Vec::new();
        for setting in &self.settings {
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("--set {setting}: expected KEY=VALUE")))?;
            flags.push((
                format!("--set {key}"),
                key.trim().to_owned(),
                value.to_owned(),
            ));
        }
        flags.extend_from_slice(more);
        Config::load(&self.config, &flags).map_err(|error| refused(&error))
    }
}

/// Prints what is wrong; the text carries codes and next steps itself.
fn refused(error: &ConfigError) -> Failure {
    output::talk(&format!("{error}\n"));
    Failure::silent(2)
}

pub(super) fn run(global: &Global, command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(files) => {
            let config = files.load(&[])?;
            if !global.quiet {
                output::talk(&format!(
                    "the configuration is good: node {}, listens on {}, {} source(s)\n",
                    config.node.name,
                    config.node.listen,
                    config.source.len()
                ));
            }
            Ok(())
        }
        ConfigCommand::Schema => Ok(output::value(global, &Config::schema())?),
        ConfigCommand::Show(files) => {
            let config = files.load(&[])?;
            match global.output {
                Format::Table | Format::Wide => {
                    let text = toml::to_string_pretty(&config)
                        .map_err(|error| Failure::usage(error.to_string()))?;
                    output::data(&text)?;
                }
                Format::Json | Format::Ndjson | Format::Yaml | Format::Env => {
                    output::value(global, &config)?;
                }
            }
            Ok(())
        }
    }
}
