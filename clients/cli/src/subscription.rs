//! `stepwell subscription`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use stepwell_client::Client;
use stepwell_proto::v1::{
    AppliedSubscription, ApplyOutcome, ApplySubscriptionsRequest, DeleteSubscriptionRequest,
    Delivery, Earliest, GetSubscriptionRequest, GetSubscriptionResponse, Latest,
    ListParkedEventsRequest, ListSubscriptionsRequest, ParkedEvent, ReplayParkedEventsRequest,
    Subscription, SubscriptionText, UpdateSubscriptionRequest, delivery::Kind,
    update_subscription_request::Seek,
};

use crate::{
    connect::Show,
    definition::Texts,
    fault::Fault,
    output::{self, Column, Listed, Thing, column, state, wide},
    span::shown_proto,
};

/// Of one call; all pages are read.
const PAGE: i32 = 1000;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Apply the subscriptions that files declare, all of them or none: lists of subscriptions, or
    /// definitions with some, which are read as `definition apply` reads them. One that is the same is not touched; one that changes goes on where it is.
    Apply(Apply),
    /// Show all subscriptions.
    List(List),
    /// Show a subscription: what it is, how far each partition has come, and what waits.
    Describe(Named),
    /// Deliver nothing more until it is resumed.
    Pause(Named),
    /// Go on where it was paused.
    Resume(Named),
    /// Move it to another place. It must be paused; what is parked stays so.
    Seek(MoveTo),
    /// Show the events that failed too often, and those that follow them.
    Parked(Named),
    /// Deliver parked events again, or drop them.
    Replay(Replay),
    /// Forget a subscription, and what is parked of it.
    Delete(Named),
}

#[derive(Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    texts: Texts,
    /// Delete subscriptions that were declared before and are in none of these files.
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Named {
    /// Its name.
    name: String,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct MoveTo {
    /// Its name.
    name: String,
    /// Where to: `earliest`, `latest`, a time such as `2026-11-28T12:00:00Z`, or a cursor that was printed.
    to: String,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Replay {
    /// Its name.
    name: String,
    /// Positions of parked events, as `stepwell subscription parked` has them, and all that is parked of their
    /// tasks.
    #[arg(required_unless_present = "all")]
    positions: Vec<i64>,
    /// All that is parked.
    #[arg(long, conflicts_with = "positions")]
    all: bool,
    /// They are dropped instead, only those at the positions.
    #[arg(long)]
    drop: bool,
    #[command(flatten)]
    show: Show,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Apply(apply) => apply.run().await,
            Self::List(list) => list.run().await,
            Self::Describe(named) => named.describe().await,
            Self::Pause(named) => named.paused(true).await,
            Self::Resume(named) => named.paused(false).await,
            Self::Seek(to) => to.run().await,
            Self::Parked(named) => named.parked().await,
            Self::Replay(replay) => replay.run().await,
            Self::Delete(named) => named.delete().await,
        }
    }
}

