//! `stepwell event register` and `stepwell event publish`

use std::{io::Read, path::Path, path::PathBuf, process::ExitCode};

use clap::Args;
use stepwell_proto::v1::{
    EventTypeSpec, Publication, PublishEventsRequest, RegisterEventTypeRequest,
};

use crate::{connect::Connect, fault::Fault, output};

#[derive(Args)]
pub(crate) struct Register {
    /// Its name: two words or more with dots between, such as `payment.captured`.
    name: String,
    /// Whose tasks may publish it.
    #[arg(long, short, default_value = "default")]
    namespace: String,
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
    connect: Connect,
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
    connect: Connect,
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
            RegisterEventTypeRequest { namespace: self.namespace, event_type: Some(spec) };
        let answer = self.connect.client()?.register_event_type(request).await?;
        let of_type = answer.event_type.unwrap_or_default();
        let what = if answer.already_existed { "unchanged" } else { "registered" };
        let line =
            format!("{}/{} version {} {what}", of_type.namespace, of_type.name, of_type.version);
        output::line(line)?;
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
        let answer = self.connect.client()?.publish_events(request).await?;
        let what = if answer.already_published { "was published" } else { "published" };
        output::line(format!("{what} at position {}", answer.first_position))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The text of a file, or of standard input.
fn read(file: &Path) -> Result<String, Fault> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    let wrong = |error: std::io::Error| {
        Fault::usage(format!("cannot read {}", file.display())).because(error.to_string())
    };
    read.map_err(wrong)?;
    Ok(text)
}
