//! `stepwell task annotate`: facts that are kept with a task.

use std::process::ExitCode;

use clap::Args;
use clap_complete::ArgValueCompleter;
use stepwell_proto::v1::AnnotateTaskRequest;

use crate::{completion, connect::Show, fault::Fault, task::Ask};

#[derive(Args)]
pub(crate) struct Annotate {
    /// The task's id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// A fact to keep, `NAME=TEXT`, or the name of one to forget, `NAME-`.
    #[arg(required = true, value_name = "NAME=TEXT|NAME-", value_parser = change)]
    changes: Vec<Change>,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    show: Show,
}

/// What becomes of one fact.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    Keep(String, String),
    Forget(String),
}

fn change(text: &str) -> Result<Change, String> {
    if text.contains('=') {
        return fact(text).map(|(name, text)| Change::Keep(name, text));
    }
    let name = text.strip_suffix('-');
    name.map(|name| Change::Forget(name.to_owned()))
        .ok_or_else(|| "NAME=TEXT is wanted, or NAME- to forget one".to_owned())
}

/// A fact as it is given: all after the first `=` is its text.
pub(crate) fn fact(text: &str) -> Result<(String, String), String> {
    let (name, text) = text.split_once('=').ok_or("NAME=TEXT is wanted")?;
    Ok((name.to_owned(), text.to_owned()))
}

impl Annotate {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let mut request = AnnotateTaskRequest {
            task_id: self.task_id,
            reason: self.ask.note.reason,
            annotated_by: self.ask.note.by,
            request_id: self.ask.request_id,
            ..AnnotateTaskRequest::default()
        };
        for change in self.changes {
            match change {
                Change::Keep(name, text) => {
                    if let Some(other) = request.set.insert(name.clone(), text) {
                        return Err(Fault::usage(format!("{name} is given twice"))
                            .because(format!("first it is {other:?}")));
                    }
                }
                Change::Forget(name) => request.remove.push(name),
            }
        }
        let answer = self.show.connect.client()?.annotate_task(request).await?;
        self.show.task(&answer.task.unwrap_or_default())?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_has_its_text_after_the_first_sign_and_a_name_with_a_dash_is_forgotten() {
        let keep = |name: &str, text: &str| Ok(Change::Keep(name.into(), text.into()));
        assert_eq!(change("order=17"), keep("order", "17"));
        assert_eq!(change("sum=a=b-"), keep("sum", "a=b-"));
        assert_eq!(change("note="), keep("note", ""));
        assert_eq!(change("order-"), Ok(Change::Forget("order".into())));
        assert!(change("order").is_err());
    }
}