impl Apply {
    async fn run(self) -> Result<ExitCode, Fault> {
        let texts = self.texts.subscriptions()?;
        let applied = apply(&self.show.connect.client()?, texts, self.prune).await?;
        if self.show.output.is_for_people() {
            applied.iter().map(became).try_for_each(output::line)?;
        } else {
            self.show.output.all(applied)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Applies texts; what became of each subscription.
pub(crate) async fn apply(
    client: &Client,
    texts: Vec<SubscriptionText>,
    prune: bool,
) -> Result<Vec<AppliedSubscription>, Fault> {
    let request = ApplySubscriptionsRequest { texts, prune };
    Ok(client.apply_subscriptions(request).await?.subscriptions)
}

/// What became of a subscription that was applied, as a word.
fn outcome(applied: &AppliedSubscription) -> &'static str {
    match applied.outcome() {
        ApplyOutcome::Created => "created",
        ApplyOutcome::Changed => "changed",
        ApplyOutcome::Pruned => "deleted",
        ApplyOutcome::Unchanged | ApplyOutcome::Unspecified => "unchanged",
    }
}

/// The same as a sentence.
pub(crate) fn became(applied: &AppliedSubscription) -> String {
    output::plain(&format!("subscription {} {}", applied.name, outcome(applied)))
}

impl Thing for AppliedSubscription {
    const MESSAGE: &'static str = "AppliedSubscription";

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Listed for AppliedSubscription {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAME", |applied| applied.name.clone()),
        column("OUTCOME", |applied| outcome(applied).to_owned()),
    ];
}

impl Thing for Subscription {
    const MESSAGE: &'static str = "Subscription";

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Listed for Subscription {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAME", |subscription| subscription.name.clone()),
        state("STANDING", |subscription| standing(subscription).to_owned()),
        column("DELIVERED", |subscription| way(subscription.delivery.as_ref()).to_owned()),
        column("OF", scope),
        column("EVENTS", events),
        column("DECLARED", |subscription| {
            if subscription.declared { "yes" } else { "no" }.to_owned()
        }),
        wide("PARTITIONS", |subscription| subscription.partitions.to_string()),
        wide("ATTEMPTS", |subscription| subscription.max_attempts.to_string()),
        wide("ORDERED", |subscription| {
            if subscription.unordered { "no" } else { "yes" }.to_owned()
        }),
        wide("CREATED", |subscription| output::time(subscription.create_time.as_ref())),
    ];
}

impl Thing for ParkedEvent {
    const MESSAGE: &'static str = "ParkedEvent";

    /// Its position, as `stepwell subscription replay` takes it.
    fn name(&self) -> String {
        self.event.as_ref().map(|event| event.position.to_string()).unwrap_or_default()
    }
}

impl Listed for ParkedEvent {
    const COLUMNS: &'static [Column<Self>] = &[
        column("POSITION", Thing::name),
        column("EVENT", |parked| parked.event.clone().unwrap_or_default().name),
        column("TASK", |parked| parked.event.clone().unwrap_or_default().task_id),
        column("STEP", |parked| parked.event.clone().unwrap_or_default().step_name),
        column("FAILED", |parked| parked.failed_attempts.to_string()),
        column("SINCE", |parked| output::time(parked.park_time.as_ref())),
        column("REASON", |parked| match parked.reason.as_str() {
            _ if parked.retried => "is delivered again".to_owned(),
            "" => "follows one that failed".to_owned(),
            reason => reason.to_owned(),
        }),
    ];
}

/// A word for how a subscription is delivered.
fn way(delivery: Option<&Delivery>) -> &'static str {
    match delivery.and_then(|delivery| delivery.kind.as_ref()) {
        Some(Kind::Webhook(_)) => "webhook",
        Some(Kind::Log(_)) => "log",
        Some(Kind::Metrics(_)) => "metrics",
        Some(Kind::Alert(_)) => "alert",
        None if delivery.is_some() => "other",
        None => "readers",
    }
}

fn standing(subscription: &Subscription) -> &'static str {
    match (subscription.paused, subscription.disabled) {
        (true, _) => "paused",
        (_, true) => "disabled",
        _ => "active",
    }
}

fn scope(subscription: &Subscription) -> String {
    match subscription.definition_name.as_str() {
        "" => String::new(),
        name => format!("{}/{name}", subscription.namespace),
    }
}

fn events(subscription: &Subscription) -> String {
    let names = subscription.filter.as_ref().map(|filter| filter.names.join(", "));
    names.filter(|names| !names.is_empty()).unwrap_or_else(|| "*".into())
}

