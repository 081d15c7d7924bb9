//! `stepwell definition`

use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use stepwell_client::{Client, Error};
use stepwell_proto::{
    refusal::{Refusal, describe},
    v1::{
        Definition, DefinitionGraph, DefinitionGraphStep, DefinitionPause, DefinitionSummary,
        ErrorReason, GetDefinitionGraphRequest, GetDefinitionRequest, ListDefinitionsRequest,
        ListNamespacesRequest, ListPausesRequest, NamespaceSummary, PauseDefinitionsRequest,
        RegisterDefinitionRequest, ResumeDefinitionsRequest, SubscriptionText,
        register_definition_request::Source,
    },
};
use stepwell_task::{Choices, Declared, Written, declared, written};

use crate::{
    connect::{Connect, Namespace, Show},
    fault::Fault,
    output::{self, Column, Listed, Thing, column, wide},
    subscription,
    task::Note,
    view::{indented, some},
};

/// Of one call; all pages are read.
const PAGE: i32 = 1000;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Register definitions from YAML files, and apply the subscriptions that they declare. Nothing is
    /// registered if any of them is wrong.
    Apply(Apply),
    /// Check definitions in YAML files, in every environment that they declare, without any service.
    Validate(Validate),
    /// Show the latest versions of definitions, or all.
    List(List),
    /// Show the versions of a definition, the latest last.
    Versions(Named),
    /// Show the namespaces that have definitions.
    Namespaces(Namespaces),
    /// Show one version of a definition.
    #[command(visible_alias = "get")]
    Describe(Describe),
    /// Show what of a definition depends on what, level by level.
    Graph(Graph),
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
    #[command(flatten)]
    texts: Texts,
    /// Say what would be registered, and register nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Validate {
    #[command(flatten)]
    texts: Texts,
}

/// Definitions as text, and what is chosen of what they leave open.
#[derive(Args)]
pub(crate) struct Texts {
    /// Files, or folders, whose `*.yaml` and `*.yml` are meant; `-` reads standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The environment whose overrides are merged in. Those without environments are the same in each.
    #[arg(long, short, value_name = "ENVIRONMENT")]
    env: Option<String>,
    /// The value of a declared variable; may be given several times. Those not given are taken from the
    /// process's environment, or have their default.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or("NAME=VALUE is wanted")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Args)]
pub(crate) struct List {
    /// Only this namespace.
    #[arg(long, short, default_value = "")]
    namespace: String,
    /// Every version, and not only the latest.
    #[arg(long)]
    all_versions: bool,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Named {
    /// Its name.
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Namespaces {
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Graph {
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
            Self::Validate(validate) => validate.run(),
            Self::List(list) => list.run().await,
            Self::Versions(named) => named.versions().await,
            Self::Namespaces(namespaces) => namespaces.run().await,
            Self::Describe(describe) => describe.run().await,
            Self::Graph(graph) => graph.run().await,
            Self::Pause(pause) => pause.pause().await,
            Self::Resume(pause) => pause.resume().await,
            Self::Pauses(pauses) => pauses.run().await,
        }
    }
}

/// A text that was read.
pub(crate) struct Text {
    source: String,
    text: String,
    /// None: it is no YAML.
    declared: Option<Declared>,
}

impl Texts {
    /// Reads the files, and sees that what was chosen can be chosen in one of them.
    pub(crate) fn read(&self) -> Result<Vec<Text>, Fault> {
        let mut texts = Vec::new();
        for path in &self.files {
            for file in files(path)? {
                let text = read(&file)?;
                let declared = declared(&text);
                texts.push(Text { source: file.display().to_string(), text, declared });
            }
        }
        if texts.is_empty() {
            return Err(Fault::usage("there are no files `*.yaml` or `*.yml`"));
        }
        // What one declares that is no YAML is not known: its own fault is told instead.
        let all = texts.iter().map(|text| text.declared.as_ref());
        if let Some(all) = all.collect::<Option<Vec<&Declared>>>() {
            if let Some(env) = &self.env {
                is_among("environment", env, all.iter().flat_map(|of| &of.environments))?;
            }
            for (name, _) in &self.set {
                is_among("variable", name, all.iter().flat_map(|of| &of.variables))?;
            }
        }
        Ok(texts)
    }

