//! Declared handlers, over feeds and durable subscriptions: who is called for what, and who is in whose way.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use stepwell_client::{
    Error, EventHandler, FileCursor, HandlerError, Start, Subscriber, Subscribers, Tally, testing,
    v1::*,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::fake::{Fake, within};

/// Says which of its methods was called.
struct Says {
    events: Vec<&'static str>,
    say: mpsc::Sender<String>,
}

impl Says {
    fn of(events: &[&'static str]) -> (Self, mpsc::Receiver<String>) {
        let (say, heard) = mpsc::channel(100);
        (Self { events: events.to_vec(), say }, heard)
    }

    async fn say(&self, what: String) -> Result<(), HandlerError> {
        Ok(self.say.send(what).await?)
    }
}

impl EventHandler for Says {
    fn subscribe_to(&self) -> Vec<&str> {
        self.events.clone()
    }

    fn should_process(&self, event: &Event) -> bool {
        assert_ne!(event.namespace, "cursed");
        event.namespace != "other"
    }

    async fn handle_step_completed(
        &self,
        event: &Event,
        detail: &StepCompleted,
    ) -> Result<(), HandlerError> {
        self.say(format!("{} returned {}", event.position, detail.result)).await
    }

    async fn handle_step_failed(&self, event: &Event, _: &StepFailed) -> Result<(), HandlerError> {
        match event.attempt {
            1 => Err(HandlerError::new("Broken", "no").retry_after(Duration::from_secs(3))),
            2 => panic!("not fit for work"),
            3 => std::future::pending().await,
            _ => self.say(format!("{} failed at last", event.position)).await,
        }
    }

    async fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        self.say(format!("{} {}", event.position, event.name)).await
    }
}

fn completed(position: i64, result: &str) -> Event {
    let detail = StepCompleted { result: result.into(), ..Default::default() };
    Event { position, ..testing::event(detail) }
}

fn sample(position: i64, name: &str) -> Event {
    Event { position, ..testing::sample(name).unwrap() }
}

fn failed(position: i64, attempt: i32) -> Event {
    Event { attempt, ..sample(position, "step.failed") }
}

#[tokio::test]
async fn each_event_goes_to_the_method_named_after_it_and_the_others_to_the_fall_back() {
    let fake = Fake::start().await;
    let (says, mut heard) = Says::of(&["step.*", "task.completed"]);
    let stop = CancellationToken::new();
    let subscriber = Subscriber::new(&fake.client()).handler(says).unwrap();
    let subscriber = subscriber.handler_timeout(Duration::from_millis(200));
    let running = tokio::spawn(subscriber.run(stop.clone().cancelled_owned()));
    let feed = fake.feed().await;
    assert_eq!(feed.request.filter.as_ref().unwrap().names, ["step.*", "task.completed"]);
    feed.checkpoint("c0").await;
    // A type that is newer than this library has no detail here.
    let newer = Event { name: "step.paused".into(), detail: None, ..sample(5, "step.failed") };
    let other = Event { namespace: "other".into(), ..completed(6, "9") };
    let cursed = Event { namespace: "cursed".into(), ..completed(6, "9") };
    let events = [
        completed(1, "7"),
        failed(2, 1),
        failed(3, 2),
        failed(4, 3),
        newer,
        other,
        cursed,
        failed(7, 4),
        sample(8, "task.completed"),
    ];
    feed.events("c1", &events).await;
    for wanted in ["1 returned 7", "5 step.paused", "7 failed at last", "8 task.completed"] {
        assert_eq!(within("a handler", heard.recv()).await.unwrap(), wanted);
    }
    stop.cancel();
    let tally = within("the end", running).await.unwrap().unwrap();
    assert_eq!(tally, Tally { handled: 5, failed: 4 });
}

