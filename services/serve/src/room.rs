//! Room for connections: so many in all, and so many from one address. What does not fit is told
//! in the log now and then, never once per connection.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{Options, limits};

/// Who is here.
#[derive(Debug)]
pub(crate) struct Room {
    all: Arc<Semaphore>,
    here: Mutex<HashMap<IpAddr, usize>>,
    per_address_max: usize,
}

impl Room {
    pub(crate) fn new(options: &Options) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(files_for(options.connections_max))),
            here: Mutex::default(),
            per_address_max: options.connections_per_address_max,
        })
    }

    /// A place, if there is one.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).try_acquire_owned().ok()
    }

    /// A place, once there is one.
    pub(crate) async fn next_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).acquire_owned().await.ok()
    }

    /// Gives a place to a peer, unless enough are here from its address.
    pub(crate) fn enter(
        self: &Arc<Self>,
        peer: IpAddr,
        place: &mut Option<OwnedSemaphorePermit>,
    ) -> Option<Seat> {
        let address = network(peer);
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let n = here.entry(address).or_default();
        if *n >= self.per_address_max {
            return None;
        }
        let place = place.take()?;
        *n += 1;
        Some(Seat { room: Arc::clone(self), address, _place: place })
    }
}

/// A place that is taken. It is free when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    room: Arc<Room>,
    address: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut here = self.room.here.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut n) = here.entry(self.address) {
            *n.get_mut() -= 1;
            if *n.get() == 0 {
                n.remove();
            }
        }
    }
}

/// Whoever has one address of IPv6 has the whole network of 64 bits.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// As many connections as the process may have files open, if so many are wanted. The system's soft
/// limit is a default for programs that cannot count beyond it, so it is raised first.
fn files_for(wanted: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let enough = u64::try_from(wanted + limits::FILES_LEFT).unwrap_or(u64::MAX).min(hard);
    let raised = soft >= enough || setrlimit(Resource::RLIMIT_NOFILE, enough, hard).is_ok();
    let files = if raised { soft.max(enough) } else { soft };
    let room = connections(wanted, files);
    if room < wanted {
        tracing::warn!(wanted, room, files, "fewer connections: raise the limit of open files");
    }
    room
}

fn connections(wanted: usize, files: u64) -> usize {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    wanted.min(files.saturating_sub(limits::FILES_LEFT)).max(1)
}

/// A trouble that lasts is told at once, then now and then.
#[derive(Debug, Default)]
pub(crate) struct NowAndThen(Option<Instant>);

impl NowAndThen {
    pub(crate) fn is_due(&mut self) -> bool {
        const AGAIN: Duration = limits::TOLD_AGAIN;
        let due = self.0.is_none_or(|told| told.elapsed() >= AGAIN);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_a_network_of_ipv6_are_one_address_and_mapped_ones_are_ipv4() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
        assert_ne!(of("10.0.0.7"), of("10.0.0.8"));
    }

    #[test]
    fn connections_leave_files_to_everything_else() {
        assert_eq!(connections(4096, 100_000), 4096);
        assert_eq!(connections(4096, 1024), 1024 - limits::FILES_LEFT);
        assert_eq!(connections(4096, 10), 1);
    }

    #[test]
    fn a_place_that_was_left_is_free_again_and_nobody_is_remembered() {
        let options = Options { connections_per_address_max: 1, ..Options::default() };
        let room = Room::new(&options);
        let peer = "10.0.0.7".parse().unwrap();
        let seat = room.enter(peer, &mut room.place()).unwrap();
        assert!(room.enter(peer, &mut room.place()).is_none());
        assert!(room.enter("10.0.0.8".parse().unwrap(), &mut room.place()).is_some());
        drop(seat);
        assert!(room.enter(peer, &mut room.place()).is_some());
        assert!(room.here.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_trouble_that_lasts_is_told_now_and_then() {
        let mut told = NowAndThen::default();
        assert!(told.is_due() && !told.is_due());
        tokio::time::advance(limits::TOLD_AGAIN).await;
        assert!(told.is_due() && !told.is_due());
    }
}
