//! What is asked of durable subscriptions, checked. Pure but for where a place must be looked up.

use std::time::Duration;

use prost_types::Timestamp;
use stepwell_proto::{
    json, page,
    refusal::Refusal,
    time,
    v1::{
        AckEventsRequest, CreateSubscriptionRequest, Delivery, ErrorReason, EventFilter,
        NackEventsRequest, SubscribeRequest, Subscription, SubscriptionStart,
        UpdateSubscriptionRequest, create_subscription_request as create, delivery::Kind,
        subscribe_request, update_subscription_request as update,
    },
};
use stepwell_store::{
    NewSubscription, PARTITIONS_MAX, Store, StoredSubscription, SubscriptionChange,
};

use crate::{courier::Ways, filter::Filter, place};

const NAME_BYTES_MAX: usize = 64;
const NAME_RULE: &str = "1 to 64 letters, digits, `_`, `-`, `.`, `/`";
const REASON_BYTES_MAX: usize = 1024;
const POSITIONS_MAX: usize = 1_000;
pub(super) const ATTEMPTS_MAX: i32 = 1_000;
const ATTEMPTS_DEFAULT: i32 = 10;
const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
const PAGE_MAX: i32 = 1_000;
/// Most bytes of what is handed on with each event.
const CONFIG_BYTES_MAX: usize = 8 << 10;

pub(crate) type Faults = Vec<(String, String)>;

/// A stream of a durable subscription that may begin.
pub(crate) struct Started {
    pub(crate) subscription: StoredSubscription,
    pub(crate) reader: String,
    /// Only these; empty: any.
    pub(crate) partitions: Vec<i32>,
    /// So many at once.
    pub(crate) most: usize,
}

/// No subscription has this name.
pub(crate) fn not_found(name: &str) -> Refusal {
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    Refusal::new(ErrorReason::SubscriptionNotFound, format!("no subscription is called {shown:?}"))
        .with("name", shown)
}

/// The events it wants: those of its filter, and if it is of a definition only of that one's tasks.
pub(crate) fn filter_of(subscription: &StoredSubscription) -> Result<Filter, Refusal> {
    let mut filter = subscription.filter.clone();
    if !subscription.definition.is_empty() {
        filter.namespaces = vec![subscription.namespace.clone()];
        filter.definition_names = vec![subscription.definition.clone()];
    }
    Filter::read(filter)
}

/// The subscription of this name.
pub(crate) async fn find(store: &Store, name: &str) -> Result<StoredSubscription, Refusal> {
    known(name)?;
    store.subscription(name).await?.ok_or_else(|| not_found(name))
}

/// Refuses a name that none can have, and that Postgres does not take.
pub(crate) fn known(name: &str) -> Result<(), Refusal> {
    if name.contains('\0') { Err(not_found(name)) } else { Ok(()) }
}

/// Checks what a stream of a durable subscription asks for.
pub(crate) async fn start(store: &Store, request: SubscribeRequest) -> Result<Started, Refusal> {
    let Some(subscribe_request::Start::Subscription(start)) = request.start else {
        return Err(Refusal::field("start", "must be `subscription`"));
    };
    let mut faults = Faults::new();
    if request.filter.is_some_and(|filter| filter != EventFilter::default()) {
        faults.push(("filter".into(), "the subscription has its own: leave it out".into()));
    }
    if request.with_snapshot {
        faults.push(("with_snapshot".into(), "only `latest` or a cursor may stand with it".into()));
    }
    check_start(&start, &mut faults);
    refuse(faults)?;
    let SubscriptionStart { name, reader_id: reader, partitions, partitions_max } = start;
    let subscription = store.subscription(&name).await?.ok_or_else(|| not_found(&name))?;
    if subscription.delivery.is_some() {
        let what = format!("event-service delivers the events of {name} itself");
        let refusal = Refusal::new(ErrorReason::SubscriptionHasDelivery, what);
        return Err(refusal.with("name", name));
    }
    let there = if partitions.is_empty() {
        subscription.partitions
    } else {
        i32::try_from(partitions.len()).unwrap_or(PARTITIONS_MAX)
    };
    // Another number of partitions may be there before the stream ends.
    let most = match partitions_max {
        0 if partitions.is_empty() => PARTITIONS_MAX,
        0 => there,
        n => n,
    };
    Ok(Started { subscription, reader, partitions, most: usize::try_from(most).unwrap_or(1) })
}

