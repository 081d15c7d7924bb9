//! `stepwell step list`: the steps of a task.

use std::process::ExitCode;

use clap::Args;
use stepwell_proto::v1::{ListStepsRequest, State};

use crate::{bulk, connect::Show, fault::Fault, output, task};

/// Most steps of one page.
const PAGE_MAX: u32 = 1_000;

#[derive(Args)]
pub(crate) struct List {
    /// The task's id.
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
    show: Show,
}

impl List {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let mut request = ListStepsRequest {
            task_id: self.task_id,
            states: self.states.iter().map(|state| (*state).into()).collect(),
            names: self.names,
            handlers: self.handlers,
            include_results: self.results,
            page_token: self.page_token,
            ..ListStepsRequest::default()
        };
        let mut all = Vec::new();
        loop {
            let left = self.limit - u32::try_from(all.len()).unwrap_or(self.limit);
            request.page_size = i32::try_from(left.min(PAGE_MAX)).unwrap_or(0);
            let page = client.list_steps(request.clone()).await?;
            all.extend(page.steps);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() || all.len() >= self.limit as usize {
                break;
            }
        }
        if self.show.output == output::Format::Json {
            for step in &all {
                output::line(output::json("Step", step)?)?;
            }
        } else if !all.is_empty() {
            output::line(task::steps(&all).to_string())?;
        }
        if !request.page_token.is_empty() {
            eprintln!("there are more: --page-token {}", request.page_token);
        }
        Ok(ExitCode::SUCCESS)
    }
}
