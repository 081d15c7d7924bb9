//! What handlers publish while they run, until it is answered. Pure memory; `session.rs` acts on it.

use std::collections::{HashMap, VecDeque};

use stepwell_proto::v1::{Publication, Publish, PublishAck, Refusal};
use tokio::sync::oneshot;

/// So many wait for an answer; then handlers wait to publish more.
const WAITING_MAX: usize = 1_000;

/// A handler that wants to publish.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) lease_id: String,
    pub(super) events: Vec<Publication>,
    /// Told what became of it; dropped when the lease is over.
    pub(super) answer: Answer,
}

/// Where the answer goes: nothing, or why it was refused.
pub(super) type Answer = oneshot::Sender<Option<Refusal>>;

/// What is not answered, by lease.
#[derive(Default)]
pub(super) struct Publications(HashMap<String, OfLease>);

#[derive(Default)]
struct OfLease {
    /// The last number that was given.
    last: i32,
    waiting: VecDeque<(Publish, Answer)>,
}

impl Publications {
    /// Few enough wait to take more.
    pub(super) fn has_room(&self) -> bool {
        self.0.values().map(|of| of.waiting.len()).sum::<usize>() < WAITING_MAX
    }

    /// Gives it the next number of its lease, and keeps it.
    pub(super) fn add(&mut self, wish: Wish) -> Publish {
        let Wish { lease_id, events, answer } = wish;
        let of = self.0.entry(lease_id.clone()).or_default();
        of.last += 1;
        let publish = Publish { lease_id, number: of.last, events };
        of.waiting.push_back((publish.clone(), answer));
        publish
    }

    /// It was answered.
    pub(super) fn answer(&mut self, ack: PublishAck) {
        let Some(of) = self.0.get_mut(&ack.lease_id) else { return };
        let at = of.waiting.iter().position(|(publish, _)| publish.number == ack.number);
        if let Some((_, answer)) = at.and_then(|at| of.waiting.remove(at)) {
            // A handler that does not wait for it any more need not know.
            let _ = answer.send(ack.refusal);
        }
    }

    /// The lease is over: nothing of it is answered any more.
    pub(super) fn forget(&mut self, lease_id: &str) {
        self.0.remove(lease_id);
    }

    /// What was not answered, for each lease in its order.
    pub(super) fn unanswered(&self) -> Vec<Publish> {
        let waiting = self.0.values().flat_map(|of| &of.waiting);
        waiting.map(|(publish, _)| publish.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(lease: &str) -> (Wish, oneshot::Receiver<Option<Refusal>>) {
        let (answer, answered) = oneshot::channel();
        (Wish { lease_id: lease.into(), events: Vec::new(), answer }, answered)
    }

    fn ack(lease: &str, number: i32) -> PublishAck {
        PublishAck { lease_id: lease.into(), number, refusal: None }
    }

    #[test]
    fn numbers_are_of_a_lease_and_what_has_no_answer_is_sent_again_in_their_order() {
        let mut publications = Publications::default();
        let (first, mut first_answer) = wish("a");
        let (second, mut second_answer) = wish("a");
        let (other, mut other_answer) = wish("b");
        let numbers = [first, second, other].map(|wish| publications.add(wish).number);
        assert_eq!(numbers, [1, 2, 1]);
        publications.answer(ack("a", 1));
        publications.answer(ack("a", 1));
        publications.answer(ack("c", 1));
        assert_eq!(first_answer.try_recv(), Ok(None));
        assert!(second_answer.try_recv().is_err());
        assert_eq!(publications.add(wish("a").0).number, 3);
        let again = publications.unanswered();
        let of_a: Vec<i32> = again.iter().filter(|p| p.lease_id == "a").map(|p| p.number).collect();
        assert_eq!((of_a, again.len()), (vec![2, 3], 3));
        publications.forget("b");
        assert_eq!(other_answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn only_so_many_wait() {
        let mut publications = Publications::default();
        let answers: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                assert!(publications.has_room());
                let (wish, answer) = wish("a");
                publications.add(wish);
                answer
            })
            .collect();
        assert!(!publications.has_room());
        publications.answer(ack("a", 7));
        assert!(publications.has_room());
        assert_eq!(answers.len(), WAITING_MAX);
    }
}