fn check_start(start: &SubscriptionStart, faults: &mut Faults) {
    named("start.subscription.name", &start.name, faults);
    named("start.subscription.reader_id", &start.reader_id, faults);
    let wrong = |no: &i32| !(0..PARTITIONS_MAX).contains(no);
    if start.partitions.len() > usize::try_from(PARTITIONS_MAX).unwrap_or(usize::MAX)
        || start.partitions.iter().any(wrong)
    {
        let what = format!("at most {PARTITIONS_MAX} numbers from 0 to {}", PARTITIONS_MAX - 1);
        faults.push(("start.subscription.partitions".into(), what));
    }
    ranged("start.subscription.partitions_max", start.partitions_max, PARTITIONS_MAX, faults);
}

/// Checks a subscription that is to be made.
pub(crate) async fn create(
    store: &Store,
    ways: &Ways,
    request: CreateSubscriptionRequest,
) -> Result<NewSubscription, Refusal> {
    let sent = request.subscription.unwrap_or_default();
    let mut faults = Faults::new();
    let new = described(ways, "subscription", sent, &mut faults);
    refuse(faults)?;
    Filter::check(store, new.filter.clone()).await?;
    let place = match request.start {
        None => Place::Latest,
        Some(create::Start::AfterCursor(cursor)) => Place::After(cursor),
        Some(create::Start::Earliest(_)) => Place::Earliest,
        Some(create::Start::Latest(_)) => Place::Latest,
        Some(create::Start::AtTime(time)) => Place::Time(time),
    };
    Ok(NewSubscription { place: place.find(store).await?, ..new })
}

/// What describes a subscription, with its defaults, at the end of the log. All but the names of its filter is
/// checked.
pub(crate) fn described(
    ways: &Ways,
    path: &str,
    sent: Subscription,
    faults: &mut Faults,
) -> NewSubscription {
    let at = |field: &str| format!("{path}.{field}");
    named(&at("name"), &sent.name, faults);
    ranged(&at("partitions"), sent.partitions, PARTITIONS_MAX, faults);
    ranged(&at("max_attempts"), sent.max_attempts, ATTEMPTS_MAX, faults);
    let ack_deadline = deadline(&at("ack_deadline"), sent.ack_deadline.as_ref(), faults);
    let filter = sent.filter.unwrap_or_default();
    let is_scoped = !sent.namespace.is_empty() || !sent.definition_name.is_empty();
    if is_scoped {
        named(&at("namespace"), &sent.namespace, faults);
        named(&at("definition_name"), &sent.definition_name, faults);
    }
    let delivery = sent.delivery.map(|delivery| ways.check(&at("delivery"), delivery, faults));
    let unfit = unfit(&filter, is_scoped, delivery.as_ref(), sent.partitions, sent.unordered);
    faults.extend(unfit.into_iter().map(|(field, what)| (at(field), what)));
    if delivery.is_none() && !sent.config.is_empty() {
        faults.push((at("config"), "only a delivery hands one on".into()));
    }
    configured(&at("config"), &sent.config, faults);
    let or = |n: i32, default: i32| if n == 0 { default } else { n };
    NewSubscription {
        name: sent.name,
        filter,
        ordered: !sent.unordered,
        max_attempts: or(sent.max_attempts, ATTEMPTS_DEFAULT),
        ack_deadline: ack_deadline.unwrap_or(DEADLINE_DEFAULT),
        partitions: or(sent.partitions, 1),
        delivery,
        config: sent.config,
        namespace: sent.namespace,
        definition: sent.definition_name,
        disabled: sent.disabled,
        place: 0,
    }
}

