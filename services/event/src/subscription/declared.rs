//! Subscriptions as people write them, alone or inside a definition → what is stored. Faults carry their file,
//! line and column.

use std::collections::HashMap;

use stepwell_proto::{
    refusal::Refusal,
    v1::{
        AlertDelivery, AppliedSubscription, ApplyOutcome, Delivery, ErrorReason, EventFilter,
        LogDelivery, MetricsDelivery, Subscription, SubscriptionText, WebhookDelivery,
        delivery::Kind,
    },
};
use stepwell_rule::{
    DURATION_MAX, Fault, NAMESPACE_DEFAULT, bounded, is_event_name, quoted, suggestion,
};
use stepwell_store::{Applied, NewSubscription, Outcome, PARTITIONS_MAX, SUBSCRIPTIONS_MAX, Store};
use stepwell_yaml::{Fields, Node, Reader, START, Value, told};

use super::request::{ATTEMPTS_MAX, described};
use crate::{courier::Ways, filter::Filter};

/// Most bytes of a text: 1 MiB.
const BYTES_MAX: usize = 1 << 20;
const SOURCE_BYTES_MAX: usize = 256;

const ALONE: [&str; 1] = ["subscriptions"];
/// What a definition says that counts here.
const DEFINITION: [&str; 3] = ["namespace", "name", "subscriptions"];
const SUBSCRIPTION: [&str; 15] = [
    "name",
    "events",
    "namespaces",
    "definitions",
    "steps",
    "tags",
    "only_final_failures",
    "deliver",
    "config",
    "enabled",
    "partitions",
    "unordered",
    "max_attempts",
    "ack_deadline",
    "start",
];
const WAYS: [&str; 4] = ["webhook", "log", "metrics", "alert"];
const ALERT: [&str; 2] = ["rule", "webhook"];
const WEBHOOK: [&str; 3] = ["url", "secret_env", "timeout"];
const STARTS: [&str; 2] = ["latest", "earliest"];

/// A subscription that a text declares.
#[derive(Debug)]
struct Declared {
    new: NewSubscription,
    /// It starts with the oldest event.
    earliest: bool,
    /// Where it stands, for people.
    stands: String,
}

/// Applies what texts declare, all of it or nothing; what became of each, and who was pruned.
pub(crate) async fn apply(
    store: &Store,
    ways: &Ways,
    texts: &[SubscriptionText],
    prune: bool,
) -> Result<Vec<AppliedSubscription>, Refusal> {
    let known = store.event_type_names(&[]).await?;
    let mut declared = read(ways, &known, texts)?;
    let (mut latest, mut earliest) = (None, None);
    for of in &mut declared {
        let known = if of.earliest { &mut earliest } else { &mut latest };
        of.new.place = match *known {
            Some(place) => place,
            None if of.earliest => store.earliest().await?,
            None => store.head().await?,
        };
        *known = Some(of.new.place);
    }
    let new: Vec<NewSubscription> = declared.iter().map(|of| of.new.clone()).collect();
    let (outcomes, pruned) = match store.apply_subscriptions(&new, prune).await? {
        Applied::Done(outcomes, pruned) => (outcomes, pruned),
        Applied::Other(i) => {
            let what = "another subscription has the name: one that was not declared, or is of \
                        another definition";
            return Err(refused(&declared[i], ErrorReason::SubscriptionExists, what));
        }
        Applied::Parked(i) => {
            let what = "partitions are changed only when nothing is parked or retried";
            return Err(refused(&declared[i], ErrorReason::SubscriptionNotDrained, what));
        }
        Applied::TooMany => {
            let what = format!("there would be more than {SUBSCRIPTIONS_MAX} subscriptions");
            return Err(Refusal::new(ErrorReason::Overloaded, what));
        }
    };
    let applied = |name: &str, outcome: ApplyOutcome| {
        if outcome != ApplyOutcome::Unchanged {
            tracing::info!(name, outcome = outcome.as_str_name(), "subscription applied");
        }
        AppliedSubscription { name: name.to_owned(), outcome: outcome.into() }
    };
    let done = new.iter().zip(outcomes).map(|(new, outcome)| {
        let outcome = match outcome {
            Outcome::Created => ApplyOutcome::Created,
            Outcome::Changed => ApplyOutcome::Changed,
            Outcome::Unchanged => ApplyOutcome::Unchanged,
        };
        applied(&new.name, outcome)
    });
    let pruned = pruned.iter().map(|name| applied(name, ApplyOutcome::Pruned));
    Ok(done.chain(pruned).collect())
}

