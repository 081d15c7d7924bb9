//! Subscribers: handlers by event name, and cursors that are kept.

use std::{
    io,
    sync::{Arc, Mutex},
};

use stepwell_client::{CursorStore, Error, HandlerError, Subscriber, v1::event::Detail, v1::*};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    fake::{Fake, within},
    feed::event,
};

/// Keeps a cursor in memory and says what it does.
#[derive(Clone)]
struct Kept {
    cursor: Arc<Mutex<Option<String>>>,
    said: mpsc::Sender<String>,
}

impl CursorStore for Kept {
    async fn load(&self) -> io::Result<Option<String>> {
        Ok(self.cursor.lock().unwrap().clone())
    }

    async fn save(&self, cursor: &str) -> io::Result<()> {
        *self.cursor.lock().unwrap() = Some(cursor.to_owned());
        self.said.send(format!("saved {cursor}")).await.unwrap();
        if cursor == "full" { Err(io::Error::other("disk full")) } else { Ok(()) }
    }
}

fn completed(position: i64, result: &str) -> Event {
    let detail = StepCompleted { result: result.into(), ..Default::default() };
    let detail = Some(Detail::StepCompleted(detail));
    Event { detail, ..event(position, "step.completed") }
}

#[tokio::test]
async fn each_event_goes_to_its_handlers_and_the_cursor_is_saved_after_them() {
    let fake = Fake::start().await;
    let (said, mut heard) = mpsc::channel(100);
    let (say, say_too) = (said.clone(), said.clone());
    let kept = Kept { cursor: Arc::default(), said: said.clone() };
    let stop = CancellationToken::new();
    let subscriber = Subscriber::new(&fake.client())
        .on::<StepCompleted, _>(|_, _| async { panic!("not fit for work") })
        .on::<StepCompleted, _>(|_, _| async { Err(HandlerError::new("Broken", "no")) })
        .on::<StepCompleted, _>(move |event, detail| {
            let say = say.clone();
            async move {
                say.send(format!("{} returned {}", event.position, detail.result)).await?;
                Ok(())
            }
        })
        .on_name("task.*", move |event| {
            let say = say_too.clone();
            async move {
                say.send(format!("{} {}", event.position, event.name)).await?;
                Ok(())
            }
        })
        .unwrap()
        .tasks(["task"])
        .cursor_store(kept.clone());
    let running = tokio::spawn(subscriber.run(stop.clone().cancelled_owned()));
    let feed = fake.feed().await;
    let filter = feed.request.filter.clone().unwrap();
    assert_eq!(filter.names, ["step.completed", "task.*"]);
    assert_eq!(filter.task_ids, ["task"]);
    feed.checkpoint("c0").await;
    feed.events("", &[event(1, "task.start_requested"), completed(2, "7")]).await;
    feed.events("full", &[event(3, "task.completed")]).await;
    feed.events("c2", &[completed(4, "8")]).await;
    for wanted in [
        "1 task.start_requested",
        "2 returned 7",
        "3 task.completed",
        "saved full",
        "4 returned 8",
        "saved c2",
    ] {
        assert_eq!(within("a handler", heard.recv()).await.unwrap(), wanted);
    }
    stop.cancel();
    within("the end", running).await.unwrap().unwrap();

    let again = Subscriber::new(&fake.client())
        .on::<TaskFailed, _>(|_, _| async { Ok(()) })
        .cursor_store(kept);
    let stop = CancellationToken::new();
    let running = tokio::spawn(again.run(stop.clone().cancelled_owned()));
    assert_eq!(fake.feed().await.after(), Some("c2"));
    stop.cancel();
    within("the end", running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_subscriber_without_handlers_or_with_an_unknown_name_is_refused() {
    let fake = Fake::start().await;
    let error = Subscriber::new(&fake.client()).run(std::future::pending()).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    let error = Subscriber::new(&fake.client()).on_name("task.complete", |_| async { Ok(()) });
    let error = error.err().unwrap().to_string();
    assert_eq!(error, r#"no event is named "task.complete"; did you mean "task.completed"?"#);
    assert!(fake.is_idle().await);
}

#[tokio::test]
async fn a_subscriber_ends_when_its_cursor_is_refused() {
    let fake = Fake::start().await;
    let subscriber = Subscriber::new(&fake.client()).on::<TaskFailed, _>(|_, _| async { Ok(()) });
    let running = tokio::spawn(subscriber.run(std::future::pending()));
    let refusal = stepwell_client::Refusal::new(ErrorReason::CursorAhead, "another log");
    fake.feed().await.cut(refusal).await;
    let error = within("the end", running).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::CursorAhead));
}