    fn choices(&self, environment: Option<&str>) -> Choices {
        let environ = std::env::vars_os();
        let environ =
            environ.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Choices {
            environment: environment.map(str::to_owned),
            set: self.set.iter().cloned().collect(),
            environ: environ.collect(),
        }
    }

    /// What is chosen for a text, which is the same in each environment if it declares none.
    fn chosen(&self, text: &Text) -> Choices {
        let declares = text.declared.as_ref().is_some_and(|of| !of.environments.is_empty());
        self.choices(self.env.as_deref().filter(|_| declares))
    }

    /// What declares subscriptions, with what is chosen for it. Lists of subscriptions leave nothing open.
    pub(crate) fn subscriptions(&self) -> Result<Vec<SubscriptionText>, Fault> {
        let (mut all, mut faults) = (Vec::new(), Faults::default());
        for text in self.read()? {
            let mut yaml = None;
            if text.declared.as_ref().is_some_and(|of| of.is_definition) {
                match checked(&text, &self.chosen(&text)) {
                    Ok(written) => yaml = written.subscriptions,
                    Err(refusal) => faults.add(&text.source, refusal),
                }
            }
            let Text { source, text, .. } = text;
            all.push(SubscriptionText { source, yaml: yaml.unwrap_or(text) });
        }
        faults.done()?;
        Ok(all)
    }
}

/// Sees that something chosen is declared.
fn is_among<'n>(
    what: &str,
    name: &String,
    known: impl Iterator<Item = &'n String>,
) -> Result<(), Fault> {
    let known: BTreeSet<&String> = known.collect();
    if known.contains(name) {
        return Ok(());
    }
    let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
    let declared = if known.is_empty() { "none is".to_owned() } else { some(&known, ", ") };
    Err(Fault::usage(format!("no {what} {name} is declared"))
        .because(format!("declared: {declared}")))
}

/// The faults of several texts in one, each once.
#[derive(Default)]
struct Faults(Vec<(String, String)>);

impl Faults {
    fn add(&mut self, source: &str, mut refusal: Refusal) {
        if refusal.violations.is_empty() {
            refusal.violations.push((String::new(), refusal.message.clone()));
        }
        for (path, what) in refusal.violations {
            let fault = (if source == "-" { path } else { format!("{source}: {path}") }, what);
            if !self.0.contains(&fault) {
                self.0.push(fault);
            }
        }
    }