fn refused(of: &Declared, reason: ErrorReason, what: &str) -> Refusal {
    let fault = (of.stands.clone(), what.to_owned());
    Refusal::new(reason, format!("{}: {what}", of.stands))
        .with("name", &of.new.name)
        .with_violations(vec![fault])
}

/// Checks a text without a service: what is registered there, and to which hosts it sends, is not known here. So every
/// name that could be of a custom event is taken for one.
pub(crate) fn check(
    ways: &Ways,
    text: &SubscriptionText,
    mut known: Vec<String>,
) -> Result<(), Refusal> {
    if let Ok(root) = stepwell_yaml::parse(&text.yaml) {
        let names = events(&root).into_iter().map(|name| name.replace('*', "any"));
        known.extend(names.filter(|name| is_event_name(name)));
    }
    read(ways, &known, std::slice::from_ref(text)).map(drop).map_err(|mut refusal| {
        for (path, _) in &mut refusal.violations {
            *path = path.strip_prefix("texts[0]: ").unwrap_or(path).to_owned();
        }
        refusal
    })
}

/// The names of events that stand in a text.
fn events(root: &Node) -> Vec<String> {
    let of = |node: &Node, name: &str| -> Vec<Node> {
        let Value::Map(entries) = &node.value else { return Vec::new() };
        let found = entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| &node.value);
        let Some(Value::List(items)) = found else { return Vec::new() };
        items.clone()
    };
    let subscriptions = of(root, "subscriptions");
    let names = subscriptions.iter().flat_map(|subscription| of(subscription, "events"));
    let text = |node: Node| match node.value {
        Value::Scalar { text, .. } => Some(text),
        _ => None,
    };
    names.filter_map(text).collect()
}

/// Reads all texts; all their faults. `known`: the custom events that there are.
fn read(
    ways: &Ways,
    known: &[String],
    texts: &[SubscriptionText],
) -> Result<Vec<Declared>, Refusal> {
    let most = usize::try_from(SUBSCRIPTIONS_MAX).unwrap_or(usize::MAX);
    if texts.len() > most {
        return Err(Refusal::field("texts", format!("at most {most} are allowed")));
    }
    let (mut all, mut faults): (Vec<Declared>, Vec<Fault>) = Default::default();
    let mut names = HashMap::new();
    for (i, text) in texts.iter().enumerate() {
        if text.source.len() > SOURCE_BYTES_MAX {
            let what = format!("at most {SOURCE_BYTES_MAX} bytes");
            faults.push((format!("texts[{i}].source"), what));
            continue;
        }
        let source =
            if text.source.is_empty() { format!("texts[{i}]") } else { text.source.clone() };
        let mut reader = Reader::default();
        let declared = read_one(ways, known, &mut reader, &text.yaml);
        let (found, places) = reader.done();
        faults.extend(told(found).into_iter().map(|(at, what)| (format!("{source}: {at}"), what)));
        for (path, new, earliest) in declared {
            let at = places.around(&format!("{path}.name")).unwrap_or(START);
            let stands = format!("{source}: {path} at {at}");
            if let Some(first) = names.insert(new.name.clone(), stands.clone()) {
                let what = format!("is called {} as well as {first}", quoted(&new.name));
                faults.push((stands.clone(), what));
            }
            all.push(Declared { new, earliest, stands });
        }
    }
    if all.len() > most {
        faults.push(("texts".into(), format!("at most {most} subscriptions are allowed")));
    }
    if faults.is_empty() { Ok(all) } else { Err(Refusal::fields(bounded(faults))) }
}

