//! `stepwell executor` and `stepwell handler`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use stepwell_proto::v1::{
    DrainExecutorRequest, Executor, Handler, HandlerOffer, ListExecutorsRequest,
    ListHandlersRequest,
};

use crate::{
    connect::Show,
    fault::Fault,
    output::{self, Column, Listed, Thing, column, state, wide},
    task::Note,
};

/// Of one call; all pages are read.
const PAGE: i32 = 1000;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show the executors that are connected, to whichever node.
    List(List),
    /// Tell an executor to stop: it takes no more steps, finishes what it runs, and goes.
    Drain(Drain),
}

#[derive(Subcommand)]
pub(crate) enum HandlerCommand {
    /// Show the handlers that executors offer or definitions use.
    List(List),
}

#[derive(Args)]
pub(crate) struct List {
    /// Only this namespace.
    #[arg(long, short, default_value = "")]
    namespace: String,
    /// Only this handler.
    #[arg(long, default_value = "")]
    handler: String,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Drain {
    /// As `stepwell executor list` has it.
    executor_id: String,
    #[command(flatten)]
    note: Note,
    #[command(flatten)]
    show: Show,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::List(list) => list.executors().await,
            Self::Drain(drain) => drain.run().await,
        }
    }
}

impl HandlerCommand {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::List(list) => list.handlers().await,
        }
    }
}

impl List {
    async fn executors(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let (namespace, handler) = (self.namespace, self.handler);
        let mut request =
            ListExecutorsRequest { namespace, handler, page_size: PAGE, ..Default::default() };
        let mut executors = self.show.output.listing();
        loop {
            let page = client.list_executors(request.clone()).await?;
            executors.add(page.executors)?;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        executors.end()?;
        Ok(ExitCode::SUCCESS)
    }

    async fn handlers(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let (namespace, handler) = (self.namespace, self.handler);
        let mut request =
            ListHandlersRequest { namespace, handler, page_size: PAGE, ..Default::default() };
        let mut handlers = self.show.output.listing();
        loop {
            let page = client.list_handlers(request.clone()).await?;
            handlers.add(page.handlers)?;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        handlers.end()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Drain {
    async fn run(self) -> Result<ExitCode, Fault> {
        let (reason, requested_by) = (self.note.reason, self.note.by);
        let request = DrainExecutorRequest { executor_id: self.executor_id, reason, requested_by };
        let answer = self.show.connect.client()?.drain_executor(request).await?;
        if answer.already_in_state {
            output::note("nothing was to be done");
        }
        self.show.output.row(&answer.executor.unwrap_or_default())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Thing for Executor {
    const MESSAGE: &'static str = "Executor";

    fn name(&self) -> String {
        self.executor_id.clone()
    }
}

impl Listed for Executor {
    const COLUMNS: &'static [Column<Self>] = &[
        column("EXECUTOR", |executor| executor.executor_id.clone()),
        column("NAME", |executor| executor.name.clone()),
        column("NAMESPACE", |executor| executor.namespace.clone()),
        column("HANDLERS", |executor| {
            executor.handlers.iter().map(offer).collect::<Vec<_>>().join(", ")
        }),
        column("LABELS", |executor| output::labels(&executor.labels)),
        column("SLOTS", |executor| format!("{}/{}", executor.slots_used, executor.slots)),
        state("STATE", |executor| if executor.draining { "draining" } else { "ready" }.to_owned()),
        column("SDK", |executor| executor.sdk.clone()),
        wide("NODE", |executor| executor.node.to_string()),
        wide("CONNECTED", |executor| output::time(executor.connect_time.as_ref())),
        wide("SEEN", |executor| output::time(executor.last_seen_time.as_ref())),
    ];
}

impl Thing for Handler {
    const MESSAGE: &'static str = "Handler";

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Listed for Handler {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAMESPACE", |handler| handler.namespace.clone()),
        column("HANDLER", |handler| handler.name.clone()),
        column("VERSIONS", |handler| handler.definition_versions.join(" | ")),
        column("EXECUTORS", |handler| handler.executors.to_string()),
        column("SLOTS", |handler| format!("{}/{}", handler.slots_used, handler.slots)),
        column("USED BY", |handler| if handler.used { "definitions" } else { "nobody" }.to_owned()),
    ];
}

/// A handler, with its versions unless it is for all.
fn offer(offer: &HandlerOffer) -> String {
    match offer.definition_versions.as_str() {
        "" | "*" => offer.name.clone(),
        versions => format!("{} ({versions})", offer.name),
    }
}
