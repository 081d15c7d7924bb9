//! `stepwell step`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use stepwell_client::Client;
use stepwell_proto::v1::{
    CancelStepRequest, GetStepReadinessRequest, GetStepReadinessResponse, GetStepRequest,
    ResolveStepRequest, RetryStepRequest, SkipStepRequest, Step, UpdateStepRequest,
};

use crate::{
    connect::Show,
    fault::Fault,
    output, steps,
    task::{self, Ask, Note},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show a step with its result.
    #[command(visible_alias = "get")]
    Describe(Get),
    /// List the steps of a task that fit.
    List(steps::List),
    /// Say why a step does not run.
    Why(Get),
    /// Try a step in error again.
    Retry(Retry),
    /// Declare a step done, with a result for the steps that depend on it.
    Resolve(Resolve),
    /// Skip a pending step, if its definition lets it be skipped.
    Skip(Move),
    /// Cancel one step. Steps that depend on it can never run.
    Cancel(Move),
    /// Change how often a pending step or one in error may be tried, or what its handler gets then.
    Update(Update),
}

#[derive(Args)]
pub(crate) struct Get {
    /// `TASK_ID.NUMBER`.
    step_id: String,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Move {
    /// `TASK_ID.NUMBER`.
    step_id: String,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Retry {
    /// How many more attempts it may make; as many as the definition says unless given.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=1000))]
    attempts: Option<i32>,
    #[command(flatten)]
    of: Move,
}

#[derive(Args)]
pub(crate) struct Resolve {
    /// The result: JSON, `@file`, or `-` for standard input.
    #[arg(long, default_value = "")]
    result: String,
    #[command(flatten)]
    of: Move,
}

#[derive(Args)]
#[group(id = "what", multiple = true, required = true, args = ["max_attempts", "config", "clear_config"])]
pub(crate) struct Update {
    /// Attempts it may make in all, those made included.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=1000))]
    max_attempts: Option<i32>,
    /// The config in place of the definition's: a JSON object, `@file`, or `-` for standard input.
    #[arg(long)]
    config: Option<String>,
    /// The definition's config again.
    #[arg(long, conflicts_with = "config")]
    clear_config: bool,
    #[command(flatten)]
    of: Move,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Describe(Get { step_id, show }) => {
                let answer = show.client()?.get_step(GetStepRequest { step_id }).await?;
                show.step(answer.step, false)
            }
            Self::List(list) => list.run().await,
            Self::Why(Get { step_id, show }) => {
                let request = GetStepReadinessRequest { step_id };
                let answer = show.client()?.get_step_readiness(request.clone()).await?;
                show.readiness(&request.step_id, &answer)
            }
            Self::Retry(Retry { attempts, of: Move { step_id, ask, show } }) => {
                let Ask { note: Note { reason, by: retried_by }, request_id } = ask;
                let attempts = attempts.unwrap_or_default();
                let request =
                    RetryStepRequest { step_id, reason, retried_by, attempts, request_id };
                let answer = show.client()?.retry_step(request).await?;
                show.step(answer.step, answer.already_in_state)
            }
            Self::Resolve(Resolve { result, of: Move { step_id, ask, show } }) => {
                let Ask { note: Note { reason, by: resolved_by }, request_id } = ask;
                let result = task::text(&result)?;
                let request =
                    ResolveStepRequest { step_id, reason, resolved_by, result, request_id };
                let answer = show.client()?.resolve_step(request).await?;
                show.step(answer.step, answer.already_in_state)
            }
            Self::Skip(Move { step_id, ask, show }) => {
                let Ask { note: Note { reason, by: skipped_by }, request_id } = ask;
                let request = SkipStepRequest { step_id, reason, skipped_by, request_id };
                let answer = show.client()?.skip_step(request).await?;
                show.step(answer.step, answer.already_in_state)
            }
            Self::Cancel(Move { step_id, ask, show }) => {
                let Ask { note: Note { reason, by: cancelled_by }, request_id } = ask;
                let request = CancelStepRequest { step_id, reason, cancelled_by, request_id };
                let answer = show.client()?.cancel_step(request).await?;
                show.step(answer.step, answer.already_in_state)
            }
            Self::Update(update) => update.run().await,
        }
    }
}

impl Update {
    async fn run(self) -> Result<ExitCode, Fault> {
        let Self { max_attempts, config, clear_config, of: Move { step_id, ask, show } } = self;
        let config = match config {
            Some(config) => Some(task::text(&config)?),
            None => clear_config.then(String::new),
        };
        if config.as_deref() == Some("") && !clear_config {
            return Err(Fault::usage("--config is empty: an object is wanted, such as {}"));
        }
        let max_attempts = max_attempts.unwrap_or_default();
        let request = UpdateStepRequest {
            step_id,
            max_attempts,
            config,
            reason: ask.note.reason,
            updated_by: ask.note.by,
            request_id: ask.request_id,
        };
        show.step(show.client()?.update_step(request).await?.step, false)
    }
}

impl Show {
    fn client(&self) -> Result<Client, Fault> {
        self.connect.client()
    }

    fn readiness(
        &self,
        step_id: &str,
        answer: &GetStepReadinessResponse,
    ) -> Result<ExitCode, Fault> {
        self.output.answer("GetStepReadinessResponse", answer, [step_id], || {
            let ready = if answer.ready { ", ready" } else { "" };
            let mut text = format!("{}{ready}", answer.state().word());
            for obstacle in &answer.obstacles {
                text += &format!("\n- {}", output::plain(&obstacle.message));
            }
            text
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn step(&self, step: Option<Step>, already: bool) -> Result<ExitCode, Fault> {
        let step = step.unwrap_or_default();
        if already {
            output::note("nothing was to be done");
        }
        self.output.row(&step)?;
        Ok(ExitCode::SUCCESS)
    }
}