/// The subscriptions of one text: the path of each, what it is, and whether it starts with the oldest event.
fn read_one(
    ways: &Ways,
    known: &[String],
    reader: &mut Reader,
    text: &str,
) -> Vec<(String, NewSubscription, bool)> {
    if text.len() > BYTES_MAX {
        let what = format!("has {} bytes; at most {BYTES_MAX} are allowed", text.len());
        reader.fault("", START, what);
        return Vec::new();
    }
    let root = match stepwell_yaml::parse(text) {
        Ok(root) => root,
        Err((at, what)) => {
            reader.fault("", at, what);
            return Vec::new();
        }
    };
    let fields = match is_definition(&root) {
        true => reader.some_fields("", &root, &DEFINITION),
        false => reader.fields("", &root, &ALONE),
    };
    let mut scope = (reader.text(&fields, "namespace"), reader.text(&fields, "name"));
    if scope.0.is_empty() && !scope.1.is_empty() {
        scope.0 = NAMESPACE_DEFAULT.to_owned();
    }
    if is_definition(&root) && scope.1.is_empty() {
        let what = "is missing: its subscriptions are to the events of its own tasks";
        reader.fault("name", root.at, what.to_owned());
    }
    let items = reader.items(&fields, "subscriptions");
    let read = |(path, node)| subscription(ways, known, reader, path, node, &scope);
    items.into_iter().map(read).collect()
}

/// A definition has a name.
fn is_definition(root: &Node) -> bool {
    let Value::Map(entries) = &root.value else { return false };
    entries.iter().any(|(key, _)| matches!(key.text.as_str(), "name" | "steps"))
}

fn subscription(
    ways: &Ways,
    known: &[String],
    reader: &mut Reader,
    path: String,
    node: &Node,
    scope: &(String, String),
) -> (String, NewSubscription, bool) {
    let fields = reader.fields(&path, node, &SUBSCRIPTION);
    let filter = EventFilter {
        names: reader.texts(&fields, "events"),
        namespaces: reader.texts(&fields, "namespaces"),
        definition_names: reader.texts(&fields, "definitions"),
        step_names: reader.texts(&fields, "steps"),
        tags: reader.texts(&fields, "tags"),
        only_final_failures: reader.truth(&fields, "only_final_failures"),
        ..EventFilter::default()
    };
    let sent = Subscription {
        name: reader.text(&fields, "name"),
        filter: Some(filter.clone()),
        partitions: reader.whole(&fields, "partitions", 1..=PARTITIONS_MAX).unwrap_or_default(),
        unordered: reader.truth(&fields, "unordered"),
        max_attempts: reader.whole(&fields, "max_attempts", 1..=ATTEMPTS_MAX).unwrap_or_default(),
        ack_deadline: reader.duration(&fields, "ack_deadline", DURATION_MAX),
        delivery: delivery(reader, &fields),
        config: reader.json_object(&fields, "config"),
        namespace: scope.0.clone(),
        definition_name: scope.1.clone(),
        disabled: fields.get("enabled").is_some() && !reader.truth(&fields, "enabled"),
        ..Subscription::default()
    };
    let start = reader.text(&fields, "start");
    if !start.is_empty() && !STARTS.contains(&start.as_str()) {
        let (at, meant) = (fields.get("start"), suggestion(&start, STARTS));
        if let Some((path, node)) = at {
            reader.fault(&path, node.at, format!("must be `latest` or `earliest`{meant}"));
        }
    }
    let mut faults = Vec::new();
    let new = described(ways, &path, sent, &mut faults);
    if let Err(refusal) = Filter::among(filter, known) {
        let violations = refusal.violations.into_iter();
        faults.extend(violations.map(|(field, what)| (format!("{path}.{field}"), what)));
    }
    let faults: Vec<Fault> =
        faults.into_iter().map(|(field, what)| (written(&field), what)).collect();
    reader.add(&faults);
    (path, new, start == "earliest")
}

fn delivery(reader: &mut Reader, fields: &Fields<'_>) -> Option<Delivery> {
    let (path, node) = fields.get("deliver")?;
    let fields = reader.fields(&path, node, &WAYS);
    let sent = webhook(reader, &fields).map(Kind::Webhook);
    let alert = fields.get("alert").map(|(path, node)| {
        let fields = reader.fields(&path, node, &ALERT);
        let rule = reader.text(&fields, "rule");
        Kind::Alert(AlertDelivery { rule, webhook: webhook(reader, &fields) })
    });
    let log = fields.get("log").map(|(path, node)| {
        reader.fields(&path, node, &[]);
        Kind::Log(LogDelivery {})
    });
    let metrics = fields.get("metrics").map(|(path, node)| {
        reader.fields(&path, node, &[]);
        Kind::Metrics(MetricsDelivery {})
    });
    let mut kinds: Vec<Kind> = [sent, log, metrics, alert].into_iter().flatten().collect();
    if kinds.len() > 1 {
        reader.fault(&path, node.at, "must have one way only");
    }
    Some(Delivery { kind: kinds.pop() })
}