#[tokio::test]
async fn what_nobody_could_want_is_refused_before_anything_runs() {
    let fake = Fake::start().await;
    let refused = |events: &[&'static str]| {
        let made = Subscriber::new(&fake.client()).handler(Says::of(events).0);
        made.err().unwrap().to_string()
    };
    assert_eq!(
        refused(&["task.failed", "step.complete"]),
        r#"no event is named "step.complete"; did you mean "step.completed"?"#
    );
    assert_eq!(
        refused(&["step_completed"]),
        r#"no event is named "step_completed"; did you mean "step.completed"?"#
    );
    assert!(refused(&[]).contains("at least one"));
    let says = || {
        let subscriber = Subscriber::new(&fake.client());
        subscriber.handler(Says::of(&["step.failed"]).0).unwrap()
    };
    let durable = || says().durable(fake.client().durable("s", "r"));
    let never = std::future::pending::<()>;
    for wrong in [
        says().handler_timeout(Duration::ZERO).run(never()).await,
        durable().tags(["eu"]).run(never()).await,
        durable().from(Start::Earliest).run(never()).await,
        durable().cursor_store(FileCursor::new("nowhere")).run(never()).await,
    ] {
        assert!(matches!(wrong, Err(Error::Invalid(_))), "{wrong:?}");
    }
    let twice = Subscribers::new().add("a", says()).add("a", says()).run(never()).await;
    assert!(matches!(twice, Err(Error::Invalid(_))), "{twice:?}");
    let none = Subscribers::new().run(never()).await;
    assert!(matches!(none, Err(Error::Invalid(_))), "{none:?}");
    assert!(fake.is_idle().await);
}

#[tokio::test]
async fn over_a_durable_subscription_what_was_taken_is_acknowledged_and_what_failed_comes_again() {
    let fake = Fake::start().await;
    let (says, mut heard) = Says::of(&["step.*"]);
    let stop = CancellationToken::new();
    let subscriber = Subscriber::new(&fake.client()).handler(says).unwrap();
    let subscriber = subscriber.durable(fake.client().durable("s", "r"));
    let running = tokio::spawn(subscriber.run(stop.clone().cancelled_owned()));
    let feed = fake.feed().await;
    feed.held(&[(0, 7)]).await;
    fake.subscription("s", &["step.completed", "step.failed"]).await;
    feed.deliver((0, 7), 1, &[completed(1, "7"), failed(2, 1), completed(3, "8")]).await;
    assert_eq!(within("a handler", heard.recv()).await.unwrap(), "1 returned 7");
    let nack = loop {
        tokio::select! {
            ack = fake.ack() => {
                assert_eq!(ack.request.up_to_position, 1);
                ack.answer(Ok(AckEventsResponse { position: 1 }));
            }
            nack = fake.nack() => break nack,
        }
    };
    assert_eq!((nack.request.position, nack.request.reason.as_str()), (2, "Broken: no"));
    assert_eq!(nack.request.retry_after.as_ref().unwrap().seconds, 3);
    nack.answer(Ok(NackEventsResponse { epoch: 8, ..Default::default() }));
    feed.deliver((0, 8), 2, &[failed(2, 4), completed(3, "8")]).await;
    for wanted in ["2 failed at last", "3 returned 8"] {
        assert_eq!(within("a handler", heard.recv()).await.unwrap(), wanted);
    }
    stop.cancel();
    let told = async {
        loop {
            let ack = fake.ack().await;
            let position = ack.request.up_to_position;
            ack.answer(Ok(AckEventsResponse { position }));
            if position == 3 {
                return;
            }
        }
    };
    let (_, ended) = tokio::join!(told, within("the end", running));
    assert_eq!(ended.unwrap().unwrap(), Tally { handled: 3, failed: 1 });
}

#[tokio::test]
async fn a_handler_for_what_a_durable_subscription_does_not_bring_is_refused_at_the_start() {
    let fake = Fake::start().await;
    let subscriber = Subscriber::new(&fake.client()).handler(Says::of(&["step.failed"]).0).unwrap();
    let subscriber = subscriber.durable(fake.client().durable("s", "r"));
    let running = tokio::spawn(subscriber.run(std::future::pending()));
    fake.feed().await.held(&[]).await;
    fake.subscription("s", &["task.*", "step.completed"]).await;
    let error = within("the end", running).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("step.failed") && error.contains("task.*, step.completed"), "{error}");
}

