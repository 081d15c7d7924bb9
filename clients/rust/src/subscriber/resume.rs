//! What was delivered, so that a feed which is cut goes on without a repeat and without a gap: the
//! last cursor, and the last event after it. Plain memory.

use stepwell_proto::v1::{Event, SubscribeResponse, subscribe_response::Kind};

/// Some events of the feed, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivery {
    /// The events; none if the feed only came to another place.
    pub events: Vec<Event>,
    /// Resume after everything delivered so far. None in the middle of a commit's events.
    pub cursor: Option<String>,
}

/// How far a feed was delivered.
#[derive(Debug, Default)]
pub(super) struct Progress {
    cursor: String,
    /// The last event delivered after the cursor: position, name, ordinal.
    last: Option<(i64, String, i32)>,
    /// The events after the cursor come again, up to the last one.
    repeating: bool,
}

impl Progress {
    /// The last cursor; empty before the first.
    pub(super) fn cursor(&self) -> &str {
        &self.cursor
    }

    /// The feed was cut and begins after the cursor again.
    pub(super) fn rewind(&mut self) {
        self.repeating = self.last.is_some();
    }

    /// What of a message is new. None: nothing.
    pub(super) fn take(&mut self, message: SubscribeResponse) -> Option<Delivery> {
        let mut events = match message.kind {
            Some(Kind::Events(batch)) => batch.events,
            // What is told beside the events moves the cursor at most.
            _ => Vec::new(),
        };
        if self.repeating {
            let repeated = events.iter().take_while(|event| self.is_repeat(event)).count();
            events.drain(..repeated);
        }
        if let Some(event) = events.last() {
            self.last = Some((event.position, event.name.clone(), event.ordinal));
            self.repeating = false;
        }
        let moved = !message.cursor.is_empty() && message.cursor != self.cursor;
        if moved {
            self.cursor.clone_from(&message.cursor);
            self.last = None;
            self.repeating = false;
        }
        let cursor = moved.then_some(message.cursor);
        (cursor.is_some() || !events.is_empty()).then_some(Delivery { events, cursor })
    }

    /// True while the event is one of those delivered before. Positions never decrease in a feed,
    /// so an event beyond the last one is new even if that one does not come again.
    fn is_repeat(&mut self, event: &Event) -> bool {
        let Some((position, name, ordinal)) = &self.last else { return false };
        if !self.repeating || event.position > *position {
            self.repeating = false;
            return false;
        }
        if event.position == *position && event.name == *name && event.ordinal == *ordinal {
            self.repeating = false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::{Checkpoint, EventBatch};

    use super::*;

    fn event(position: i64, name: &str, ordinal: i32) -> Event {
        Event { position, name: name.into(), ordinal, ..Default::default() }
    }

    fn events(cursor: &str, events: &[Event]) -> SubscribeResponse {
        let kind =
            Some(Kind::Events(EventBatch { events: events.to_vec(), ..EventBatch::default() }));
        SubscribeResponse { cursor: cursor.into(), kind, ..Default::default() }
    }

    fn checkpoint(cursor: &str) -> SubscribeResponse {
        let kind = Some(Kind::Checkpoint(Checkpoint {}));
        SubscribeResponse { cursor: cursor.into(), kind, ..Default::default() }
    }

    /// A commit of ten events, two of each position.
    fn commit() -> Vec<Event> {
        (0..5).flat_map(|p| [event(p, "a", 0), event(p, "b", p as i32)]).collect()
    }

    #[test]
    fn wherever_a_commit_is_cut_and_however_it_is_chunked_each_event_comes_once() {
        let commit = commit();
        for cut in 0..=commit.len() {
            for chunk in 1..=commit.len() {
                let mut progress = Progress::default();
                progress.take(checkpoint("start"));
                let mut seen = progress.take(events("", &commit[..cut])).unwrap_or_default().events;
                progress.rewind();
                assert_eq!(progress.take(checkpoint("start")), None);
                let mut cursors = Vec::new();
                for (index, part) in commit.chunks(chunk).enumerate() {
                    let end = (index + 1) * chunk >= commit.len();
                    let delivery = progress.take(events(if end { "end" } else { "" }, part));
                    let delivery = delivery.unwrap_or_default();
                    seen.extend(delivery.events);
                    cursors.extend(delivery.cursor);
                }
                assert_eq!(seen, commit, "cut at {cut}, chunks of {chunk}");
                assert_eq!(cursors, ["end"]);
                assert_eq!(progress.cursor(), "end");
            }
        }
    }

    #[test]
    fn an_event_beyond_the_last_one_is_new_even_if_that_one_does_not_come_again() {
        let mut progress = Progress::default();
        progress.take(checkpoint("start"));
        progress.take(events("", &[event(1, "a", 0), event(2, "b", 0)]));
        progress.rewind();
        let again = progress.take(events("end", &[event(1, "a", 0), event(3, "c", 0)]));
        assert_eq!(again.unwrap().events, [event(3, "c", 0)]);
    }

    #[test]
    fn a_second_cut_does_not_repeat_what_came_after_the_first() {
        let commit = commit();
        let mut progress = Progress::default();
        progress.take(checkpoint("start"));
        let mut seen = Vec::new();
        for cut in [3, 2, 7, 10] {
            let delivery = progress.take(events("", &commit[..cut]));
            seen.extend(delivery.unwrap_or_default().events);
            progress.rewind();
        }
        assert_eq!(seen, commit);
    }

    #[test]
    fn a_checkpoint_moves_the_cursor_and_a_repeated_one_says_nothing() {
        let mut progress = Progress::default();
        assert_eq!(progress.take(checkpoint("a")).unwrap().cursor.unwrap(), "a");
        assert_eq!(progress.take(checkpoint("a")), None);
        let delivery = progress.take(checkpoint("b")).unwrap();
        assert_eq!((delivery.events, delivery.cursor), (Vec::new(), Some("b".into())));
    }
}
