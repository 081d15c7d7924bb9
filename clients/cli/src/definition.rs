//! `stepwell definition`

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use stepwell_proto::v1::{
    GetDefinitionRequest, ListPausesRequest, PauseDefinitionsRequest, ResumeDefinitionsRequest,
    SubscriptionText,
};
use stepwell_yaml::{Node, Value};

use crate::{connect::Connect, fault::Fault, output, subscription, task::Note};

/// Of one call; all pages are read.
const PAGE: i32 = 1000;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Register definitions from YAML files, and apply the subscriptions that they declare; `-` reads
    /// standard input.
    Apply(Apply),
    /// Show one version of a definition.
    Get(Get),
    /// Start no further step of a definition, or of a whole namespace, until it is resumed. Steps that
    /// run go on.
    Pause(Pause),
    /// Let a paused definition or namespace go on.
    Resume(Pause),
    /// Show which definitions and namespaces are paused.
    Pauses(Pauses),
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

#[derive(Args)]
pub(crate) struct Pause {
    /// Its name; all its versions are meant.
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// All definitions of the namespace, those that come later included.
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// The namespace.
    #[arg(long, short, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    note: Note,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Args)]
pub(crate) struct Pauses {
    /// Only this namespace.
    #[arg(long, short, default_value = "")]
    namespace: String,
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
            Self::Pause(pause) => pause.pause().await,
            Self::Resume(pause) => pause.resume().await,
            Self::Pauses(pauses) => pauses.run().await,
        }
    }
}

impl Apply {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.connect.client()?;
        for file in &self.files {
            let text = read(file)?;
            let answer = client.register_yaml(text.clone()).await?;
            let definition = answer.definition.unwrap_or_default();
            let what = if answer.already_existed { "unchanged" } else { "registered" };
            output::line(format!(
                "{}/{} {} {what} ({} steps)",
                definition.namespace,
                definition.name,
                definition.version,
                definition.steps.len()
            ))?;
            if declares_subscriptions(&text) {
                let source = file.display().to_string();
                let texts = vec![SubscriptionText { source, yaml: text }];
                subscription::apply(&client, texts, false).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The text of a file; `-` is standard input.
pub(crate) fn read(file: &Path) -> Result<String, Fault> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    let told = |error: std::io::Error| {
        Fault::usage(format!("cannot read {}", file.display())).because(error.to_string())
    };
    read.map_err(told)?;
    Ok(text)
}

/// Whether a definition has subscriptions beside its steps.
fn declares_subscriptions(text: &str) -> bool {
    let Ok(Node { value: Value::Map(entries), .. }) = stepwell_yaml::parse(text) else {
        return false;
    };
    entries.iter().any(|(key, _)| key.text == "subscriptions")
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

impl Pause {
    async fn pause(self) -> Result<ExitCode, Fault> {
        let client = self.connect.client()?;
        let request = PauseDefinitionsRequest {
            namespace: self.namespace.clone(),
            definition_name: self.name.clone().unwrap_or_default(),
            reason: self.note.reason.clone(),
            paused_by: self.note.by.clone(),
        };
        let answer = client.pause_definitions(request).await?;
        let what = if answer.already_in_state { "was paused before" } else { "is paused" };
        self.tell(what, answer.covered_definitions)
    }

    async fn resume(self) -> Result<ExitCode, Fault> {
        let client = self.connect.client()?;
        let request = ResumeDefinitionsRequest {
            namespace: self.namespace.clone(),
            definition_name: self.name.clone().unwrap_or_default(),
            reason: self.note.reason.clone(),
            resumed_by: self.note.by.clone(),
        };
        let answer = client.resume_definitions(request).await?;
        let what = if answer.already_in_state { "was not paused" } else { "goes on" };
        self.tell(what, answer.covered_definitions)
    }

    fn tell(&self, what: &str, covered: i32) -> Result<ExitCode, Fault> {
        let name = self.name.as_deref().unwrap_or("*");
        let versions = if covered == 1 { "version" } else { "versions" };
        output::line(format!("{}/{name} {what} ({covered} {versions})", self.namespace))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Pauses {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.connect.client()?;
        let mut request = ListPausesRequest {
            namespace: self.namespace,
            page_size: PAGE,
            page_token: String::new(),
        };
        let mut pauses = Vec::new();
        loop {
            let page = client.list_pauses(request.clone()).await?;
            pauses.extend(page.pauses);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        if self.output == output::Format::Json {
            for pause in &pauses {
                output::line(output::json("DefinitionPause", pause)?)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = output::table(&["NAMESPACE", "DEFINITION", "SINCE", "BY", "REASON"]);
        for pause in pauses {
            let all = pause.definition_name.is_empty();
            table.add_row([
                pause.namespace,
                if all { "*".to_owned() } else { pause.definition_name },
                pause.pause_time.map(|at| at.to_string()).unwrap_or_default(),
                pause.paused_by,
                pause.reason,
            ]);
        }
        output::line(table.to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}