impl List {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let mut request = ListSubscriptionsRequest { page_size: PAGE, page_token: String::new() };
        let mut all = self.show.output.listing();
        loop {
            let page = client.list_subscriptions(request.clone()).await?;
            all.add(page.subscriptions)?;
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        all.end()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Named {
    async fn describe(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let answer = client.get_subscription(GetSubscriptionRequest { name: self.name }).await?;
        let name = answer.subscription.as_ref().map(|subscription| subscription.name.as_str());
        let format = self.show.output;
        format.answer("GetSubscriptionResponse", &answer, name, || described(&answer))?;
        Ok(ExitCode::SUCCESS)
    }

    async fn paused(self, paused: bool) -> Result<ExitCode, Fault> {
        let request = UpdateSubscriptionRequest {
            name: self.name.clone(),
            paused: Some(paused),
            ..UpdateSubscriptionRequest::default()
        };
        let answer = self.show.connect.client()?.update_subscription(request).await?;
        let what = if paused { "is paused" } else { "goes on" };
        let subscription = answer.subscription.unwrap_or_default();
        self.show.output.one(&subscription, || format!("{} {what}", self.name))?;
        Ok(ExitCode::SUCCESS)
    }

    async fn parked(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let mut request =
            ListParkedEventsRequest { name: self.name, page_size: PAGE, page_token: String::new() };
        let mut parked = self.show.output.listing();
        loop {
            let page = client.list_parked_events(request.clone()).await?;
            parked.add(page.events)?;
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        parked.end()?;
        Ok(ExitCode::SUCCESS)
    }

    async fn delete(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let request = DeleteSubscriptionRequest { name: self.name.clone() };
        let answer = client.delete_subscription(request).await?;
        self.show.output.answer("DeleteSubscriptionResponse", &answer, [&self.name], || {
            format!("{} is deleted", self.name)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A subscription and its partitions as people read them.
fn described(answer: &GetSubscriptionResponse) -> String {
    let subscription = answer.subscription.clone().unwrap_or_default();
    let Subscription { name, max_attempts, unordered, config, .. } = &subscription;
    let delivered = match subscription.delivery.as_ref().and_then(|of| of.kind.as_ref()) {
        Some(Kind::Webhook(webhook)) => format!("webhook {}", webhook.url),
        Some(Kind::Alert(alert)) => format!("alert {}", alert.rule),
        _ => way(subscription.delivery.as_ref()).to_owned(),
    };
    let order = if *unordered { "unordered" } else { "ordered" };
    let mut text = format!("{} {}\n", output::plain(name), standing(&subscription));
    for (what, said) in [
        ("delivered", delivered),
        ("of", scope(&subscription)),
        ("events", events(&subscription)),
        ("config", config.clone()),
        ("parked after", format!("{max_attempts} attempts, {order}")),
    ] {
        if !said.is_empty() {
            text += &format!("  {what}: {}\n", output::plain(&said));
        }
    }
    let mut table = output::table(&[
        "#",
        "READER",
        "EVENTS BEHIND",
        "TIME BEHIND",
        "PARKED",
        "RETRIED",
        "FAILING",
        "CURSOR",
    ]);
    for of in &answer.partitions {
        let failing = match of.failing_position {
            0 => String::new(),
            position => format!("{position} ({} times)", of.failed_attempts),
        };
        table.add_row([
            of.partition.to_string(),
            of.reader_id.clone(),
            of.events_behind.to_string(),
            shown_proto(of.time_behind.as_ref()),
            of.parked_events.to_string(),
            of.retried_events.to_string(),
            failing,
            of.cursor.clone(),
        ]);
    }
    text + &output::text(&table)
}

impl MoveTo {
    async fn run(self) -> Result<ExitCode, Fault> {
        let seek = match self.to.as_str() {
            "earliest" => Seek::Earliest(Earliest {}),
            "latest" => Seek::Latest(Latest {}),
            text => match text.parse() {
                Ok(time) => Seek::AtTime(time),
                Err(_) => Seek::AfterCursor(text.to_owned()),
            },
        };
        let request = UpdateSubscriptionRequest {
            name: self.name.clone(),
            seek: Some(seek),
            ..UpdateSubscriptionRequest::default()
        };
        let answer = self.show.connect.client()?.update_subscription(request).await?;
        self.show.output.one(&answer.subscription.unwrap_or_default(), || {
            format!("{} is moved; resume it to go on from there", self.name)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Replay {
    async fn run(self) -> Result<ExitCode, Fault> {
        let request = ReplayParkedEventsRequest {
            name: self.name.clone(),
            positions: self.positions,
            drop: self.drop,
        };
        let answer = self.show.connect.client()?.replay_parked_events(request).await?;
        self.show.output.answer("ReplayParkedEventsResponse", &answer, [&self.name], || {
            let what = if self.drop { "dropped" } else { "to be delivered again" };
            format!("{}: {} events {what}", self.name, answer.events)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::SubscriptionPartition;

    use super::*;

    #[test]
    fn names_of_subscriptions_and_readers_move_no_terminal() {
        let moving = "\u{1b}[2J\u{9b}2J\n".to_owned();
        let subscription = Subscription {
            name: moving.clone(),
            definition_name: moving.clone(),
            config: moving.clone(),
            ..Subscription::default()
        };
        let partition = SubscriptionPartition {
            reader_id: moving.clone(),
            cursor: moving.clone(),
            ..SubscriptionPartition::default()
        };
        let answer = GetSubscriptionResponse {
            subscription: Some(subscription),
            partitions: vec![partition],
        };
        let text = described(&answer);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        let applied = AppliedSubscription { name: moving, ..AppliedSubscription::default() };
        assert!(!became(&applied).contains(char::is_control));
    }
}
