//! `stepwell executor` and `stepwell handler`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use stepwell_proto::v1::{
    DrainExecutorRequest, Executor, HandlerOffer, ListExecutorsRequest, ListHandlersRequest,
};

use crate::{connect::Show, fault::Fault, output, task::Note};

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
        let mut executors = Vec::new();
        loop {
            let page = client.list_executors(request.clone()).await?;
            executors.extend(page.executors);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return self.show.executors(&executors);
            }
        }
    }

    async fn handlers(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let (namespace, handler) = (self.namespace, self.handler);
        let mut request =
            ListHandlersRequest { namespace, handler, page_size: PAGE, ..Default::default() };
        let mut handlers = Vec::new();
        loop {
            let page = client.list_handlers(request.clone()).await?;
            handlers.extend(page.handlers);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        if self.show.output == output::Format::Json {
            for handler in &handlers {
                output::line(output::json("Handler", handler)?)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let header = ["NAMESPACE", "HANDLER", "VERSIONS", "EXECUTORS", "SLOTS", "USED BY"];
        let mut table = output::table(&header);
        for handler in handlers {
            table.add_row([
                handler.namespace,
                handler.name,
                handler.definition_versions.join(" | "),
                handler.executors.to_string(),
                format!("{}/{}", handler.slots_used, handler.slots),
                if handler.used { "definitions" } else { "nobody" }.to_owned(),
            ]);
        }
        output::line(table.to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Drain {
    async fn run(self) -> Result<ExitCode, Fault> {
        let (reason, requested_by) = (self.note.reason, self.note.by);
        let request = DrainExecutorRequest { executor_id: self.executor_id, reason, requested_by };
        let answer = self.show.connect.client()?.drain_executor(request).await?;
        if answer.already_in_state {
            eprintln!("nothing was to be done");
        }
        self.show.executors(answer.executor.as_slice())
    }
}

impl Show {
    fn executors(&self, executors: &[Executor]) -> Result<ExitCode, Fault> {
        if self.output == output::Format::Json {
            for executor in executors {
                output::line(output::json("Executor", executor)?)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let header = [
            "EXECUTOR",
            "NAME",
            "NAMESPACE",
            "HANDLERS",
            "LABELS",
            "SLOTS",
            "STATE",
            "SDK",
            "NODE",
            "CONNECTED",
            "SEEN",
        ];
        let mut table = output::table(&header);
        for executor in executors {
            table.add_row([
                executor.executor_id.clone(),
                executor.name.clone(),
                executor.namespace.clone(),
                executor.handlers.iter().map(offer).collect::<Vec<_>>().join(", "),
                output::labels(&executor.labels),
                format!("{}/{}", executor.slots_used, executor.slots),
                if executor.draining { "draining" } else { "ready" }.to_owned(),
                executor.sdk.clone(),
                executor.node.to_string(),
                output::time_of_day(executor.connect_time.as_ref()),
                output::time_of_day(executor.last_seen_time.as_ref()),
            ]);
        }
        output::line(table.to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A handler, with its versions unless it is for all.
fn offer(offer: &HandlerOffer) -> String {
    match offer.definition_versions.as_str() {
        "" | "*" => offer.name.clone(),
        versions => format!("{} ({versions})", offer.name),
    }
}
