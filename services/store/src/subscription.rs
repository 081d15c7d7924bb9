//! Durable subscriptions: the calls of `migrations/verbs/89_subscription.sql`, and what is read of them.

use std::time::Duration;

use prost::Message;
use sqlx::types::{
    Uuid,
    chrono::{DateTime, Utc},
};
use stepwell_proto::v1::{Delivery, EventFilter};

use crate::{Error, EventRow, Store, Topic, span};

/// Most subscriptions of a database.
pub const SUBSCRIPTIONS_MAX: i32 = 1_000;
/// Most events of a subscription that are parked or retried.
pub const PARKED_MAX: i32 = 10_000;
/// Most partitions of a subscription.
pub const PARTITIONS_MAX: i32 = 64;
/// How long a stream that is not heard of keeps its partitions.
pub const READER_LEASE: Duration = Duration::from_secs(10);

/// What a subscription is.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSubscription {
    /// Its key.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// Which events.
    pub filter: EventFilter,
    /// The events of a task come one after the other.
    pub ordered: bool,
    /// So often an event may fail.
    pub max_attempts: i32,
    /// How long its reader may acknowledge nothing.
    pub ack_deadline: Duration,
    /// How many partitions it has.
    pub partitions: i32,
    /// Nobody reads it.
    pub paused: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// How its events are delivered; none: readers come for them.
    pub delivery: Option<Delivery>,
    /// Handed on with each event.
    pub config: String,
    /// Only tasks of a definition of this namespace; empty: of any.
    pub namespace: String,
    /// … of this name.
    pub definition: String,
    /// Nobody reads it, as it is declared.
    pub disabled: bool,
    /// It was declared.
    pub declared: bool,
    /// Grows when what is delivered, or how, is another.
    pub revision: i32,
}

/// A subscription that is to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSubscription {
    /// Its name.
    pub name: String,
    /// Which events.
    pub filter: EventFilter,
    /// The events of a task come one after the other.
    pub ordered: bool,
    /// So often an event may fail.
    pub max_attempts: i32,
    /// How long its reader may acknowledge nothing.
    pub ack_deadline: Duration,
    /// How many partitions it has.
    pub partitions: i32,
    /// How its events are delivered; none: readers come for them.
    pub delivery: Option<Delivery>,
    /// Handed on with each event.
    pub config: String,
    /// Only tasks of a definition of this namespace; empty: of any.
    pub namespace: String,
    /// … of this name.
    pub definition: String,
    /// Nobody reads it, as it is declared.
    pub disabled: bool,
    /// It starts after this position.
    pub place: i64,
}

/// What came of subscriptions that were declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// All were applied: what became of each, and who was pruned.
    Done(Vec<Outcome>, Vec<String>),
    /// This one is there and was not declared, or is of another definition.
    Other(usize),
    /// Of this one events are parked.
    Parked(usize),
    /// There would be too many.
    TooMany,
}

/// What became of a declared subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there now.
    Created,
    /// It was changed.
    Changed,
    /// It was the same.
    Unchanged,
}

/// A subscription whose events event-service delivers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its key.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// Grows when what is delivered, or how, is another.
    pub revision: i32,
    /// Somebody may read it, and a partition has no reader.
    pub is_free: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is there now.
    Now,
    /// It was there before.
    Before,
    /// Another one has its name.
    Other,
    /// There are too many.
    TooMany,
}

/// What is changed of a subscription; none: nothing.
#[derive(Clone, Debug, Default)]
pub struct SubscriptionChange {
    /// Paused or not.
    pub paused: Option<bool>,
    /// Another filter.
    pub filter: Option<EventFilter>,
    /// Another number of attempts.
    pub max_attempts: Option<i32>,
    /// Another deadline.
    pub ack_deadline: Option<Duration>,
    /// Another number of partitions.
    pub partitions: Option<i32>,
    /// Another place.
    pub place: Option<i64>,
    /// Another delivery.
    pub delivery: Option<Delivery>,
    /// Another config.
    pub config: Option<String>,
    /// Disabled or not.
    pub disabled: Option<bool>,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It was made.
    Done,
    /// There is no such subscription.
    Unknown,
    /// It is not paused.
    NotPaused,
    /// It has no delivery to change.
    NoDelivery,
    /// Something is parked.
    Parked,
}

