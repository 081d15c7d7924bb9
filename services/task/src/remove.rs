//! Removes tasks that ended long ago, in chunks, oldest first. Any number of services may be at it.

use stepwell_serve::Ticker;
use stepwell_store::{KeepTasks, Store};

/// Tasks of one transaction.
const CHUNK_MAX: i32 = 500;

/// Walks the tasks again and again until shutdown begins.
pub(crate) async fn run(store: Store, keep: KeepTasks, mut ticker: Ticker) {
    let (mut place, mut chunk, mut removed) = (0, CHUNK_MAX, 0);
    while ticker.next().await {
        match store.remove_tasks(place, keep, chunk).await {
            Ok((n, next)) => {
                ticker.ok();
                chunk = (chunk * 2).min(CHUNK_MAX);
                removed += n;
                place = next.unwrap_or(0);
                if next.is_some() {
                    ticker.again();
                } else if removed > 0 {
                    tracing::info!(tasks = removed, "tasks that ended long ago were removed");
                    removed = 0;
                }
            }
            // Maybe they have too many steps to go in time.
            Err(error) => {
                chunk = (chunk / 2).max(1);
                ticker.back_off(&error);
            }
        }
    }
}
