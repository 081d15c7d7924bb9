//! `stepwell task run` and `stepwell task watch`: a task to its end, over the event stream. On a terminal what
//! happens is drawn on standard error; elsewhere it is a line there for each event; `-o jsonl` has the events
//! themselves on standard output.

use std::{
    pin::pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use clap_complete::ArgValueCompleter;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use stepwell_client::{Client, Error, EventStream};
use stepwell_proto::v1::{
    Earliest, Event, EventFilter, GetTaskRequest, Latest, ListEventsRequest, SubscribeRequest,
    Task, list_events_request, subscribe_request::Start,
};

use crate::{
    completion,
    connect::Show,
    event,
    example::told_to_stop,
    fault::Fault,
    output::{self, Format},
    progress::Progress,
    task::{self, New},
};

/// How often what is drawn moves.
const FRAME: Duration = Duration::from_millis(100);
/// How long is waited for the last look at the task.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// Events of one call.
const PAGE: i32 = 1_000;

#[derive(Args)]
pub(crate) struct Run {
    #[command(flatten)]
    new: New,
    /// Follow it so many seconds at most, and exit with 12 if it has not ended then; the task goes on.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Print its id, and do not follow it.
    #[arg(long, conflicts_with = "wait")]
    detach: bool,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Watch {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// Follow it so many seconds at most, and exit with 12 if it has not ended then.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    #[command(flatten)]
    show: Show,
}

impl Run {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let task = self.new.create(&client).await?;
        if self.detach {
            self.show.output.one(&task, || output::plain(&task.task_id))?;
            return Ok(ExitCode::SUCCESS);
        }
        output::note(format!("task {}", task.task_id));
        follow(&self.show, &client, &task.task_id, self.wait).await
    }
}

impl Watch {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        // A stream would wait for a task that is not there.
        read(&client, &self.task_id).await?;
        follow(&self.show, &client, &self.task_id, self.wait).await
    }
}

async fn read(client: &Client, task_id: &str) -> Result<Task, Fault> {
    let request = GetTaskRequest { task_id: task_id.to_owned(), ..GetTaskRequest::default() };
    Ok(client.get_task(request).await?.task.unwrap_or_default())
}

/// Follows a task to its end, or as long as is waited; the exit code says how it stands then.
async fn follow(
    show: &Show,
    client: &Client,
    task_id: &str,
    wait: Option<u64>,
) -> Result<ExitCode, Fault> {
    let filter = EventFilter { task_ids: vec![task_id.to_owned()], ..EventFilter::default() };
    let wanted = SubscribeRequest {
        start: Some(Start::Latest(Latest {})),
        filter: Some(filter.clone()),
        metadata_only: false,
        with_snapshot: true,
    };
    let deadline = wait.map(|seconds| tokio::time::Instant::now() + Duration::from_secs(seconds));
    let mut stopped = pin!(told_to_stop());
    let mut follower = None;
    let following = async {
        let feed = client.subscribe(wanted).await?;
        follower.insert(Follower::new(feed, show.output)).run(client, filter).await
    };
    let was_stopped = tokio::select! {
        ended = following => {
            ended?;
            false
        }
        () = until(deadline) => false,
        () = &mut stopped => true,
    };
    if let Some(Follower { progress, view, .. }) = &mut follower {
        view.end(progress);
    }
    if was_stopped {
        return Ok(interrupted(task_id));
    }
    let told = follower.and_then(|follower| follower.progress.ended());
    if let (Format::Jsonl, Some(state)) = (show.output, told) {
        // The events said it all.
        return Ok(task::ended(state));
    }
    // It may have ended in time, and the event not have come.
    let task = tokio::select! {
        task = tokio::time::timeout(READ_WITHIN, read(client, task_id)) => {
            task.map_err(|_| Error::NoAnswer(READ_WITHIN))??
        }
        () = stopped => return Ok(interrupted(task_id)),
    };
    if show.output != Format::Jsonl {
        show.output.one(&task, || task::headline(&task))?;
    }
    Ok(task::ended(task.state()))
}