/// How far a partition has come, and who reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionRow {
    /// Its number.
    pub no: i32,
    /// All up to here is done.
    pub place: i64,
    /// Its fence.
    pub epoch: i64,
    /// Who reads it; none: nobody.
    pub reader: Option<String>,
    /// Positions after its place.
    pub behind: i64,
    /// When the first event after its place was.
    pub behind_ms: Option<i64>,
    /// Events that are parked.
    pub parked: i32,
    /// Events that are delivered again alone.
    pub retried: i32,
    /// The event that failed last.
    pub failing: Option<i64>,
    /// How often it has.
    pub attempt: i32,
}

/// Where a partition stands for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its number.
    pub no: i32,
    /// Its fence.
    pub epoch: i64,
    /// All up to here is done.
    pub place: i64,
    /// The event that failed last; 0: none.
    pub failing: i64,
    /// How often it has.
    pub attempt: i32,
    /// How long it rests still.
    pub rest: Duration,
}

/// A stream that asks for partitions.
#[derive(Clone, Debug)]
pub struct Taker {
    /// The subscription's key.
    pub subscription: i32,
    /// Who reads.
    pub reader: String,
    /// The stream: a number that no other has.
    pub holder: i64,
    /// Only these; empty: any.
    pub wanted: Vec<i32>,
}

/// What a stream holds, and up to where all is done.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The subscription's key.
    pub subscription: i32,
    /// The partition.
    pub no: i32,
    /// The stream.
    pub holder: i64,
    /// Who reads.
    pub reader: String,
    /// The epoch it knows.
    pub epoch: i64,
    /// All up to here is done.
    pub done: i64,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It holds it still; in how long an event is to be delivered again alone.
    Still(Standing, Option<Duration>),
    /// Somebody else does, or nobody.
    Lost,
    /// Another stream of the same reader does.
    Replaced,
}

/// What came of an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// All up to here is done.
    To(i64),
    /// There is no such subscription.
    Unknown,
    /// There is no such partition.
    NoPartition,
    /// The partition has this epoch now.
    Fenced(i64),
    /// The log ends before, here.
    Ahead(i64),
}

/// An event that failed.
#[derive(Clone, Debug)]
pub struct Nack<'a> {
    /// The subscription's name.
    pub name: &'a str,
    /// The partition.
    pub no: i32,
    /// The epoch it was delivered under.
    pub epoch: i64,
    /// Its position.
    pub position: i64,
    /// Which attempt it was.
    pub attempt: i32,
    /// Why.
    pub reason: &'a str,
    /// When it comes again; none: by its failures.
    pub wait: Option<Duration>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nacked {
    /// It is delivered again or parked.
    Done {
        /// The epoch from now on.
        epoch: i64,
        /// How often it has failed; 0: it was acked before.
        attempt: i32,
        /// It is parked.
        parked: bool,
        /// When it comes again.
        rest: Duration,
    },
    /// There is no such subscription.
    Unknown,
    /// There is no such partition.
    NoPartition,
    /// There is no such event.
    NoEvent,
    /// The partition has this epoch now.
    Fenced(i64),
    /// Too many are kept.
    Full,
}

/// An event that is delivered again alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// Its position.
    pub position: i64,
    /// How often it has failed.
    pub attempt: i32,
    /// It is due in so long.
    pub due: Duration,
}

/// An event that is kept apart.
#[derive(Clone, Debug)]
pub struct ParkedRow {
    /// Its position.
    pub position: i64,
    /// Its partition.
    pub no: i32,
    /// How often it has failed.
    pub attempt: i32,
    /// Why, the last time.
    pub reason: String,
    /// Since when.
    pub at: DateTime<Utc>,
    /// It is being delivered again.
    pub retried: bool,
}

fn millis(wait: Duration) -> i64 {
    i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)
}