/// What of a subscription does not go together.
fn unfit(
    filter: &EventFilter,
    is_scoped: bool,
    delivery: Option<&Delivery>,
    partitions: i32,
    unordered: bool,
) -> Vec<(&'static str, String)> {
    let scoping = || "is of its definition: leave it out".to_owned();
    let order = |what| format!("must be {what}: an alert counts in the order of the log");
    let is_alert = matches!(delivery, Some(Delivery { kind: Some(Kind::Alert(_)) }));
    let all = [
        ("filter.namespaces", is_scoped && !filter.namespaces.is_empty(), scoping()),
        ("filter.definition_names", is_scoped && !filter.definition_names.is_empty(), scoping()),
        ("partitions", is_alert && partitions > 1, order("1")),
        ("unordered", is_alert && unordered, order("false")),
        ("filter.names", is_alert && filter.names.is_empty(), "an alert needs them".to_owned()),
    ];
    all.into_iter().filter(|of| of.1).map(|(field, _, what)| (field, what)).collect()
}

fn configured(path: &str, config: &str, faults: &mut Faults) {
    if !config.is_empty()
        && let Err(fault) = json::check_object(config, CONFIG_BYTES_MAX)
    {
        faults.push((path.to_owned(), fault.to_string()));
    }
}

/// Checks a change.
pub(crate) async fn update(
    store: &Store,
    ways: &Ways,
    request: UpdateSubscriptionRequest,
) -> Result<SubscriptionChange, Refusal> {
    let mut faults = Faults::new();
    ranged("partitions", request.partitions, PARTITIONS_MAX, &mut faults);
    ranged("max_attempts", request.max_attempts, ATTEMPTS_MAX, &mut faults);
    let ack_deadline = deadline("ack_deadline", request.ack_deadline.as_ref(), &mut faults);
    let delivery = request.delivery.map(|delivery| ways.check("delivery", delivery, &mut faults));
    configured("config", request.config.as_deref().unwrap_or_default(), &mut faults);
    refuse(faults)?;
    let name = &request.name;
    let is = find(store, name).await?;
    let unfit = unfit(
        request.filter.as_ref().unwrap_or(&is.filter),
        !is.definition.is_empty(),
        delivery.as_ref().or(is.delivery.as_ref()),
        if request.partitions == 0 { is.partitions } else { request.partitions },
        !is.ordered,
    );
    refuse(unfit.into_iter().map(|(field, what)| (field.to_owned(), what)).collect())?;
    if let Some(filter) = &request.filter {
        Filter::check(store, filter.clone()).await?;
    }
    let place = request.seek.map(|seek| match seek {
        update::Seek::AfterCursor(cursor) => Place::After(cursor),
        update::Seek::Earliest(_) => Place::Earliest,
        update::Seek::Latest(_) => Place::Latest,
        update::Seek::AtTime(time) => Place::Time(time),
    });
    let place = match place {
        Some(place) => Some(place.find(store).await?),
        None => None,
    };
    let given = |n: i32| (n != 0).then_some(n);
    Ok(SubscriptionChange {
        paused: request.paused,
        filter: request.filter,
        max_attempts: given(request.max_attempts),
        ack_deadline,
        partitions: given(request.partitions),
        place,
        delivery,
        config: request.config,
        disabled: request.disabled,
    })
}

/// Checks an ack.
pub(crate) fn ack(request: &AckEventsRequest) -> Result<(), Refusal> {
    let mut faults = Faults::new();
    if request.up_to_position < 0 {
        faults.push(("up_to_position".into(), "must be a position, or 0".into()));
    }
    positions("retried_positions", &request.retried_positions, &mut faults);
    refuse(faults)
}

/// Checks a nack; when the event comes again, if it says so.
pub(crate) fn nack(request: &NackEventsRequest) -> Result<Option<Duration>, Refusal> {
    let mut faults = Faults::new();
    if request.position <= 0 {
        faults.push(("position".into(), "must be a position".into()));
    }
    ranged("attempt", request.attempt, i32::MAX, &mut faults);
    if request.reason.len() > REASON_BYTES_MAX || request.reason.contains('\0') {
        let what = format!("at most {REASON_BYTES_MAX} bytes, without NUL");
        faults.push(("reason".into(), what));
    }
    let wait = request.retry_after.as_ref().map(time::duration);
    if wait.is_some_and(|wait| wait.is_none_or(|wait| wait > RETRY_AFTER_MAX)) {
        faults.push(("retry_after".into(), "must be from 0 to 24 h".into()));
    }
    refuse(faults)?;
    Ok(wait.flatten())
}

