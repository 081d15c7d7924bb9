//! The events of one message of the feed, and events that are encoded once however many they are sent
//! to. What goes over the wire is what `event_service.proto` says.

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType},
};

use crate::v1::Event;

/// Number of `EventBatch.events`.
const EVENTS: u32 = 1;
/// Number of `Event.traceparent`.
const TRACEPARENT: u32 = 14;

/// Events of one or more commits, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventBatch {
    /// The events.
    pub events: Vec<Event>,
    /// Events that are encoded already: sent before the others. Empty in what was received.
    pub encoded: Vec<EncodedEvent>,
}

/// An event as it goes over the wire, cheap to clone. Its trace context stands apart, since each
/// subscription may have its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedEvent {
    rest: Bytes,
    /// Where in a trace whoever handles it goes on.
    pub traceparent: String,
}

impl EncodedEvent {
    /// Encodes an event.
    pub fn new(mut event: Event) -> Self {
        let traceparent = std::mem::take(&mut event.traceparent);
        Self { rest: event.encode_to_vec().into(), traceparent }
    }

    /// The event.
    pub fn decode(&self) -> Result<Event, DecodeError> {
        let traceparent = self.traceparent.clone();
        Ok(Event { traceparent, ..Event::decode(self.rest.clone())? })
    }

    /// How many bytes it has.
    pub fn encoded_len(&self) -> usize {
        let traceparent = match self.traceparent.as_str() {
            "" => 0,
            _ => encoding::string::encoded_len(TRACEPARENT, &self.traceparent),
        };
        self.rest.len() + traceparent
    }

    fn encode(&self, buf: &mut impl BufMut) {
        encoding::encode_key(EVENTS, WireType::LengthDelimited, buf);
        encoding::encode_varint(self.encoded_len() as u64, buf);
        buf.put_slice(&self.rest);
        if !self.traceparent.is_empty() {
            encoding::string::encode(TRACEPARENT, &self.traceparent, buf);
        }
    }

    /// With its key and its length.
    fn field_len(&self) -> usize {
        let len = self.encoded_len();
        encoding::key_len(EVENTS) + encoding::encoded_len_varint(len as u64) + len
    }
}

impl Message for EventBatch {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.encoded.iter().for_each(|event| event.encode(buf));
        encoding::message::encode_repeated(EVENTS, &self.events, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            EVENTS => encoding::message::merge_repeated(wire_type, &mut self.events, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        self.encoded.iter().map(EncodedEvent::field_len).sum::<usize>()
            + encoding::message::encoded_len_repeated(EVENTS, &self.events)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{StepCompleted, SubscribeResponse, subscribe_response::Kind};

    fn event(position: i64, traceparent: &str) -> Event {
        Event {
            position,
            name: "step.completed".into(),
            traceparent: traceparent.into(),
            correlation_id: "c".into(),
            detail: Some(
                StepCompleted { result: "x".repeat(300), ..StepCompleted::default() }.into(),
            ),
            ..Event::default()
        }
    }

    #[test]
    fn events_encoded_before_are_the_same_to_whoever_receives_them() {
        let events = vec![event(1, ""), event(2, "00-a-b-01"), event(3, "")];
        let encoded: Vec<_> = events.iter().cloned().map(EncodedEvent::new).collect();
        for (event, encoded) in events.iter().zip(&encoded) {
            assert_eq!(encoded.decode().as_ref(), Ok(event));
            assert_eq!(encoded.encoded_len(), event.encoded_len());
        }
        let message = |batch| SubscribeResponse {
            cursor: "c".into(),
            kind: Some(Kind::Events(batch)),
            ..SubscribeResponse::default()
        };
        let plain = message(EventBatch { events: events.clone(), ..EventBatch::default() });
        let mixed = EventBatch { encoded: encoded[..2].to_vec(), events: events[2..].to_vec() };
        for batch in [EventBatch { encoded, ..EventBatch::default() }, mixed] {
            let sent = message(batch);
            assert_eq!(sent.encoded_len(), plain.encoded_len());
            assert_eq!(
                SubscribeResponse::decode(sent.encode_to_vec().as_slice()),
                Ok(plain.clone())
            );
        }
        assert_eq!(SubscribeResponse::decode(plain.encode_to_vec().as_slice()), Ok(plain));
    }
}