fn wait(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

struct Row {
    id: i32,
    name: String,
    filter: Vec<u8>,
    ordered: bool,
    max_attempts: i32,
    ack_deadline_ms: i64,
    partitions: i32,
    paused: bool,
    created_at: DateTime<Utc>,
    delivery: Option<Vec<u8>>,
    config: String,
    namespace: String,
    definition: String,
    disabled: bool,
    declared: bool,
    revision: i32,
}

impl TryFrom<Row> for StoredSubscription {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        let wrong = |what, error| {
            Error::Inconsistent(format!("{what} of subscription {}: {error}", row.id))
        };
        let filter = EventFilter::decode(row.filter.as_slice()).map_err(|e| wrong("filter", e))?;
        let delivery = row.delivery.as_deref().map(Delivery::decode).transpose();
        let delivery = delivery.map_err(|e| wrong("delivery", e))?;
        Ok(Self {
            id: row.id,
            name: row.name,
            filter,
            ordered: row.ordered,
            max_attempts: row.max_attempts,
            ack_deadline: wait(row.ack_deadline_ms),
            partitions: row.partitions,
            paused: row.paused,
            created_at: row.created_at,
            delivery,
            config: row.config,
            namespace: row.namespace,
            definition: row.definition,
            disabled: row.disabled,
            declared: row.declared,
            revision: row.revision,
        })
    }
}

/// How far a subscription has come, of all its partitions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubscriptionProgress {
    /// Its name.
    pub name: String,
    /// Age of the oldest event of the log that the partition furthest behind has still to do with, wanted or
    /// not. Seconds; 0: there is none, or the subscription is paused or disabled.
    pub behind: f64,
    /// Events that are parked.
    pub parked: i64,
}

impl Store {
    /// How far all subscriptions have come, those furthest behind first.
    pub async fn progress(&self) -> Result<Vec<SubscriptionProgress>, Error> {
        let rows = sqlx::query_as!(
            SubscriptionProgress,
            r#"select s.name, coalesce(p.behind, 0) as "behind!", coalesce(e.n, 0) as "parked!"
                 from stepwell.subscription s
                 left join lateral (
                      select greatest(0, extract(epoch from clock_timestamp() - e.at))::float8 behind
                        from (select min(place) place from stepwell.subscription_partition
                               where subscription = s.id) p,
                             lateral (select at from stepwell.event where position > p.place
                                       order by position limit 1) e) p on not s.paused and not s.disabled
                 left join (select subscription, count(*) n from stepwell.parked_event where state = 1
                             group by subscription) e on e.subscription = s.id
                order by 2 desc, s.name"#
        );
        Ok(rows.fetch_all(self.reads()).await?)
    }

    /// Makes a subscription, unless there is one of its name.
    pub async fn create_subscription(&self, new: &NewSubscription) -> Result<Made, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_id as "id", r_made as "made!", r_same as "same"
                     from stepwell.make_subscription($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"#,
                new.name,
                new.filter.encode_to_vec(),
                new.ordered,
                new.max_attempts,
                millis(new.ack_deadline),
                new.partitions,
                new.delivery.as_ref().map(Message::encode_to_vec),
                new.config,
                new.namespace,
                new.definition,
                new.disabled,
                new.place,
                SUBSCRIPTIONS_MAX,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.make_subscription", 1, |_| 1, call).await?;
        self.bell().ring(Topic::Subscription);
        Ok(match (row.id, row.made, row.same) {
            (None, ..) => Made::TooMany,
            (_, true, _) => Made::Now,
            (_, _, Some(true)) => Made::Before,
            _ => Made::Other,
        })
    }

