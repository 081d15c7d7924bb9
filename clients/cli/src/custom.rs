//! `stepwell event register` and `stepwell event publish`

use std::{path::Path, path::PathBuf, process::ExitCode};

use clap::Args;
use stepwell_proto::v1::{
    EventType, EventTypeSpec, Publication, PublishEventsRequest, RegisterEventTypeRequest,
};

use crate::{
    connect::{Namespace, Show},
    definition::read,
    fault::Fault,
    output,
};

#[derive(Args)]
pub(crate) struct Register {
    /// Its name: two words or more with dots between, such as `payment.captured`.
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    /// Its version, from 1.
    #[arg(long, default_value_t = 1)]
    version: i32,
    /// The file with its JSON Schema; `-` reads standard input. Any object fits unless given.
    #[arg(long)]
    schema: Option<PathBuf>,
    /// What it means, for people.
    #[arg(long, default_value = "")]
    description: String,
    /// An example of its data: a JSON object.
    #[arg(long, default_value = "")]
    example: String,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Publish {
    /// The task it is about.
    task_id: String,
    /// The name of its type.
    name: String,
    /// What it says: a JSON object; `-` reads standard input.
    #[arg(default_value = "{}")]
    data: String,
    /// The step it is about; the task as a whole unless given.
    #[arg(long, default_value = "")]
    step: String,
    /// The version its data is of; the latest unless given.
    #[arg(long, default_value_t = 0)]
    version: i32,
    /// Your own id of this request: a repeat with it publishes nothing again.
    #[arg(long, default_value = "")]
    request_id: String,
    #[command(flatten)]
    show: Show,
}

impl Register {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let schema = match &self.schema {
            Some(file) => read(file)?,
            None => String::new(),
        };
        let spec = EventTypeSpec {
            name: self.name,
            version: self.version,
            schema,
            description: self.description,
            example: self.example,
        };
        let request =
            RegisterEventTypeRequest { namespace: self.namespace.get()?, event_type: Some(spec) };
        let answer = self.show.connect.client()?.register_event_type(request).await?;
        let of_type = answer.event_type.unwrap_or_default();
        self.show.output.one(&of_type, || {
            let what = if answer.already_existed { "unchanged" } else { "registered" };
            let EventType { namespace, name, version, .. } = &of_type;
            output::plain(&format!("{namespace}/{name} version {version} {what}"))
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Publish {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let data = if self.data == "-" { read(Path::new("-"))? } else { self.data };
        let event = Publication { name: self.name, version: self.version, data };
        let request = PublishEventsRequest {
            task_id: self.task_id,
            step_name: self.step,
            events: vec![event],
            request_id: self.request_id,
        };
        let answer = self.show.connect.client()?.publish_events(request).await?;
        let position = answer.first_position.to_string();
        self.show.output.answer("PublishEventsResponse", &answer, [&position], || {
            let what = if answer.already_published { "was published" } else { "published" };
            format!("{what} at position {position}")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