#[tokio::test]
async fn of_several_subscribers_none_waits_for_one_that_hangs_or_has_ended() {
    let fake = Fake::start().await;
    let (says, mut heard) = Says::of(&["step.completed"]);
    let entered = Arc::new(tokio::sync::Notify::new());
    let (enters, gate) = (Arc::clone(&entered), CancellationToken::new());
    let held = gate.clone();
    let hangs = Subscriber::new(&fake.client())
        .on::<TaskCompleted, _>(move |_, _| {
            let (enters, held) = (Arc::clone(&enters), held.clone());
            async move {
                enters.notify_one();
                held.cancelled().await;
                Ok(())
            }
        })
        .handler_timeout(Duration::from_secs(600));
    let refused = Subscriber::new(&fake.client()).on::<TaskFailed, _>(|_, _| async { Ok(()) });
    let stop = CancellationToken::new();
    let subscribers = Subscribers::new()
        .add("hangs", hangs)
        .add("refused", refused)
        .add("says", Subscriber::new(&fake.client()).handler(says).unwrap());
    let running = tokio::spawn(subscribers.run(stop.clone().cancelled_owned()));
    let mut feeds = Vec::new();
    for _ in 0..3 {
        feeds.push(fake.feed().await);
    }
    feeds.sort_by_key(|feed| feed.request.filter.clone().unwrap().names);
    let [says, hangs, refused] = <[_; 3]>::try_from(feeds).ok().unwrap();
    refused.cut(stepwell_client::Refusal::new(ErrorReason::CursorAhead, "another log")).await;
    hangs.checkpoint("c0").await;
    hangs.events("c1", &[sample(1, "task.completed")]).await;
    within("the one that hangs", entered.notified()).await;
    says.checkpoint("c0").await;
    says.events("c1", &[completed(1, "7")]).await;
    assert_eq!(within("the other", heard.recv()).await.unwrap(), "1 returned 7");
    stop.cancel();
    gate.cancel();
    let ended = within("the end", running).await.unwrap().unwrap();
    let names: Vec<&str> = ended.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["hangs", "refused", "says"]);
    let tally = Tally { handled: 1, failed: 0 };
    assert_eq!((ended[0].1.as_ref().unwrap(), ended[2].1.as_ref().unwrap()), (&tally, &tally));
    assert_eq!(ended[1].1.as_ref().unwrap_err().reason(), Some(ErrorReason::CursorAhead));
}

#[tokio::test]
async fn a_handler_is_tested_without_services() {
    let (says, mut heard) = Says::of(&["step.*", "observability.step.backoff"]);
    for (name, said) in [
        ("step.completed", r#"1 returned {"total": 12345678901234567890}"#),
        ("observability.step.backoff", "1 observability.step.backoff"),
    ] {
        assert!(testing::handle(&says, &testing::sample(name).unwrap()).await.unwrap());
        assert_eq!(heard.recv().await.unwrap(), said);
    }
    assert!(!testing::handle(&says, &testing::sample("task.failed").unwrap()).await.unwrap());
    let other = Event { namespace: "other".into(), ..completed(1, "2") };
    assert!(!testing::handle(&says, &other).await.unwrap(), "`should_process` is false");
    let error = testing::handle(&says, &failed(1, 1)).await.unwrap_err();
    assert_eq!(error.to_string(), "Broken: no");
    let error = testing::handle(&Says::of(&["step.fail"]).0, &failed(1, 9)).await.unwrap_err();
    assert!(error.to_string().contains("step.failed"), "{error}");
    assert!(testing::sample("task.complete").is_err());
    let step = testing::sample("observability.step.backoff").unwrap();
    assert_eq!((step.step_name.as_str(), step.attempt), ("charge", 1));
    let task = testing::sample("task.completed").unwrap();
    assert_eq!((task.step_name.as_str(), task.to_state()), ("", State::Complete));
}

/// Every type of the catalog reaches the method that is named after it.
#[tokio::test]
async fn every_event_of_the_catalog_has_its_method() {
    macro_rules! recorder {
        ($($method:ident $message:ident $name:literal $doc:literal)*) => {
            struct Recorder(Mutex<Vec<&'static str>>);

            impl EventHandler for Recorder {
                fn subscribe_to(&self) -> Vec<&str> {
                    vec!["*", $($name),*]
                }

                async fn handle(&self, event: &Event) -> Result<(), HandlerError> {
                    panic!("{} has a method", event.name)
                }

                $(async fn $method(&self, _: &Event, _: &$message) -> Result<(), HandlerError> {
                    self.0.lock().unwrap().push($name);
                    Ok(())
                })*
            }
        };
    }
    stepwell_proto::for_each_event!(recorder);
    let recorder = Recorder(Mutex::default());
    let mut names = Vec::new();
    for event in stepwell_client::catalog::EVENTS {
        let sample = testing::sample(event.name).unwrap();
        assert!(testing::handle(&recorder, &sample).await.unwrap());
        names.push(event.name);
    }
    assert_eq!(*recorder.0.lock().unwrap(), names);
}
