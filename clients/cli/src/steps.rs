//! `stepwell step list`: the steps of a task.

use std::process::ExitCode;

use clap::Args;
use clap_complete::ArgValueCompleter;
use stepwell_proto::v1::{EventFilter, ListStepsRequest, State};

use crate::{bulk, completion, connect::Show, fault::Fault, watch::Watch};

/// Most steps of one page.
const PAGE_MAX: u32 = 1_000;

#[derive(Args)]
pub(crate) struct List {
    /// The task's id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// Only those in this state; may be given several times.
    #[arg(long = "state", value_name = "STATE", value_parser = bulk::state)]
    states: Vec<State>,
    /// Only the step of this name; may be given several times.
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Only those that this handler runs; may be given several times.
    #[arg(long = "handler", value_name = "HANDLER")]
    handlers: Vec<String>,
    /// Show their results too.
    #[arg(long)]
    results: bool,
    /// Show so many steps at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on where an earlier list of the same ended.
    #[arg(long, default_value = "")]
    page_token: String,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    show: Show,
}

impl List {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let wanted = ListStepsRequest {
            task_id: self.task_id.clone(),
            states: self.states.iter().map(|state| (*state).into()).collect(),
            names: self.names,
            handlers: self.handlers,
            include_results: self.results,
            page_token: self.page_token,
            ..ListStepsRequest::default()
        };
        let filter = EventFilter { task_ids: vec![self.task_id], ..EventFilter::default() };
        let look = async || {
            let (mut left, mut request) = (self.limit, wanted.clone());
            let mut steps = self.show.output.listing();
            loop {
                request.page_size = i32::try_from(left.min(PAGE_MAX)).unwrap_or(0);
                let page = client.list_steps(request.clone()).await?;
                left = left.saturating_sub(u32::try_from(page.steps.len()).unwrap_or(u32::MAX));
                steps.add(page.steps)?;
                request.page_token = page.next_page_token;
                if request.page_token.is_empty() || left == 0 {
                    break;
                }
            }
            steps.end()?;
            bulk::go_on(&request.page_token);
            Ok(())
        };
        self.watch.show(&client, filter, look).await
    }
}