    /// Makes or changes declared subscriptions, all of them or none; with `prune` deletes those that were
    /// declared before and are not among them.
    pub async fn apply_subscriptions(
        &self,
        new: &[NewSubscription],
        prune: bool,
    ) -> Result<Applied, Error> {
        let texts = |of: fn(&NewSubscription) -> &String| new.iter().map(of).cloned().collect();
        let (names, configs): (Vec<String>, Vec<String>) =
            (texts(|of| &of.name), texts(|of| &of.config));
        let (namespaces, definitions): (Vec<String>, Vec<String>) =
            (texts(|of| &of.namespace), texts(|of| &of.definition));
        let deliveries: Vec<Option<Vec<u8>>> =
            new.iter().map(|of| of.delivery.as_ref().map(Message::encode_to_vec)).collect();
        let call = async {
            let call = sqlx::query!(
                r#"select r_fault as "fault!", r_i as "i", r_outcome as "outcome", r_pruned as "pruned"
                     from stepwell.apply_subscriptions($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"#,
                &names,
                &new.iter().map(|of| of.filter.encode_to_vec()).collect::<Vec<_>>(),
                &new.iter().map(|of| of.ordered).collect::<Vec<_>>(),
                &new.iter().map(|of| of.max_attempts).collect::<Vec<_>>(),
                &new.iter().map(|of| millis(of.ack_deadline)).collect::<Vec<_>>(),
                &new.iter().map(|of| of.partitions).collect::<Vec<_>>(),
                &deliveries as &[Option<Vec<u8>>],
                &configs,
                &namespaces,
                &definitions,
                &new.iter().map(|of| of.disabled).collect::<Vec<_>>(),
                &new.iter().map(|of| of.place).collect::<Vec<_>>(),
                prune,
                SUBSCRIPTIONS_MAX,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.apply_subscriptions", new.len(), |_| 1, call).await?;
        self.bell().ring(Topic::Subscription);
        let i = row.i.and_then(|i| usize::try_from(i - 1).ok()).unwrap_or_default();
        let outcome = |outcome: i32| match outcome {
            1 => Outcome::Created,
            2 => Outcome::Changed,
            _ => Outcome::Unchanged,
        };
        Ok(match row.fault {
            1 => Applied::Other(i),
            2 => Applied::Parked(i),
            3 => Applied::TooMany,
            _ => Applied::Done(
                row.outcome.unwrap_or_default().into_iter().map(outcome).collect(),
                row.pruned.unwrap_or_default(),
            ),
        })
    }

    /// All subscriptions that have a delivery.
    pub async fn delivered_subscriptions(&self) -> Result<Vec<Delivered>, Error> {
        let rows = sqlx::query_as!(
            Delivered,
            r#"select id, name, revision,
                      not paused and not disabled and exists (
                        select from stepwell.subscription_partition p
                         where p.subscription = s.id
                           and (p.holder is null or p.lease_until < clock_timestamp())) as "is_free!"
                 from stepwell.subscription s where delivery is not null order by id"#
        );
        Ok(rows.fetch_all(self.reads()).await?)
    }

    /// A subscription by its name.
    pub async fn subscription(&self, name: &str) -> Result<Option<StoredSubscription>, Error> {
        let row = sqlx::query_as!(
            Row,
            "select id, name, filter, ordered, max_attempts, ack_deadline_ms, partitions, paused, created_at,
                    delivery, config, namespace, definition, disabled, declared, revision
               from stepwell.subscription where name = $1",
            name
        );
        row.fetch_optional(self.reads()).await?.map(TryInto::try_into).transpose()
    }

    /// The subscriptions after a name, at most so many.
    pub async fn subscriptions(
        &self,
        after: &str,
        most: i64,
    ) -> Result<Vec<StoredSubscription>, Error> {
        let rows = sqlx::query_as!(
            Row,
            "select id, name, filter, ordered, max_attempts, ack_deadline_ms, partitions, paused, created_at,
                    delivery, config, namespace, definition, disabled, declared, revision
               from stepwell.subscription where name > $1 order by name limit $2",
            after,
            most,
        );
        rows.fetch_all(self.reads()).await?.into_iter().map(TryInto::try_into).collect()
    }

    /// How far each partition of a subscription has come.
    pub async fn partitions(&self, subscription: i32) -> Result<Vec<PartitionRow>, Error> {
        let rows = sqlx::query_as!(
            PartitionRow,
            r#"select p.no, p.place, p.epoch,
                      case when p.lease_until >= clock_timestamp() then p.reader end as reader,
                      greatest(0, h.position - p.place) as "behind!",
                      (select greatest(0, extract(epoch from clock_timestamp() - at) * 1000)::bigint
                         from stepwell.event where position > p.place order by position limit 1) as behind_ms,
                      (select count(*) from stepwell.parked_event e
                        where e.subscription = $1 and e.partition = p.no and e.state = 1)::int as "parked!",
                      (select count(*) from stepwell.parked_event e
                        where e.subscription = $1 and e.partition = p.no and e.state = 2)::int as "retried!",
                      p.failing, p.attempt
                 from stepwell.subscription_partition p,
                      (select coalesce((select position from stepwell.event order by position desc limit 1), 0)) h(position)
                where p.subscription = $1 order by p.no"#,
            subscription,
        );
        Ok(rows.fetch_all(self.reads()).await?)
    }

    /// Changes a subscription.
    pub async fn update_subscription(
        &self,
        name: &str,
        change: &SubscriptionChange,
    ) -> Result<Changed, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_found as "found!", r_was_paused as "was_paused!", r_parked as "parked!",
                          r_has_delivery as "has_delivery!"
                     from stepwell.change_subscription($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"#,
                name,
                change.paused,
                change.filter.as_ref().map(Message::encode_to_vec),
                change.max_attempts,
                change.ack_deadline.map(millis),
                change.partitions,
                change.delivery.as_ref().map(Message::encode_to_vec),
                change.config,
                change.disabled,
                change.place,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.change_subscription", 1, |_| 1, call).await?;
        let needs_pause =
            change.filter.is_some() || change.place.is_some() || change.partitions.is_some();
        let has_config = change.config.as_ref().is_some_and(|config| !config.is_empty());
        let needs_delivery = change.delivery.is_some() || has_config;
        let changed = match row.found {
            false => Changed::Unknown,
            true if row.parked => Changed::Parked,
            true if needs_pause && !row.was_paused => Changed::NotPaused,
            true if needs_delivery && !row.has_delivery => Changed::NoDelivery,
            true => Changed::Done,
        };
        self.bell().ring(Topic::Subscription);
        Ok(changed)
    }

    /// Forgets a subscription; false: there is none of this name.
    pub async fn delete_subscription(&self, name: &str) -> Result<bool, Error> {
        let call = async {
            let call =
                sqlx::query_scalar!(r#"select stepwell.delete_subscription($1) as "there!""#, name);
            Ok(call.fetch_one(self.reads()).await?)
        };
        let there = span::verb("db.delete_subscription", 1, |_| 1, call).await?;
        self.bell().ring(Topic::Subscription);
        Ok(there)
    }

    /// Gives a stream partitions, at most so many; with `again` also those of another stream of its
    /// reader. None: the subscription is gone.
    pub async fn take_partitions(
        &self,
        taker: &Taker,
        most: i32,
        again: bool,
    ) -> Result<Option<Vec<Standing>>, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_found as "found!", r_no as "no", r_epoch as "epoch", r_place as "place",
                          r_failing as "failing", r_attempt as "attempt", r_rest_ms as "rest_ms"
                     from stepwell.take_partitions($1, $2, $3, $4, $5, $6, $7)"#,
                taker.subscription,
                taker.reader,
                taker.holder,
                &taker.wanted,
                most,
                again,
                millis(READER_LEASE),
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.take_partitions", 1, |_| 1, call).await?;
        if !row.found {
            return Ok(None);
        }
        let (epochs, places) = (row.epoch.unwrap_or_default(), row.place.unwrap_or_default());
        let (failing, attempts) =
            (row.failing.unwrap_or_default(), row.attempt.unwrap_or_default());
        let rests = row.rest_ms.unwrap_or_default();
        let numbers = row.no.unwrap_or_default().into_iter().zip(epochs).zip(places);
        let failed = failing.into_iter().zip(attempts).zip(rests);
        let standings =
            numbers.zip(failed).map(|(((no, epoch), place), ((failing, attempt), rest))| {
                Standing { no, epoch, place, failing, attempt, rest: wait(rest) }
            });
        Ok(Some(standings.collect()))
    }

    /// Extends what the streams of this process hold; answers what became of each.
    pub async fn extend_partitions(&self, held: &mut [Holding]) -> Result<Vec<Held>, Error> {
        held.sort_by_key(|of| (of.subscription, of.no));
        let call = async {
            let call = sqlx::query!(
                r#"select r_i as "i!", r_held as "held!", r_replaced as "replaced", r_epoch as "epoch!",
                          r_place as "place!", r_failing as "failing!", r_attempt as "attempt!",
                          r_rest_ms as "rest_ms!", r_again_ms as "again_ms"
                     from stepwell.extend_partitions($1, $2, $3, $4, $5, $6, $7)"#,
                &held.iter().map(|of| of.subscription).collect::<Vec<_>>(),
                &held.iter().map(|of| of.no).collect::<Vec<_>>(),
                &held.iter().map(|of| of.holder).collect::<Vec<_>>(),
                &held.iter().map(|of| of.reader.clone()).collect::<Vec<_>>(),
                &held.iter().map(|of| of.epoch).collect::<Vec<_>>(),
                &held.iter().map(|of| of.done).collect::<Vec<_>>(),
                millis(READER_LEASE),
            );
            Ok(call.fetch_all(self.reads()).await?)
        };
        let rows = span::verb("db.extend_partitions", held.len(), Vec::len, call).await?;
        let mut answers = vec![Held::Lost; held.len()];
        for row in rows {
            let i = usize::try_from(row.i - 1).unwrap_or(usize::MAX);
            let (Some(answer), Some(of)) = (answers.get_mut(i), held.get(i)) else { continue };
            let standing = Standing {
                no: of.no,
                epoch: row.epoch,
                place: row.place,
                failing: row.failing,
                attempt: row.attempt,
                rest: wait(row.rest_ms),
            };
            *answer = match (row.held, row.replaced) {
                (true, _) => Held::Still(standing, row.again_ms.map(wait)),
                (_, Some(true)) => Held::Replaced,
                _ => Held::Lost,
            };
        }
        Ok(answers)
    }

    /// Gives up what a stream holds.
    pub async fn release_partitions(&self, subscription: i32, holder: i64) -> Result<(), Error> {
        let call = async {
            let call = sqlx::query_scalar!(
                r#"select stepwell.release_partitions($1, $2) as "n!""#,
                subscription,
                holder
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        if span::verb("db.release_partitions", 1, |_| 1, call).await? > 0 {
            self.bell().ring(Topic::Subscription);
        }
        Ok(())
    }

    /// Events of a partition are done with: all up to a position, and some that came alone.
    pub async fn ack_events(
        &self,
        name: &str,
        no: i32,
        epoch: i64,
        up_to: i64,
        positions: &[i64],
    ) -> Result<Acked, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_found as "found!", r_epoch as "epoch", r_head as "head!", r_place as "place"
                     from stepwell.ack_events($1, $2, $3, $4, $5)"#,
                name,
                no,
                epoch,
                up_to,
                positions,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.ack_events", positions.len() + 1, |_| 1, call).await?;
        let acked = match (row.epoch, row.place) {
            _ if !row.found => Acked::Unknown,
            (Some(now), _) if now != epoch => Acked::Fenced(now),
            (Some(_), _) if up_to > row.head => Acked::Ahead(row.head),
            (Some(_), Some(place)) => Acked::To(place),
            _ => Acked::NoPartition,
        };
        if matches!(acked, Acked::To(_)) {
            self.bell().ring(Topic::Subscription);
        }
        Ok(acked)
    }

    /// An event of a partition failed.
    pub async fn nack_event(&self, nack: &Nack<'_>) -> Result<Nacked, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_found as "found!", r_epoch as "epoch", r_current as "current!", r_known as "known!",
                          r_full as "full!", r_attempt as "attempt!", r_parked as "parked!", r_rest_ms as "rest_ms!"
                     from stepwell.nack_event($1, $2, $3, $4, $5, $6, $7, $8)"#,
                nack.name,
                nack.no,
                nack.epoch,
                nack.position,
                nack.attempt,
                nack.reason,
                nack.wait.map(millis),
                PARKED_MAX,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.nack_event", 1, |_| 1, call).await?;
        Ok(match row.epoch {
            _ if !row.found => Nacked::Unknown,
            None => Nacked::NoPartition,
            Some(now) if !row.current => Nacked::Fenced(now),
            Some(_) if !row.known => Nacked::NoEvent,
            Some(_) if row.full && row.attempt == 0 => Nacked::Full,
            Some(epoch) => {
                self.bell().ring(Topic::Subscription);
                let (attempt, parked, rest) = (row.attempt, row.parked, wait(row.rest_ms));
                Nacked::Done { epoch, attempt, parked, rest }
            }
        })
    }

    /// Keeps events that follow parked ones of their tasks. Answers the positions of the others; none:
    /// there is no room, or the epoch is over, and nothing was kept.
    pub async fn follow_parked(
        &self,
        subscription: i32,
        no: i32,
        epoch: i64,
        events: &[(i64, Uuid)],
    ) -> Result<Option<Vec<i64>>, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_current as "current!", r_full as "full!", r_passed as "passed"
                     from stepwell.follow_parked($1, $2, $3, $4, $5, $6)"#,
                subscription,
                no,
                epoch,
                &events.iter().map(|(position, _)| *position).collect::<Vec<_>>(),
                &events.iter().map(|(_, uid)| *uid).collect::<Vec<_>>(),
                PARKED_MAX,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.follow_parked", events.len(), |_| 1, call).await?;
        Ok((row.current && !row.full).then(|| row.passed.unwrap_or_default()))
    }

    /// The tasks of a partition of which events are parked.
    pub async fn parked_tasks(&self, subscription: i32, no: i32) -> Result<Vec<Uuid>, Error> {
        let tasks = sqlx::query_scalar!(
            "select distinct uid from stepwell.parked_event where subscription = $1 and partition = $2",
            subscription,
            no,
        );
        Ok(tasks.fetch_all(self.reads()).await?)
    }

    /// The events of a partition that are delivered again alone, the first due first, at most so many;
    /// if order matters one of each task.
    pub async fn again(
        &self,
        subscription: i32,
        no: i32,
        ordered: bool,
        most: i64,
    ) -> Result<Vec<Again>, Error> {
        let rows = sqlx::query!(
            r#"select position, attempt,
                      greatest(0, ceil(extract(epoch from due - clock_timestamp()) * 1000))::bigint as "due_ms!"
                 from stepwell.parked_event p
                where subscription = $1 and partition = $2 and state = 2
                  and not ($3 and exists (select from stepwell.parked_event e
                                           where e.subscription = $1 and e.partition = $2 and e.uid = p.uid
                                             and e.position < p.position))
                order by due, position limit $4"#,
            subscription,
            no,
            ordered,
            most,
        );
        let rows = rows.fetch_all(self.reads()).await?;
        let again = |position, attempt, due| Again { position, attempt, due: wait(due) };
        Ok(rows.into_iter().map(|row| again(row.position, row.attempt, row.due_ms)).collect())
    }

    /// What is kept apart of a subscription after a position, at most so many.
    pub async fn parked(
        &self,
        subscription: i32,
        after: i64,
        most: i64,
    ) -> Result<Vec<ParkedRow>, Error> {
        let rows = sqlx::query_as!(
            ParkedRow,
            r#"select position, partition as no, attempt, reason, at, state = 2 as "retried!"
                 from stepwell.parked_event
                where subscription = $1 and position > $2 order by position limit $3"#,
            subscription,
            after,
            most,
        );
        Ok(rows.fetch_all(self.reads()).await?)
    }

    /// Delivers parked events again, or drops them: at these positions, or all. Answers how many; none:
    /// there is no such subscription.
    pub async fn replay_parked(
        &self,
        name: &str,
        positions: &[i64],
        drop: bool,
    ) -> Result<Option<i32>, Error> {
        let call = async {
            let call = sqlx::query_scalar!(
                "select stepwell.replay_parked($1, $2, $3)",
                name,
                positions,
                drop
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let n = span::verb("db.replay_parked", positions.len(), |_| 1, call).await?;
        self.bell().ring(Topic::Subscription);
        Ok(n)
    }

    /// The rows of the log at these positions, by position; those that are not kept any more are left out.
    pub async fn rows_at(&self, positions: &[i64]) -> Result<Vec<EventRow>, Error> {
        let rows = sqlx::query_as!(
            EventRow,
            r#"select e.position, e.batch, e.at, e.task, e.uid, e.definition, e.no, e.type, e.from_state,
                      e.to_state, e.attempt, e.session, e.mark, e.text, e.names, e.trace
                 from unnest($1::bigint[]) i(position),
                      lateral (select * from stepwell.event where position = i.position offset 0) e
                order by e.position"#,
            positions,
        );
        Ok(rows.fetch_all(self.reads()).await?)
    }
}