fn webhook(reader: &mut Reader, fields: &Fields<'_>) -> Option<WebhookDelivery> {
    let (path, node) = fields.get("webhook")?;
    let fields = reader.fields(&path, node, &WEBHOOK);
    Some(WebhookDelivery {
        url: reader.text(&fields, "url"),
        secret_env: reader.text(&fields, "secret_env"),
        timeout: reader.duration(&fields, "timeout", DURATION_MAX),
    })
}

/// A field of the contract as it is written here.
fn written(field: &str) -> String {
    let names = [
        (".filter.names", ".events"),
        (".filter.namespaces", ".namespaces"),
        (".filter.definition_names", ".definitions"),
        (".filter.step_names", ".steps"),
        (".filter.tags", ".tags"),
        (".delivery", ".deliver"),
    ];
    names.iter().fold(field.to_owned(), |field, (of, here)| field.replacen(of, here, 1))
}

#[cfg(test)]
mod tests {
    use stepwell_outbound::Hosts;

    use super::*;

    fn text(source: &str, yaml: &str) -> SubscriptionText {
        SubscriptionText { source: source.into(), yaml: yaml.into() }
    }

    fn declared(texts: &[SubscriptionText]) -> Result<Vec<Declared>, Refusal> {
        read(&Ways::new(Hosts::default()).unwrap(), &["payment.captured".to_owned()], texts)
    }

    fn faults(yaml: &str) -> Vec<String> {
        let refusal = declared(&[text("a.yaml", yaml)]).expect_err(yaml);
        assert_eq!(refusal.reason, ErrorReason::InvalidRequest);
        refusal.violations.into_iter().map(|(path, what)| format!("{path} {what}")).collect()
    }

