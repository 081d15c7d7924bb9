//! `stepwell definition`

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use stepwell_proto::v1::{
    Definition, DefinitionPause, GetDefinitionRequest, ListPausesRequest, PauseDefinitionsRequest,
    ResumeDefinitionsRequest, SubscriptionText,
};
use stepwell_yaml::{Node, Value};

use crate::{
    connect::{Connect, Namespace, Show},
    fault::Fault,
    output::{self, Column, Listed, Thing, column, wide},
    subscription,
    task::Note,
};

/// Of one call; all pages are read.
const PAGE: i32 = 1000;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Register definitions from YAML files, and apply the subscriptions that they declare; `-` reads
    /// standard input.
    Apply(Apply),
    /// Show one version of a definition.
    #[command(visible_alias = "get")]
    Describe(Describe),
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
    show: Show,
}

#[derive(Args)]
pub(crate) struct Describe {
    /// Its name.
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    /// `MAJOR.MINOR.PATCH`; the latest unless given.
    #[arg(long, default_value = "")]
    version: String,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Pause {
    /// Its name; all its versions are meant.
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// All definitions of the namespace, those that come later included.
    #[arg(long, conflicts_with = "name")]
    all: bool,
    #[command(flatten)]
    namespace: Namespace,
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
    #[command(flatten)]
    show: Show,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Apply(apply) => apply.run().await,
            Self::Describe(describe) => describe.run().await,
            Self::Pause(pause) => pause.pause().await,
            Self::Resume(pause) => pause.resume().await,
            Self::Pauses(pauses) => pauses.run().await,
        }
    }
}

impl Apply {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let mut registered = self.show.output.listing();
        for file in &self.files {
            let text = read(file)?;
            let answer = client.register_yaml(text.clone()).await?;
            let definition = answer.definition.unwrap_or_default();
            if self.show.output.is_for_people() {
                let what = if answer.already_existed { "unchanged" } else { "registered" };
                let (named, steps) = (named(&definition), definition.steps.len());
                output::line(format!("{named} {what} ({steps} steps)"))?;
            } else {
                registered.add([definition])?;
            }
            if declares_subscriptions(&text) {
                let source = file.display().to_string();
                let texts = vec![SubscriptionText { source, yaml: text }];
                for applied in subscription::apply(&client, texts, false).await? {
                    // Beside a document of definitions they are a remark.
                    let said = subscription::became(&applied);
                    if self.show.output.is_for_people() {
                        output::line(said)?;
                    } else {
                        output::note(said);
                    }
                }
            }
        }
        if !self.show.output.is_for_people() {
            registered.end()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A definition as `namespace/name version`.
fn named(definition: &Definition) -> String {
    format!("{}/{} {}", definition.namespace, definition.name, definition.version)
}

impl Thing for Definition {
    const MESSAGE: &'static str = "Definition";

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Listed for Definition {
    const COLUMNS: &'static [Column<Self>] = &[
        column("DEFINITION", |definition| definition.name.clone()),
        column("NAMESPACE", |definition| definition.namespace.clone()),
        column("VERSION", |definition| definition.version.clone()),
        column("STEPS", |definition| definition.steps.len().to_string()),
        column("CREATED", |definition| output::time(definition.create_time.as_ref())),
        wide("DESCRIPTION", |definition| definition.description.clone()),
        wide("HASH", |definition| definition.content_hash.clone()),
    ];
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

impl Describe {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let request = GetDefinitionRequest {
            namespace: self.namespace.get()?,
            name: self.name,
            version: self.version,
        };
        let definition = client.get_definition(request).await?.definition.unwrap_or_default();
        self.show.output.one(&definition, || described(&definition))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A definition as people read it.
fn described(definition: &Definition) -> String {
    let mut text = named(definition) + "\n";
    if !definition.description.is_empty() {
        text += &format!("{}\n", output::plain(&definition.description));
    }
    let mut table = output::table(&["#", "STEP", "HANDLER", "DEPENDS ON", "ATTEMPTS", "REQUIRES"]);
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
    text + &output::text(&table)
}

impl Thing for DefinitionPause {
    const MESSAGE: &'static str = "DefinitionPause";

    fn name(&self) -> String {
        let all = self.definition_name.is_empty();
        format!("{}/{}", self.namespace, if all { "*" } else { &self.definition_name })
    }
}

impl Listed for DefinitionPause {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAMESPACE", |pause| pause.namespace.clone()),
        column("DEFINITION", |pause| match pause.definition_name.as_str() {
            "" => "*".to_owned(),
            name => name.to_owned(),
        }),
        column("SINCE", |pause| output::time(pause.pause_time.as_ref())),
        column("BY", |pause| pause.paused_by.clone()),
        column("REASON", |pause| pause.reason.clone()),
    ];
}

impl Pause {
    async fn pause(self) -> Result<ExitCode, Fault> {
        let client = self.connect.client()?;
        let request = PauseDefinitionsRequest {
            namespace: self.namespace.get()?,
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
            namespace: self.namespace.get()?,
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
        output::line(format!("{}/{name} {what} ({covered} {versions})", self.namespace.get()?))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Pauses {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let mut request = ListPausesRequest {
            namespace: self.namespace,
            page_size: PAGE,
            page_token: String::new(),
        };
        let mut pauses = self.show.output.listing();
        loop {
            let page = client.list_pauses(request.clone()).await?;
            pauses.add(page.pauses)?;
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        pauses.end()?;
        Ok(ExitCode::SUCCESS)
    }
}
