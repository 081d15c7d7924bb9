//! Custom events over real processes: types are registered, events published, and read.

use std::sync::Arc;

use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, Start, StepContext, Subscription, v1};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{Scrape, World, check, until};
use tokio::sync::Notify;
use v1::ErrorReason;

use super::cli::stepwell;

/// The definition that the guide begins with.
const GUIDE: &str = include_str!("../../docs/custom-events.md");

/// The blocks of the guide in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let begin = format!("```{language}\n");
    GUIDE.split(begin.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

fn spec(name: &str, version: i32, schema: &Value) -> v1::EventTypeSpec {
    let schema = schema.to_string();
    v1::EventTypeSpec { name: name.into(), version, schema, ..v1::EventTypeSpec::default() }
}

fn publication(name: &str, version: i32, data: &Value) -> v1::Publication {
    v1::Publication { name: name.into(), version, data: data.to_string() }
}

async fn register(world: &World, spec: v1::EventTypeSpec) -> Result<bool, stepwell_client::Error> {
    let request = v1::RegisterEventTypeRequest { namespace: "shop".into(), event_type: Some(spec) };
    Ok(world.client.register_event_type(request).await?.already_existed)
}

/// Names and versions of the custom events of a feed, up to this name.
async fn custom(feed: &mut stepwell_client::EventStream, last: &str) -> Vec<(String, i32, String)> {
    let events = until(feed, |event| event.name == last).await;
    let custom = events.into_iter().filter_map(|event| match event.detail {
        Some(v1::event::Detail::CustomEvent(custom)) => {
            Some((event.name, custom.version, custom.data))
        }
        _ => None,
    });
    custom.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_publishes_while_it_runs_and_with_its_outcome_as_the_guide_says() {
    let world = World::start().await;
    let definition = blocks("yaml")[0];
    world.define(definition).await;
    let mut all = world.feed(Start::Latest).await;
    let wanted = Subscription::new().names(["payment.*", "task.completed"]);
    let mut some = world.client.subscribe(wanted.clone()).await.unwrap();
    let mut bare = world.client.subscribe(wanted.metadata_only()).await.unwrap();
    let executor = Executor::new(&world.client, "e").namespace("shop");
    let executor = executor.handler("process_payment", async |step: StepContext| {
        step.publish("payment.authorised", &json!({"order_id": 17})).await?;
        step.publish_at_end("payment.captured", &json!({"order_id": 17, "cents": 4200}))?;
        Ok::<_, HandlerError>(json!({"paid": true}))
    });
    let running = world.run(executor);
    let task = world.client.task("checkout").namespace("shop").create().await.unwrap();
    world.ended(&task.task_id).await;

    let events = until(&mut all, |event| event.name == "task.completed").await;
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    let order = [
        "task.initialize_requested",
        "step.execution_requested",
        "task.start_requested",
        "payment.authorised",
        "payment.captured",
        "step.completed",
        "task.completed",
    ];
    let sorted = |names: &[&str]| -> Vec<String> {
        let mut names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        names[1..3].sort();
        names
    };
    assert_eq!(sorted(&names), sorted(&order));
    let captured = &events[4];
    assert_eq!((captured.step_name.as_str(), captured.attempt), ("process_payment", 1));
    assert_eq!(
        (captured.from_state(), captured.to_state()),
        (v1::State::InProgress, v1::State::InProgress)
    );
    assert_eq!(
        (captured.namespace.as_str(), captured.task_id.as_str()),
        ("shop", task.task_id.as_str())
    );
    let is = [
        ("payment.authorised".to_owned(), 1, r#"{"order_id":17}"#.to_owned()),
        ("payment.captured".to_owned(), 1, r#"{"order_id":17,"cents":4200}"#.to_owned()),
    ];
    assert_eq!(custom(&mut some, "task.completed").await, is);
    let bare = until(&mut bare, |event| event.name == "task.completed").await;
    let omitted = bare.iter().filter(|event| matches!(&event.detail,
        Some(v1::event::Detail::CustomEvent(custom)) if custom.data_omitted && custom.data.is_empty()));
    assert_eq!((omitted.count(), bare.len()), (2, 3));
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_event_fails_its_attempt_for_good_and_says_which_field_it_is() {
    let world = World::start().await;
    let schema = json!({"properties": {"total": {"type": "integer"}}, "required": ["total"]});
    register(&world, spec("order.paid", 1, &schema)).await.unwrap();
    world
        .define("{namespace: shop, name: pay, steps: [{name: data}, {name: unknown}, {name: strange}, {name: fails}, {name: now}]}")
        .await;
    let executor = Executor::new(&world.client, "e").namespace("shop");
    let executor = executor.handler("data", async |step: StepContext| {
        step.publish_at_end("order.paid", &json!({"total": 1}))?;
        step.publish_at_end("order.paid", &json!({"total": "much"}))?;
        Ok::<_, HandlerError>(1)
    });
    let executor = executor.handler("unknown", async |step: StepContext| {
        step.publish_at_end("order.payed", &json!({"total": 1}))?;
        Ok::<_, HandlerError>(1)
    });
    // Nothing can be called so: its stream goes on.
    let executor = executor.handler("strange", async |step: StepContext| {
        step.publish_at_end("order.\0", &json!({"total": 1}))?;
        Ok::<_, HandlerError>(1)
    });
    let executor = executor.handler("fails", async |step: StepContext| {
        step.publish_at_end("order.paid", &json!({}))?;
        Err::<i32, _>(HandlerError::new("CardDeclined", "no cover"))
    });
    // During an attempt the handler is told, and goes on.
    let executor = executor.handler("now", async |step: StepContext| {
        let refused = step.publish("order.paid", &json!({"total": []})).await.unwrap_err();
        assert!(refused.to_string().contains("events[0].data.total"), "{refused}");
        step.publish("order.paid", &json!({"total": 2})).await?;
        Ok::<_, HandlerError>(2)
    });
    let running = world.run(executor);
    let task = world.client.task("pay").namespace("shop").create().await.unwrap();
    let task = world.ended(&task.task_id).await;
    let said = |name: &str| {
        let step = task.steps.iter().find(|step| step.name == name).unwrap();
        let error = step.last_error.clone().unwrap();
        assert_eq!((error.error_class.as_str(), step.attempt), ("InvalidEvent", 1), "{name}");
        error.message
    };
    assert!(said("data").contains("events[1].data.total"), "{}", said("data"));
    assert!(said("unknown").contains("did you mean `order.paid`?"), "{}", said("unknown"));
    assert!(said("strange").contains("no type of custom events"), "{}", said("strange"));
    assert!(said("fails").contains("CardDeclined: no cover"), "{}", said("fails"));
    assert_eq!(task.steps.iter().find(|s| s.name == "now").unwrap().state(), v1::State::Complete);
    let feed = Subscription::new().names(["order.paid", "task.failed"]).from(Start::Earliest);
    let mut feed = world.client.subscribe(feed).await.unwrap();
    let published = custom(&mut feed, "task.failed").await;
    assert_eq!(published, [("order.paid".to_owned(), 1, r#"{"total":2}"#.to_owned())]);
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_while_the_node_is_gone_is_there_once_when_it_is_back() {
    let mut world = World::hasty(Nodes { task: 1, step: 1, event: 1 }).await;
    register(&world, spec("order.paid", 1, &json!({}))).await.unwrap();
    world.define("{namespace: shop, name: pay, steps: [{name: a}]}").await;
    let (started, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tells, waits) = (Arc::clone(&started), Arc::clone(&go_on));
    let executor = Executor::new(&world.client, "e").namespace("shop");
    let executor = executor.handler("a", move |step: StepContext| {
        let (tells, waits) = (Arc::clone(&tells), Arc::clone(&waits));
        async move {
            step.publish("order.paid", &json!({"no": 1})).await?;
            tells.notify_one();
            waits.notified().await;
            step.publish("order.paid", &json!({"no": 2})).await?;
            Ok::<_, HandlerError>(step.attempt())
        }
    });
    let running = world.run(executor);
    let task = world.client.task("pay").namespace("shop").create().await.unwrap();
    started.notified().await;
    world.suite.process(Kind::Step, 0).unwrap().kill(Signal::SIGKILL).await.unwrap();
    go_on.notify_one();
    world.suite.restart(Kind::Step, 0).await.unwrap();
    let task = world.ended(&task.task_id).await;
    assert_eq!((task.state(), task.steps[0].attempt), (v1::State::Complete, 1));
    let feed = Subscription::new().names(["order.*", "task.completed"]).from(Start::Earliest);
    let mut feed = world.client.subscribe(feed).await.unwrap();
    let data: Vec<String> =
        custom(&mut feed, "task.completed").await.into_iter().map(|(_, _, data)| data).collect();
    assert_eq!(data, [r#"{"no":1}"#, r#"{"no":2}"#]);
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_is_registered_once_changed_in_place_or_under_a_higher_version_and_found() {
    let world = World::start().await;
    let v1_schema = json!({"properties": {"total": {"type": "integer"}}});
    assert!(!register(&world, spec("order.paid", 0, &v1_schema)).await.unwrap());
    assert!(register(&world, spec("order.paid", 1, &v1_schema)).await.unwrap(), "as it was");
    let wider = json!({"properties": {"total": {"type": "integer"}, "at": {"type": "string"}}});
    assert!(!register(&world, spec("order.paid", 1, &wider)).await.unwrap());
    let other = json!({"properties": {"total": {"type": "string"}}});
    let before = world.rows().await;
    for (wrong, reason, field) in [
        (spec("order.paid", 1, &other), ErrorReason::EventTypeChanged, "schema.properties.total"),
        (spec("paid", 1, &json!({})), ErrorReason::InvalidRequest, "event_type.name"),
        (spec("step.paid", 1, &json!({})), ErrorReason::InvalidRequest, "event_type.name"),
        (
            spec("order.paid", 2, &json!({"type": 3})),
            ErrorReason::InvalidRequest,
            "event_type.schema.type",
        ),
    ] {
        let refused = register(&world, wrong).await.unwrap_err();
        assert_eq!(refused.reason(), Some(reason), "{refused}");
        assert!(refused.to_string().contains(field), "{refused}");
    }
    assert_eq!(world.rows().await, before);
    register(&world, spec("order.paid", 3, &other)).await.unwrap();
    let lower = register(&world, spec("order.paid", 2, &other)).await.unwrap_err();
    assert_eq!(lower.reason(), Some(ErrorReason::EventTypeChanged));

    // A definition brings its types, all or nothing.
    let declares = |version: &str, schema: &str| {
        format!(
            "{{namespace: shop, name: pay, version: {version}, steps: [{{name: a, publishes: [\
             {{name: order.sent, schema: {schema}, example: {{n: 1}}}}]}}]}}"
        )
    };
    world.define(&declares("1.0.0", "{properties: {n: {type: integer}}}")).await;
    let narrower = declares("1.0.1", "{properties: {n: {type: integer}}, required: [n]}");
    let refused = world.client.register_yaml(&narrower).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::EventTypeChanged), "{refused}");
    let unlike = declares("1.0.1", "{properties: {n: {type: string}}}");
    let refused = world.client.register_yaml(&unlike).await.unwrap_err();
    assert!(refused.to_string().contains("steps[0].publishes[0].example.n at 1:"), "{refused}");
    assert_eq!(world.rows().await, before + 3, "a definition and two types");

    let get = |name: &str, version| v1::GetEventTypeRequest {
        name: name.into(),
        namespace: "shop".into(),
        version,
    };
    let latest = world.client.get_event_type(get("order.paid", 0)).await.unwrap();
    let latest = latest.event_type.unwrap();
    assert_eq!((latest.version, latest.category()), (3, v1::EventCategory::Custom));
    let first = world.client.get_event_type(get("order.paid", 1)).await.unwrap();
    assert_eq!(first.event_type.unwrap().schema, wider.to_string());
    let refused = world.client.get_event_type(get("order.payed", 0)).await.unwrap_err();
    assert!(refused.to_string().contains("did you mean \"order.paid\"?"), "{refused}");
    let request = v1::ListEventTypesRequest { namespace: "shop".into(), ..Default::default() };
    let page = world.client.list_event_types(request).await.unwrap();
    let listed: Vec<_> = page.event_types.iter().map(|t| (t.name.as_str(), t.version)).collect();
    assert_eq!(listed, [("order.paid", 1), ("order.paid", 3), ("order.sent", 1)]);
    for (names, meant) in [("order.payed", Some("order.paid")), ("orders.*", None)] {
        let wanted = Subscription::new().names([names]);
        let refused = world.client.subscribe(wanted).await.err().unwrap();
        assert_eq!(refused.reason(), Some(ErrorReason::EventUnknown), "{refused}");
        let says = meant.is_none_or(|meant| refused.to_string().contains(meant));
        assert!(says, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_about_a_task_are_published_by_whoever_knows_it_once_for_a_request() {
    let world = World::start().await;
    let schema =
        json!({"properties": {"total": {"type": "integer"}}, "additionalProperties": false});
    register(&world, spec("order.paid", 1, &schema)).await.unwrap();
    world.define("{namespace: shop, name: pay, steps: [{name: a}]}").await;
    let task = world.client.task("pay").namespace("shop").create().await.unwrap();
    let request = v1::PublishEventsRequest {
        task_id: task.task_id.clone(),
        step_name: "a".into(),
        events: vec![publication("order.paid", 0, &json!({"total": 5}))],
        request_id: "payment-17".into(),
    };
    let first = world.client.publish_events(request.clone()).await.unwrap();
    assert!(!first.already_published && first.first_position > 0);
    let again = world.client.publish_events(request.clone()).await.unwrap();
    assert_eq!((again.already_published, again.first_position), (true, first.first_position));
    let before = world.rows().await;
    let with = |change: fn(&mut v1::PublishEventsRequest)| {
        let mut request = v1::PublishEventsRequest { request_id: String::new(), ..request.clone() };
        change(&mut request);
        request
    };
    for (wrong, reason) in [
        (with(|r| r.request_id = "payment 17".into()), ErrorReason::InvalidRequest),
        (with(|r| r.task_id = "x".into()), ErrorReason::InvalidRequest),
        (
            with(|r| r.task_id = "00000000-0000-0000-0000-000000000000".into()),
            ErrorReason::TaskNotFound,
        ),
        (with(|r| r.step_name = "b".into()), ErrorReason::InvalidRequest),
        (with(|r| r.events.clear()), ErrorReason::InvalidRequest),
        (with(|r| r.events[0].name = "order.sent".into()), ErrorReason::EventTypeUnknown),
        (with(|r| r.events[0].version = 9), ErrorReason::EventTypeUnknown),
        (with(|r| r.events[0].data = "{\"totl\": 5}".into()), ErrorReason::EventInvalid),
        (with(|r| r.events[0].data = "{".into()), ErrorReason::InvalidRequest),
    ] {
        let refused = world.client.publish_events(wrong.clone()).await.unwrap_err();
        assert_eq!(refused.reason(), Some(reason), "{wrong:?}: {refused}");
    }
    let mut other = request.clone();
    other.events[0].data = "{}".into();
    let refused = world.client.publish_events(other).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::RequestIdReused));
    assert_eq!(world.rows().await, before);

    // A change that lets in more counts at once, though this service knew the type as it was.
    let wider = json!({
        "properties": {"total": {"type": "integer"}, "by": {"type": "string"}},
        "additionalProperties": false,
    });
    register(&world, spec("order.paid", 1, &wider)).await.unwrap();
    let data = json!({"total": 6, "by": "card"});
    let (code, out, err) =
        stepwell(&world, &["event", "publish", &task.task_id, "order.paid", &data.to_string()], "");
    assert!(code == 0 && out.starts_with("published at position "), "{out}{err}");
    let feed = Subscription::new().names(["order.paid"]).from(Start::Earliest);
    let mut feed = world.client.subscribe(feed).await.unwrap();
    let events = until(&mut feed, |event| event.step_id.is_empty()).await;
    assert_eq!((events.len(), events[0].position), (2, first.first_position));
    assert_eq!((events[0].step_name.as_str(), events[1].step_name.as_str()), ("a", ""));
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_are_registered_and_shown_on_the_command_line() {
    let world = World::start().await;
    let register = ["event", "register", "order.paid", "-n", "shop", "--schema", "-"];
    let more = ["--description", "An order was paid.", "--example", r#"{"total": 5}"#];
    let schema = r#"{"properties": {"total": {"type": "integer"}}}"#;
    let (code, out, err) = stepwell(&world, &[&register[..], &more].concat(), schema);
    assert_eq!((code, out.trim()), (0, "shop/order.paid version 1 registered"), "{err}");
    let (code, out, _) = stepwell(&world, &[&register[..], &more].concat(), schema);
    assert!(code == 0 && out.contains("unchanged"), "{out}");
    let narrower = r#"{"properties": {"total": {"type": "string"}}}"#;
    let (code, _, err) = stepwell(&world, &register, narrower);
    assert!(code != 0 && err.contains("schema.properties.total"), "{err}");
    let (code, out, _) = stepwell(&world, &["event", "types", "--category", "custom"], "");
    assert!(code == 0 && out.contains("order.paid") && out.contains("An order was paid"), "{out}");
    let (code, out, _) = stepwell(&world, &["event", "type", "order.paid", "-n", "shop"], "");
    assert!(code == 0 && out.contains("custom, of shop") && out.contains("\"total\": 5"), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_publishes_an_event_has_a_counter_of_its_name() {
    let world = World::start().await;
    world.define("{name: d, namespace: shop, steps: [{name: a}]}").await;
    for name in ["cart.filled", "cart.emptied"] {
        register(&world, spec(name, 1, &json!({}))).await.unwrap();
    }
    let yaml = "subscriptions: [{name: carts, events: ['cart.*'], deliver: {metrics: {}}}]";
    let text = v1::SubscriptionText { source: "test".into(), yaml: yaml.into() };
    let request = v1::ApplySubscriptionsRequest { texts: vec![text], prune: false };
    world.client.apply_subscriptions(request).await.unwrap();
    let task = world.client.task("d").namespace("shop").create().await.unwrap();
    let events = ["cart.filled", "cart.emptied", "cart.filled"];
    let request = v1::PublishEventsRequest {
        task_id: task.task_id.clone(),
        events: events.map(|name| publication(name, 1, &json!({}))).into(),
        ..v1::PublishEventsRequest::default()
    };
    world.client.publish_events(request).await.unwrap();
    let counted = Scrape::until(&world.suite.addresses().event[0], |scrape| {
        scrape.sum("stepwell_subscription_events_total", &[("subscription", "carts")]) == 3.0
    })
    .await;
    for (event, n) in [("cart.filled", 2.0), ("cart.emptied", 1.0)] {
        let of = [("event", event), ("definition", "d")];
        assert_eq!(counted.sum("stepwell_subscription_events_total", &of), n, "{event}");
    }
}