    #[test]
    fn everything_that_can_be_declared_is_read() {
        let all = declared(&[text(
            "a.yaml",
            "subscriptions:
  - name: all
    events: [task.*, step.failed]
    namespaces: [shop]
    definitions: [fulfil_order]
    steps: [pay]
    tags: [eu]
    only_final_failures: true
    deliver: {webhook: {url: 'https://hooks.example/a', timeout: 3s}}
    config: {channel: '#ops', n: 1.10}
    enabled: false
    partitions: 4
    unordered: true
    max_attempts: 3
    start: earliest
  - {name: lines, deliver: {log: {}}}
  - {name: figures, deliver: {metrics: {}}}
  - {name: read, ack_deadline: 5s}
  - name: alerts
    events: [task.failed]
    deliver: {alert: {rule: 3_failures_per_hour, webhook: {url: 'https://hooks.example/b'}}}
",
        )])
        .unwrap();
        let new = &all[0].new;
        assert_eq!(new.filter.names, ["task.*", "step.failed"]);
        assert_eq!(
            (&*new.filter.namespaces[0], &*new.filter.definition_names[0]),
            ("shop", "fulfil_order")
        );
        assert_eq!((&*new.filter.step_names[0], &*new.filter.tags[0]), ("pay", "eu"));
        assert!(new.filter.only_final_failures && new.disabled && !new.ordered && all[0].earliest);
        assert_eq!((new.partitions, new.max_attempts), (4, 3));
        assert_eq!(new.config, r##"{"channel":"#ops","n":1.10}"##);
        let Some(Kind::Webhook(webhook)) = new.delivery.clone().unwrap().kind else {
            panic!("a webhook")
        };
        assert_eq!(webhook.timeout.unwrap().seconds, 3);
        let log = Delivery { kind: Some(Kind::Log(LogDelivery {})) };
        assert_eq!(all[1].new.delivery, Some(log));
        let metrics = Delivery { kind: Some(Kind::Metrics(MetricsDelivery {})) };
        assert_eq!(all[2].new.delivery, Some(metrics));
        let Some(Kind::Alert(alert)) = all[4].new.delivery.clone().unwrap().kind else {
            panic!("an alert")
        };
        assert_eq!(alert.rule, "3_failures_per_hour");
        assert_eq!(alert.webhook.unwrap().timeout.unwrap().seconds, 10);
        assert!(all[3].new.delivery.is_none() && !all[3].new.disabled && !all[3].earliest);
    }

    #[test]
    fn inside_a_definition_they_are_of_it_and_nothing_else_of_it_is_looked_at() {
        let yaml = "name: fulfil_order
steps: [{name: pay, retires: 3}]
subscriptions:
  - {name: alerts, events: [task.failed], deliver: {log: {}}}
";
        let all = declared(&[text("a", yaml)]).unwrap();
        assert_eq!((&*all[0].new.namespace, &*all[0].new.definition), ("default", "fulfil_order"));
        assert_eq!(declared(&[text("a", "name: plain\nsteps: []\n")]).unwrap().len(), 0);
        let of_another = "name: a\nsubscriptions:\n  - name: b\n    definitions: [c]\n";
        assert_eq!(
            faults(of_another),
            ["a.yaml: subscriptions[0].definitions at 4:18 is of its definition: leave it out"]
        );
    }

    #[test]
    fn every_fault_is_told_with_its_file_line_column_and_what_was_meant() {
        let found = faults(
            "subscriptions:
  - name: a b
    events: [task.complete, nothing.*]
    delivr: {log: {}}
  - name: b
    deliver: {webhok: {url: x}}
  - name: c
    deliver:
      webhook: {url: 'ftp://x', secret_env: PATH, timeout: 2m}
    start: latets
    max_attempts: 0
  - name: d
    config: {a: 1}
  - name: e
    partitions: 2
    deliver: {alert: {rule: 3_per_week}}
",
        );
        for wanted in [
            "a.yaml: subscriptions[0].name at 2:11 must be 1 to 64 letters",
            "a.yaml: subscriptions[0].events[0] at 3:14 no event is called \"task.complete\"; did you mean \"task.completed\"?",
            "a.yaml: subscriptions[0].delivr at 4:5 is unknown; did you mean `deliver`?",
            "a.yaml: subscriptions[1].deliver.webhok at 6:15 is unknown; did you mean `webhook`?",
            "a.yaml: subscriptions[2].deliver.webhook.url at 9:22 must be an http or https url",
            "a.yaml: subscriptions[2].deliver.webhook.secret_env at 9:45 must begin with",
            "a.yaml: subscriptions[2].deliver.webhook.timeout at 9:60 must be from 100 ms to 60 s",
            "a.yaml: subscriptions[2].start at 10:12 must be `latest` or `earliest`; did you mean `latest`?",
            "a.yaml: subscriptions[2].max_attempts at 11:19 must be a whole number from 1 to 1000",
            "a.yaml: subscriptions[3].config at 13:13 only a delivery hands one on",
            "a.yaml: subscriptions[4].partitions at 15:17 must be 1",
            "a.yaml: subscriptions[4].events at 14:5 an alert needs them",
            "a.yaml: subscriptions[4].deliver.alert.rule at 16:29 must be a number from 1 to 1000",
            "a.yaml: subscriptions[4].deliver.alert.webhook.url at 16:22 must be an http or https url",
        ] {
            assert!(found.iter().any(|fault| fault.starts_with(wanted)), "{wanted}: {found:#?}");
        }
        let both = "subscriptions: [{name: a, deliver: {log: {}, metrics: {}}}]";
        assert_eq!(
            faults(both),
            ["a.yaml: subscriptions[0].deliver at 1:36 must have one way only"]
        );
        assert_eq!(
            faults("nmae: x\nsteps: [{name: a}]\nsubscriptions: [{name: a, deliver: {log: {}}}]"),
            [
                "a.yaml: name at 1:1 is missing: its subscriptions are to the events of its own tasks"
            ]
        );
        assert_eq!(
            faults("subscription: []\n"),
            ["a.yaml: subscription at 1:1 is unknown; did you mean `subscriptions`?"]
        );
    }

    #[test]
    fn no_two_of_all_texts_have_the_same_name() {
        let one = "subscriptions: [{name: a}]";
        let refusal = declared(&[text("a.yaml", one), text("b.yaml", one)]).unwrap_err();
        assert_eq!(
            refusal.violations,
            [(
                "b.yaml: subscriptions[0] at 1:24".to_owned(),
                "is called \"a\" as well as a.yaml: subscriptions[0] at 1:24".to_owned()
            )]
        );
        let long = SubscriptionText { source: "x".repeat(257), yaml: one.into() };
        assert_eq!(declared(&[long]).unwrap_err().violations[0].0, "texts[0].source");
    }
}