    fn done(self) -> Result<(), Fault> {
        if self.0.is_empty() {
            return Ok(());
        }
        let refusal = Refusal::new(ErrorReason::InvalidDefinition, describe(&self.0));
        Err(Error::Refused(Box::new(refusal.with_violations(self.0))).into())
    }
}

/// Reads a definition with what is chosen, its subscriptions too.
fn checked(text: &Text, choices: &Choices) -> Result<Written, Refusal> {
    let written = written(&text.text, choices)?;
    if let Some(yaml) = &written.subscriptions {
        let steps = written.definition.steps.iter();
        let published = steps.flat_map(|step| &step.publishes).map(|spec| spec.name.clone());
        let text = SubscriptionText { source: String::new(), yaml: yaml.clone() };
        stepwell_event::check_subscriptions(&text, published.collect())?;
    }
    Ok(written)
}

fn named(definition: &Definition) -> String {
    let Definition { namespace, name, version, .. } = definition;
    output::plain(&format!("{namespace}/{name} {version}"))
}

impl Validate {
    fn run(self) -> Result<ExitCode, Fault> {
        let texts = self.texts.read()?;
        let (mut faults, mut lines) = (Faults::default(), Vec::new());
        for text in &texts {
            let environments = text.declared.iter().flat_map(|of| &of.environments);
            let mut all = vec![self.texts.chosen(text)];
            if self.texts.env.is_none() {
                all.extend(environments.map(|name| self.texts.choices(Some(name))));
            }
            for choices in all {
                match checked(text, &choices) {
                    Ok(written) => {
                        let of = choices
                            .environment
                            .map_or_else(String::new, |name| format!(" [{name}]"));
                        let steps = written.definition.steps.len();
                        lines.push(format!(
                            "{}{of} is right ({steps} steps)",
                            named(&written.definition)
                        ));
                    }
                    Err(refusal) => faults.add(&text.source, refusal),
                }
            }
        }
        faults.done()?;
        lines.iter().try_for_each(output::line)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Apply {
    async fn run(self) -> Result<ExitCode, Fault> {
        let texts = self.texts.read()?;
        let (mut all, mut faults) = (Vec::new(), Faults::default());
        for text in &texts {
            match checked(text, &self.texts.chosen(text)) {
                Ok(written) => all.push((&text.source, written)),
                Err(refusal) => faults.add(&text.source, refusal),
            }
        }
        faults.done()?;
        let client = self.show.connect.client()?;
        let for_people = self.show.output.is_for_people();
        let mut registered = self.show.output.listing();
        for (source, written) in all {
            let done = match self.dry_run {
                true => would(&client, &written.definition).await,
                false => register(&client, &written).await,
            };
            let (what, definition) = done.map_err(|error| match error {
                Error::Refused(refusal) => Error::Refused(Box::new(written.placed(*refusal))),
                other => other,
            })?;
            if for_people {
                let steps = definition.steps.len();
                output::line(format!("{} {what} ({steps} steps)", named(&definition)))?;
            } else {
                registered.add([definition])?;
            }
            if let Some(yaml) = written.subscriptions.filter(|_| !self.dry_run) {
                let texts = vec![SubscriptionText { source: source.clone(), yaml }];
                for applied in subscription::apply(&client, texts, false).await? {
                    // Beside a document of definitions they are a remark.
                    let said = subscription::became(&applied);
                    if for_people {
                        output::line(said)?;
                    } else {
                        output::note(said);
                    }
                }
            }
        }
        if !for_people {
            registered.end()?;
        }
        Ok(ExitCode::SUCCESS)
    }
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

/// What became of a definition, and the definition.
type Became = (&'static str, Definition);

async fn register(client: &Client, written: &Written) -> Result<Became, Error> {
    let source = Some(Source::Definition(written.definition.clone()));
    let answer = client.register_definition(RegisterDefinitionRequest { source }).await?;
    let what = if answer.already_existed { "unchanged" } else { "registered" };
    Ok((what, answer.definition.unwrap_or_default()))
}

/// What registering would come to.
async fn would(client: &Client, definition: &Definition) -> Result<Became, Error> {
    let Definition { namespace, name, version, .. } = definition.clone();
    let request = GetDefinitionRequest { namespace, name, version };
    match client.get_definition(request).await {
        Err(Error::Refused(refusal)) if refusal.reason == ErrorReason::DefinitionNotFound => {
            Ok(("would be registered", definition.clone()))
        }
        Err(error) => Err(error),
        Ok(there) => {
            let there = there.definition.unwrap_or_default();
            if there.content_hash == definition.content_hash {
                return Ok(("unchanged", there));
            }
            let what = format!("{} is registered with other content", named(definition));
            Err(Error::Refused(Box::new(Refusal::new(ErrorReason::DefinitionChanged, what))))
        }
    }
}

/// Prints definitions page by page; false, and nothing is printed: there are none of that name.
async fn list(show: &Show, request: ListDefinitionsRequest) -> Result<bool, Fault> {
    let client = show.connect.client()?;
    let mut request = ListDefinitionsRequest { page_size: PAGE, ..request };
    let (mut definitions, mut none) = (show.output.listing(), true);
    loop {
        let page = client.list_definitions(request.clone()).await?;
        none &= page.definitions.is_empty();
        definitions.add(page.definitions)?;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if none && !request.name.is_empty() {
        return Ok(false);
    }
    definitions.end()?;
    Ok(true)
}

impl Thing for DefinitionSummary {
    const MESSAGE: &'static str = "DefinitionSummary";

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Listed for DefinitionSummary {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAMESPACE", |of| of.namespace.clone()),
        column("DEFINITION", |of| of.name.clone()),
        column("VERSION", |of| of.version.clone()),
        column("STEPS", |of| of.total_steps.to_string()),
        column("REGISTERED", |of| output::time(of.create_time.as_ref())),
        column("STANDS", |of| {
            let stands = [(of.latest, "latest"), (of.paused, "paused")];
            let stands = stands.iter().filter(|(is, _)| *is).map(|(_, what)| *what);
            stands.collect::<Vec<&str>>().join(", ")
        }),
        wide("CONTENT", |of| of.content_hash.clone()),
    ];
}

impl Thing for NamespaceSummary {
    const MESSAGE: &'static str = "NamespaceSummary";

    fn name(&self) -> String {
        self.namespace.clone()
    }
}

impl Listed for NamespaceSummary {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAMESPACE", |of| of.namespace.clone()),
        column("DEFINITIONS", |of| of.definitions.to_string()),
        column("VERSIONS", |of| of.versions.to_string()),
    ];
}

impl List {
    async fn run(self) -> Result<ExitCode, Fault> {
        let (namespace, all_versions) = (self.namespace, self.all_versions);
        let request = ListDefinitionsRequest { namespace, all_versions, ..Default::default() };
        list(&self.show, request).await?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Named {
    async fn versions(self) -> Result<ExitCode, Fault> {
        let (namespace, name) = (self.namespace.get()?, self.name);
        let what = format!("there is no definition {name} in namespace {namespace}");
        let request =
            ListDefinitionsRequest { namespace, name, all_versions: true, ..Default::default() };
        if !list(&self.show, request).await? {
            let refusal = Refusal::new(ErrorReason::DefinitionNotFound, what);
            return Err(Error::Refused(Box::new(refusal)).into());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Namespaces {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let mut request = ListNamespacesRequest { page_size: PAGE, page_token: String::new() };
        let mut namespaces = self.show.output.listing();
        loop {
            let page = client.list_namespaces(request.clone()).await?;
            namespaces.add(page.namespaces)?;
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        namespaces.end()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Graph {
    async fn run(self) -> Result<ExitCode, Fault> {
        let (namespace, name, version) = (self.namespace.get()?, self.name, self.version);
        let request = GetDefinitionGraphRequest { namespace, name, version };
        let answer = self.show.connect.client()?.get_definition_graph(request).await?;
        let graph = answer.graph.unwrap_or_default();
        self.show.output.answer("DefinitionGraph", &graph, [&graph.name], || drawn(&graph))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A graph as people read it.
fn drawn(graph: &DefinitionGraph) -> String {
    let DefinitionGraph { namespace, name, version, .. } = graph;
    let mut text = output::plain(&format!("{namespace}/{name} {version}")) + "\n";
    text += &output::text(&levels(graph));
    for (what, numbers, between) in [
        ("roots", &graph.roots, ", "),
        ("leaves", &graph.leaves, ", "),
        ("longest path", &graph.longest_path, " > "),
    ] {
        let names: Vec<&str> = numbers.iter().map(|number| step(graph, *number).1).collect();
        text += &format!("\n{what}: {}", output::plain(&some(&names, between)));
    }
    text
}

/// The steps by level, a row each.
fn levels(graph: &DefinitionGraph) -> output::Table {
    let mut table = output::table(&["LEVEL", "#", "STEP", "HANDLER", "AFTER"]);
    let numbers = graph.levels.iter().flat_map(|level| &level.steps);
    for (of, name) in numbers.map(|number| step(graph, *number)) {
        let Some(of) = of else { continue };
        let after: Vec<&str> = of.parents.iter().map(|parent| step(graph, *parent).1).collect();
        table.add_row([
            of.level.to_string(),
            of.number.to_string(),
            indented(name, of.level),
            of.handler.clone(),
            some(&after, ", "),
        ]);
    }
    table
}

/// A step of the graph, and its name.
fn step(graph: &DefinitionGraph, number: i32) -> (Option<&DefinitionGraphStep>, &str) {
    let step = usize::try_from(number).ok().and_then(|place| graph.steps.get(place));
    (step, step.map(|step| step.name.as_str()).unwrap_or_default())
}

/// A file, or those of a folder, by name.
fn files(path: &PathBuf) -> Result<Vec<PathBuf>, Fault> {
    if !path.is_dir() {
        return Ok(vec![path.clone()]);
    }
    let told = |error: std::io::Error| {
        Fault::usage(format!("cannot read {}", path.display())).because(error.to_string())
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(told)? {
        files.push(entry.map_err(told)?.path());
    }
    files.retain(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml"));
    files.sort();
    Ok(files)
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
