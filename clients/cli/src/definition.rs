//! `stepwell definition`

use std::{io::Read, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use stepwell_proto::v1::GetDefinitionRequest;

use crate::{connect::Connect, fault::Fault, output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Register definitions from YAML files; `-` reads standard input.
    Apply(Apply),
    /// Show one version of a definition.
    Get(Get),
}

#[derive(Args)]
pub(crate) struct Apply {
    /// The files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Args)]
pub(crate) struct Get {
    /// Its name.
    name: String,
    /// Its namespace.
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// `MAJOR.MINOR.PATCH`; the latest unless given.
    #[arg(long, default_value = "")]
    version: String,
    /// How it is shown.
    #[arg(long, short, value_enum, default_value_t)]
    output: output::Format,
    #[command(flatten)]
    connect: Connect,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Apply(apply) => apply.run().await,
            Self::Get(get) => get.run().await,
        }
    }
}

impl Apply {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.connect.client()?;
        for file in &self.files {
            let mut text = String::new();
            let read = if file.as_os_str() == "-" {
                std::io::stdin().read_to_string(&mut text).map(drop)
            } else {
                std::fs::read_to_string(file).map(|read| text = read)
            };
            let shown = file.display();
            read.map_err(|error| {
                Fault::usage(format!("cannot read {shown}")).because(error.to_string())
            })?;
            let answer = client.register_yaml(text).await?;
            let definition = answer.definition.unwrap_or_default();
            let what = if answer.already_existed { "unchanged" } else { "registered" };
            output::line(format!(
                "{}/{} {} {what} ({} steps)",
                definition.namespace,
                definition.name,
                definition.version,
                definition.steps.len()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Get {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.connect.client()?;
        let request = GetDefinitionRequest {
            namespace: self.namespace,
            name: self.name,
            version: self.version,
        };
        let definition = client.get_definition(request).await?.definition.unwrap_or_default();
        if self.output == output::Format::Json {
            output::line(output::json("Definition", &definition)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let (namespace, name, version) =
            (&definition.namespace, &definition.name, &definition.version);
        output::line(format!("{namespace}/{name} {version}"))?;
        if !definition.description.is_empty() {
            output::line(&definition.description)?;
        }
        let mut table =
            output::table(&["#", "STEP", "HANDLER", "DEPENDS ON", "ATTEMPTS", "REQUIRES"]);
        for (i, step) in definition.steps.iter().enumerate() {
            let attempts = step.retry.as_ref().map_or(0, |retry| retry.max_attempts);
            table.add_row([
                i.to_string(),
                step.name.clone(),
                step.handler.clone(),
                step.depends_on.join(", "),
                attempts.to_string(),
                output::labels(&step.requires),
            ]);
        }
        output::line(table.to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}