fn interrupted(task_id: &str) -> ExitCode {
    output::note(format!(
        "the task goes on. Back to it: stepwell task watch {task_id}\n\
         To stop it: stepwell task cancel {task_id}"
    ));
    ExitCode::from(130)
}

/// For ever if there is no deadline.
async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

struct Follower {
    progress: Progress,
    feed: EventStream,
    view: View,
}

impl Follower {
    fn new(feed: EventStream, format: Format) -> Self {
        let task = feed.snapshot().cloned().unwrap_or_default();
        Self { progress: Progress::of(&task, Instant::now()), view: View::new(format, &task), feed }
    }

    /// To the end of the task.
    async fn run(&mut self, client: &Client, filter: EventFilter) -> Result<(), Fault> {
        if !self.view.is_drawn() {
            self.view.history(client, filter).await?;
        }
        while self.progress.ended().is_none() {
            self.view.draw(&self.progress);
            let delivery = tokio::select! {
                delivery = self.feed.next() => delivery,
                () = tokio::time::sleep(FRAME), if self.view.is_drawn() => continue,
            };
            let Some(delivery) = delivery else { break };
            for event in delivery?.events {
                self.progress.take(&event, Instant::now());
                self.view.take(&event)?;
            }
        }
        Ok(())
    }
}

/// Where what happens is seen.
struct View {
    format: Format,
    screen: Option<Screen>,
    /// The last event that was printed.
    position: i64,
}

/// Lines of a terminal that are drawn anew.
struct Screen {
    lines: Vec<ProgressBar>,
    all: MultiProgress,
    coloured: bool,
    frame: usize,
}

impl View {
    fn new(format: Format, task: &Task) -> Self {
        let drawn = format != Format::Jsonl && output::is_terminal() && !task.steps.is_empty();
        let screen = drawn.then(|| Screen {
            lines: Vec::new(),
            all: MultiProgress::new(),
            coloured: output::colours_of_notes(),
            frame: 0,
        });
        Self { format, screen, position: 0 }
    }

    fn is_drawn(&self) -> bool {
        self.screen.is_some()
    }

    /// What happened before.
    async fn history(&mut self, client: &Client, filter: EventFilter) -> Result<(), Fault> {
        let mut request = ListEventsRequest {
            start: Some(list_events_request::Start::Earliest(Earliest {})),
            filter: Some(filter),
            page_size: PAGE,
            ..ListEventsRequest::default()
        };
        loop {
            let page = client.list_events(request.clone()).await?;
            page.events.iter().try_for_each(|event| self.take(event))?;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok(());
            }
        }
    }

    /// One event more, unless it was there before.
    fn take(&mut self, event: &Event) -> Result<(), Fault> {
        if self.is_drawn() || event.position <= self.position {
            return Ok(());
        }
        self.position = event.position;
        if self.format == Format::Jsonl {
            self.format.next(event, String::new)
        } else {
            output::note(event::describe(event));
            Ok(())
        }
    }

    fn draw(&mut self, progress: &Progress) {
        if let Some(screen) = &mut self.screen {
            screen.draw(progress);
        }
    }

    /// The last look stays.
    fn end(&mut self, progress: &Progress) {
        self.draw(progress);
        for line in self.screen.iter().flat_map(|screen| &screen.lines) {
            line.abandon();
        }
    }
}

impl Screen {
    fn draw(&mut self, progress: &Progress) {
        let lines = progress.lines(Instant::now(), self.frame, self.coloured);
        self.frame += 1;
        while self.lines.len() < lines.len() {
            let style = ProgressStyle::with_template("{wide_msg}").expect("a fixed template");
            self.lines.push(self.all.add(ProgressBar::new_spinner().with_style(style)));
        }
        for (line, text) in self.lines.iter().zip(lines) {
            line.set_message(text);
        }
    }
}
