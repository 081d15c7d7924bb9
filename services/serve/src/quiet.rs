//! A log that nobody can flood: of lines of one kind only so many within a second are written. The
//! others are counted, and the count is told now and then.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;
use tracing::{Event, Subscriber, callsite::Identifier};
use tracing_subscriber::layer::{Context, Layer};

use crate::limits::{LINES_PER_SECOND_MAX, TOLD_AGAIN};

/// Lines that were left out since it was told. The log is one for the whole process.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Leaves lines out when there are too many of their kind.
#[derive(Debug, Default)]
pub(crate) struct Quiet(Mutex<HashMap<Identifier, Second>>);

/// Lines of one place in the code.
#[derive(Debug)]
struct Second {
    begun: Instant,
    lines: u32,
}

impl Quiet {
    fn has_room(&self, kind: Identifier) -> bool {
        let mut seconds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let second = seconds.entry(kind).or_insert(Second { begun: now, lines: 0 });
        if now.duration_since(second.begun).as_secs() > 0 {
            *second = Second { begun: now, lines: 0 };
        }
        second.lines = second.lines.saturating_add(1);
        second.lines <= LINES_PER_SECOND_MAX
    }
}

impl<S: Subscriber> Layer<S> for Quiet {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let has_room = self.has_room(event.metadata().callsite());
        if !has_room {
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }
}

/// Tells how many lines were left out, as long as there are any.
pub(crate) async fn tell_left_out() {
    loop {
        tokio::time::sleep(TOLD_AGAIN).await;
        let lines = LEFT_OUT.swap(0, Ordering::Relaxed);
        if lines > 0 {
            tracing::warn!(lines, "too many of one kind within a second; left out of the log");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Counts lines by their message.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<&'static str>>>);

    impl<S: Subscriber> Layer<S> for Heard {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(event.metadata().name());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_kind_of_line_is_cut_and_others_are_written() {
        let heard = Heard::default();
        let subscriber = tracing_subscriber::registry().with(heard.clone()).with(Quiet::default());
        let _logged = tracing::subscriber::set_default(subscriber);
        let lines = || std::mem::take(&mut *heard.0.lock().unwrap()).len();
        let flood = || (0..10_000).for_each(|n| tracing::warn!(n, "a flood"));
        flood();
        assert_eq!(lines(), LINES_PER_SECOND_MAX as usize);
        tracing::warn!("something else");
        assert_eq!(lines(), 1);
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        flood();
        assert_eq!(lines(), LINES_PER_SECOND_MAX as usize, "each second anew");
        assert!(LEFT_OUT.load(Ordering::Relaxed) > 0);
    }
}