/// Checks positions of parked events.
pub(crate) fn replay(sent: &[i64]) -> Result<(), Refusal> {
    let mut faults = Faults::new();
    positions("positions", sent, &mut faults);
    refuse(faults)
}

/// The size of a page.
pub(crate) fn page_size(sent: i32) -> Result<i32, Refusal> {
    page::size(sent, PAGE_MAX).map_err(|what| Refusal::field("page_size", what))
}

/// A place in the log, as it is asked for.
enum Place {
    After(String),
    Earliest,
    Latest,
    Time(Timestamp),
}

impl Place {
    async fn find(self, store: &Store) -> Result<i64, Refusal> {
        match self {
            Self::Earliest => Ok(store.earliest().await?),
            Self::Latest => Ok(store.head().await?),
            Self::After(cursor) => {
                place::after_cursor(store, store.log_epoch().await?, "after_cursor", &cursor).await
            }
            Self::Time(time) => place::at_time(store, "at_time", &time).await,
        }
    }
}

fn refuse(faults: Faults) -> Result<(), Refusal> {
    if faults.is_empty() { Ok(()) } else { Err(Refusal::fields(faults)) }
}

fn named(path: &str, name: &str, faults: &mut Faults) {
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    if !is_name {
        faults.push((path.into(), format!("must be {NAME_RULE}")));
    }
}

/// A number from 1 on, or 0: not given.
fn ranged(path: &str, n: i32, max: i32, faults: &mut Faults) {
    if !(0..=max).contains(&n) {
        faults.push((path.into(), format!("must be from 1 to {max}")));
    }
}

fn positions(path: &str, sent: &[i64], faults: &mut Faults) {
    if sent.len() > POSITIONS_MAX {
        faults.push((path.into(), format!("at most {POSITIONS_MAX} are allowed")));
    }
}

fn deadline(
    path: &str,
    sent: Option<&prost_types::Duration>,
    faults: &mut Faults,
) -> Option<Duration> {
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
    let given = sent.map(time::duration);
    if given.is_some_and(|given| given.is_none_or(|given| !allowed.contains(&given))) {
        faults.push((path.into(), "must be from 1 s to 1 h".into()));
    }
    given.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(refusal: Refusal) -> Vec<String> {
        refusal.violations.into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn every_fault_of_a_start_of_a_subscription_is_named() {
        let mut faults = Faults::new();
        let start = SubscriptionStart {
            name: "ö".into(),
            reader_id: "x".repeat(65),
            partitions: vec![0, 64],
            partitions_max: 65,
        };
        check_start(&start, &mut faults);
        let paths: Vec<_> = faults.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            ["name", "reader_id", "partitions", "partitions_max"]
                .map(|path| format!("start.subscription.{path}"))
        );
        let mut faults = Faults::new();
        let start = SubscriptionStart { name: "a".into(), reader_id: "b".into(), ..start };
        check_start(
            &SubscriptionStart { partitions: vec![63], partitions_max: 0, ..start },
            &mut faults,
        );
        assert_eq!(faults, []);
    }

    #[test]
    fn every_fault_of_an_ack_and_a_nack_is_named() {
        let request = AckEventsRequest {
            up_to_position: -1,
            retried_positions: vec![1; 1_001],
            ..AckEventsRequest::default()
        };
        assert_eq!(paths(ack(&request).unwrap_err()), ["up_to_position", "retried_positions"]);
        let request = NackEventsRequest {
            attempt: -1,
            reason: "x".repeat(1_025),
            retry_after: Some(prost_types::Duration { seconds: 86_401, nanos: 0 }),
            ..NackEventsRequest::default()
        };
        let wanted = ["position", "attempt", "reason", "retry_after"];
        assert_eq!(paths(nack(&request).unwrap_err()), wanted);
        let request = NackEventsRequest { position: 1, ..NackEventsRequest::default() };
        assert_eq!(nack(&request), Ok(None));
        assert!(replay(&[1; 1_001]).is_err() && replay(&[]).is_ok());
        assert!(page_size(1_001).is_err() && page_size(-1).is_err());
    }
}
