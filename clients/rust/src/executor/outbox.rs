//! What waits to be sent on one stream. The transport takes what is there, up to a frame's bounds,
//! whenever it is ready to send: batches grow with the load, and nothing waits for a timer. Bounded
//! by what it holds: outcomes of held leases.

use std::{
    collections::{BTreeSet, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::Stream;
use prost::Message;
use stepwell_proto::v1::{Hello, Outcome, Publish, WorkRequest};

const FRAME_ITEMS_MAX: usize = 256;
const FRAME_BYTES_MAX: usize = 256 * 1024;

/// The queue of one stream.
pub(super) struct Outbox(Mutex<State>);

struct State {
    hello: Option<Box<Hello>>,
    outcomes: VecDeque<Outcome>,
    publish: VecDeque<Publish>,
    /// Leases whose handlers have made progress.
    progress: BTreeSet<String>,
    drain: bool,
    sign_of_life: bool,
    /// Something was sent since the last look.
    spoke: bool,
    closed: bool,
    waker: Option<Waker>,
}

impl Outbox {
    /// One that begins with this hello.
    pub(super) fn new(hello: Hello) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            hello: Some(Box::new(hello)),
            outcomes: VecDeque::new(),
            publish: VecDeque::new(),
            progress: BTreeSet::new(),
            drain: false,
            sign_of_life: false,
            spoke: false,
            closed: false,
            waker: None,
        })))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn report(&self, outcomes: Vec<Outcome>) {
        self.change(|state| state.outcomes.extend(outcomes));
    }

    pub(super) fn publish(&self, publish: impl IntoIterator<Item = Publish>) {
        self.change(|state| state.publish.extend(publish));
    }

    pub(super) fn progress(&self, leases: impl IntoIterator<Item = String>) {
        self.change(|state| state.progress.extend(leases));
    }

    pub(super) fn drain(&self) {
        self.change(|state| state.drain = true);
    }

    /// Says something, unless something was said since the last call.
    pub(super) fn sign_of_life(&self) {
        self.change(|state| state.sign_of_life = !std::mem::take(&mut state.spoke));
    }

    /// Ends the stream once what waits is sent.
    pub(super) fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// The messages for the transport.
    pub(super) fn messages(self: &Arc<Self>) -> Messages {
        Messages(Arc::clone(self))
    }
}

/// What is sent on one stream.
pub(super) struct Messages(Arc<Outbox>);

impl Stream for Messages {
    type Item = WorkRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WorkRequest>> {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(request) = state.next() {
            state.spoke = true;
            return Poll::Ready(Some(request));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl State {
    fn next(&mut self) -> Option<WorkRequest> {
        if let Some(hello) = self.hello.take() {
            return Some(WorkRequest { hello: Some(*hello), ..Default::default() });
        }
        // What a handler published before it ended is said first.
        let publish = frame(&mut self.publish);
        let outcomes = if self.publish.is_empty() { frame(&mut self.outcomes) } else { Vec::new() };
        let drain = std::mem::take(&mut self.drain);
        let sign_of_life = std::mem::take(&mut self.sign_of_life);
        let progress = self.some_progress();
        let items = !outcomes.is_empty() || !publish.is_empty() || !progress.is_empty();
        let wanted = items || drain || sign_of_life;
        wanted.then(|| WorkRequest { outcomes, publish, progress, drain, ..Default::default() })
    }

    fn some_progress(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.progress.pop_first()).take(FRAME_ITEMS_MAX).collect()
    }
}

/// As many as fit into a frame.
fn frame<M: Message>(waiting: &mut VecDeque<M>) -> Vec<M> {
    let (mut items, mut bytes) = (0, 0);
    for message in waiting.iter().take(FRAME_ITEMS_MAX) {
        bytes += message.encoded_len();
        if items > 0 && bytes > FRAME_BYTES_MAX {
            break;
        }
        items += 1;
    }
    waiting.drain(..items).collect()
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};
    use stepwell_proto::v1::{Completion, outcome::Kind};

    use super::*;

    fn outcome(bytes: usize) -> Outcome {
        let kind = Kind::Complete(Completion { result: "x".repeat(bytes) });
        Outcome { lease_id: "lease".into(), kind: Some(kind), ..Outcome::default() }
    }

    fn next(messages: &mut Messages) -> Option<Option<WorkRequest>> {
        messages.next().now_or_never()
    }

    #[test]
    fn a_frame_takes_what_is_there_up_to_its_bounds() {
        let outbox = Outbox::new(Hello::default());
        let mut messages = outbox.messages();
        outbox.report(vec![outcome(1); 300]);
        outbox.report(vec![outcome(200_000), outcome(100_000), outcome(2_000_000), outcome(1)]);
        assert!(next(&mut messages).unwrap().unwrap().hello.is_some());
        let mut frames = Vec::new();
        while let Some(frame) = next(&mut messages) {
            frames.push(frame.unwrap().outcomes.len());
        }
        assert_eq!(frames, [256, 45, 1, 1, 1]);
        outbox.close();
        assert_eq!(next(&mut messages), Some(None));
    }

    #[test]
    fn what_is_published_goes_before_outcomes() {
        let outbox = Outbox::new(Hello::default());
        let mut messages = outbox.messages();
        assert!(next(&mut messages).is_some());
        outbox.report(vec![outcome(1)]);
        outbox.publish((1..=300).map(|number| Publish { number, ..Publish::default() }));
        let sizes = || {
            let frame = next(&mut messages)??;
            Some((frame.publish.len(), frame.outcomes.len()))
        };
        let sizes: Vec<_> = std::iter::from_fn(sizes).collect();
        assert_eq!(sizes, [(256, 0), (44, 1)]);
    }

    #[test]
    fn progress_is_told_once_however_often_it_was_made() {
        let outbox = Outbox::new(Hello::default());
        let mut messages = outbox.messages();
        assert!(next(&mut messages).is_some());
        outbox.progress(["a".to_owned(), "b".to_owned()]);
        outbox.progress(["a".to_owned()]);
        assert_eq!(next(&mut messages).unwrap().unwrap().progress, ["a", "b"]);
        assert_eq!(next(&mut messages), None);
    }

    #[test]
    fn a_sign_of_life_is_given_only_after_silence() {
        let outbox = Outbox::new(Hello::default());
        let mut messages = outbox.messages();
        assert!(next(&mut messages).is_some());
        outbox.sign_of_life();
        assert_eq!(next(&mut messages), None);
        outbox.sign_of_life();
        assert_eq!(next(&mut messages), Some(Some(WorkRequest::default())));
        outbox.drain();
        assert!(next(&mut messages).unwrap().unwrap().drain);
    }
}
