//! `stepwell task archive`: tasks that ended long ago go into a file, and then, if that is wanted, out of the
//! database. Nothing is removed that is not in the file, durably.

mod sink;

use std::{
    io::{Read, Seek, SeekFrom, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde_json::json;
use stepwell_client::Client;
use stepwell_proto::v1::{
    ExportTasksRequest, RemoveTasksRequest, State, Task, TaskPart, TaskToRemove,
};

use crate::{connect::Connect, fault::Fault, output, span::Span};
use sink::Sink;

/// Tasks that are made durable, and then removed, together; and their bytes, about.
const BATCH_MAX: usize = 500;
const BATCH_BYTES_MAX: u64 = 8 << 20;

#[derive(Args)]
pub(crate) struct Archive {
    /// How long ago a task has to have ended: `24h`, `30d`.
    #[arg(long)]
    older_than: Span,
    /// Where they go: a file of JSON lines, which may be there already, or a folder, which gets a new one. A name
    /// that ends with `.gz` is packed.
    #[arg(long, value_name = "FILE|FOLDER", required_unless_present = "dry_run")]
    to: Option<PathBuf>,
    /// Tasks in this state: complete, cancelled, resolved_manually or error; may be given several times. The first
    /// three unless given.
    #[arg(long)]
    state: Vec<String>,
    /// Only of this namespace.
    #[arg(long, short, default_value = "")]
    namespace: String,
    /// Leave out their events.
    #[arg(long)]
    without_events: bool,
    /// Remove what was exported.
    #[arg(long, conflicts_with = "dry_run")]
    remove: bool,
    /// Count what would be exported, and write and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// How it is shown.
    #[arg(short, long, default_value = "table", value_parser = output::of_reports())]
    output: output::Format,
    #[command(flatten)]
    connect: Connect,
}

/// What was done.
#[derive(Default)]
struct Done {
    exported: u64,
    removed: u64,
    left: u64,
}

/// A task that is written.
struct Line {
    remove: TaskToRemove,
    text: tempfile::SpooledTempFile,
    /// Which of its lists is written.
    list: List,
    is_empty: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    Steps,
    Events,
}

impl Archive {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.connect.client()?;
        let states = self.state.iter().map(|word| state(word)).collect::<Result<Vec<i32>, _>>()?;
        let mut request = ExportTasksRequest {
            older_than: Some(self.older_than.proto()),
            states,
            namespace: self.namespace.clone(),
            without_events: self.without_events || self.dry_run,
            page_token: String::new(),
        };
        let mut sink = match &self.to {
            Some(to) if !self.dry_run => Some(Sink::open(to)?),
            _ => None,
        };
        let (mut done, mut batch, mut line) = (Done::default(), Vec::new(), None);
        loop {
            let page = client.export_tasks(request.clone()).await?;
            for part in page.parts {
                if let Some(remove) = take(&mut line, part, sink.as_mut())? {
                    done.exported += 1;
                    batch.push(remove);
                }
                let is_full = batch.len() == BATCH_MAX
                    || sink.as_ref().is_some_and(|sink| sink.pending() >= BATCH_BYTES_MAX);
                if is_full {
                    self.close(&client, sink.as_mut(), &mut batch, &mut done).await?;
                }
            }
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        self.close(&client, sink.as_mut(), &mut batch, &mut done).await?;
        self.tell(&done, sink.as_ref())?;
        Ok(ExitCode::SUCCESS)
    }

    /// Makes what was written durable, and only then removes it.
    async fn close(
        &self,
        client: &Client,
        sink: Option<&mut Sink>,
        batch: &mut Vec<TaskToRemove>,
        done: &mut Done,
    ) -> Result<(), Fault> {
        let tasks = std::mem::take(batch);
        let Some(sink) = sink.filter(|_| !tasks.is_empty()) else { return Ok(()) };
        sink.sync()?;
        #[cfg(feature = "failpoints")]
        if fail::eval("archive::exported", |_| ()).is_some() {
            std::process::abort();
        }
        if !self.remove {
            return Ok(());
        }
        let in_error = tasks.iter().any(|task| task.state() == State::Error);
        let answer = client.remove_tasks(RemoveTasksRequest { tasks, in_error }).await?;
        for result in answer.results {
            if result.removed {
                done.removed += 1;
            } else {
                done.left += 1;
            }
        }
        Ok(())
    }

    fn tell(&self, done: &Done, sink: Option<&Sink>) -> Result<(), Fault> {
        let Done { exported, removed, left } = done;
        let file = sink.map(|sink| sink.path().display().to_string());
        let mut told = json!({"exported": exported, "removed": removed, "left": left});
        if let Some(file) = &file {
            told["file"] = file.as_str().into();
        }
        self.output.report(&told, || {
            let Some(file) = file else { return format!("{exported} tasks would be exported") };
            let mut lines = vec![format!("{exported} tasks are in {file}")];
            if self.remove {
                lines.push(format!("{removed} of them were removed"));
            }
            if *left > 0 {
                lines.push(format!("{left} moved meanwhile and were left"));
            }
            lines.join("\n")
        })
    }
}

/// Takes a part of a task; answers what to remove when the task is whole.
fn take(
    line: &mut Option<Line>,
    part: TaskPart,
    sink: Option<&mut Sink>,
) -> Result<Option<TaskToRemove>, Fault> {
    if let Some(task) = &part.task {
        // What came of a task that has no last part is dropped: it moved, or was removed.
        *line = Some(Line::new(task)?);
    }
    let Some(begun) = line.as_mut().filter(|line| line.remove.task_id == part.task_id) else {
        return Ok(None);
    };
    for step in &part.steps {
        begun.item(List::Steps, &output::json("Step", step)?)?;
    }
    for event in &part.events {
        begun.item(List::Events, &output::json("Event", event)?)?;
    }
    if !part.last {
        return Ok(None);
    }
    begun.end(part.events_complete)?;
    let Some(mut whole) = line.take() else { return Ok(None) };
    if let Some(sink) = sink {
        whole.text.seek(SeekFrom::Start(0))?;
        sink.take(&mut whole.text)?;
    }
    Ok(Some(whole.remove))
}

impl Line {
    /// Larger ones are put down on the disk.
    const MEMORY_MAX: usize = 16 << 20;

    fn new(task: &Task) -> Result<Self, Fault> {
        let mut text = tempfile::SpooledTempFile::new(Self::MEMORY_MAX);
        write!(text, "{{\"task\":{},\"steps\":[", output::json("Task", task)?)?;
        let remove = TaskToRemove {
            task_id: task.task_id.clone(),
            end_time: task.end_time,
            state: task.state,
        };
        Ok(Self { remove, text, list: List::Steps, is_empty: true })
    }

    fn item(&mut self, list: List, json: &str) -> Result<(), Fault> {
        self.go_on_to(list)?;
        if !std::mem::replace(&mut self.is_empty, false) {
            self.text.write_all(b",")?;
        }
        self.text.write_all(json.as_bytes())?;
        Ok(())
    }

    fn go_on_to(&mut self, list: List) -> Result<(), Fault> {
        if self.list != list {
            self.text.write_all(b"],\"events\":[")?;
            (self.list, self.is_empty) = (list, true);
        }
        Ok(())
    }

    fn end(&mut self, events_complete: bool) -> Result<(), Fault> {
        self.go_on_to(List::Events)?;
        writeln!(self.text, "],\"eventsComplete\":{events_complete}}}")?;
        Ok(())
    }
}

fn state(word: &str) -> Result<i32, Fault> {
    let ended = [State::Complete, State::Error, State::Cancelled, State::ResolvedManually];
    let found = ended.into_iter().find(|state| state.word() == word);
    found.map(Into::into).ok_or_else(|| {
        Fault::usage(format!("no task that has ended is {word:?}"))
            .because("the states are complete, error, cancelled and resolved_manually")
    })
}

/// All bytes of a reader into a writer.
fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<u64> {
    std::io::copy(from, to)
}
