//! The codec of the services: prost, with a bound on how much a request may become in memory. A
//! message of empty messages is a hundred times as large there as on the wire, so its size bounds
//! nothing.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::{Message, Name};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;

use crate::refusal::Refusal;

/// Reads that decoding one request may take: each field takes two or three. A definition of 10,000
/// steps and 100,000 dependencies takes less.
pub const READS_MAX: usize = 800_000;
/// Smaller messages cannot become large, and are not watched.
const SMALL_BYTES: usize = 16 << 10;

/// See the module.
#[derive(Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// Decodes; counts on the way if the message is a large request.
#[derive(Debug)]
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if !U::NAME.ends_with("Request") {
            // Answers are as large as their services make them.
            return U::decode(bytes).map(Some).map_err(|e| Status::internal(e.to_string()));
        }
        if bytes.remaining() <= SMALL_BYTES {
            return U::decode(bytes).map(Some).map_err(|e| unreadable(&e.to_string()));
        }
        let mut counted = Counted { bytes, left: READS_MAX };
        let decoded = U::decode(&mut counted);
        if counted.left == 0 {
            let what = format!("it has too many fields; {READS_MAX} reads decode at most");
            return Err(unreadable(&what));
        }
        decoded.map(Some).map_err(|e| unreadable(&e.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

fn unreadable(what: &str) -> Status {
    Refusal::field("", format!("the message cannot be read: {what}")).into()
}

/// Bytes that end when they were read too often.
struct Counted<B> {
    bytes: B,
    left: usize,
}

impl<B: Buf> Buf for Counted<B> {
    fn remaining(&self) -> usize {
        if self.left == 0 { 0 } else { self.bytes.remaining() }
    }

    fn chunk(&self) -> &[u8] {
        if self.left == 0 { &[] } else { self.bytes.chunk() }
    }

    fn advance(&mut self, n: usize) {
        self.left = self.left.saturating_sub(1);
        self.bytes.advance(n);
    }

    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        self.left = self.left.saturating_sub(1);
        self.bytes.copy_to_bytes(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{
        BatchCreateTasksRequest, CreateTaskRequest, Definition, RegisterDefinitionRequest,
        StepTemplate, register_definition_request::Source,
    };

    /// How many reads are left after a message, and whether it was decoded.
    fn left<T: Message + Default>(bytes: &[u8]) -> (usize, bool) {
        let mut counted = Counted { bytes, left: READS_MAX };
        let decoded = T::decode(&mut counted).is_ok();
        (counted.left, decoded)
    }

    #[test]
    fn a_message_of_empty_messages_is_not_decoded_to_its_end() {
        let requests = vec![CreateTaskRequest::default(); 2_000_000];
        let bytes = BatchCreateTasksRequest { requests }.encode_to_vec();
        assert!(bytes.len() < 4 << 20);
        assert_eq!(left::<BatchCreateTasksRequest>(&bytes).0, 0);
        let steps = vec![StepTemplate::default(); 1_900_000];
        let definition = Definition { steps, ..Definition::default() };
        let source = Some(Source::Definition(definition));
        let bytes = RegisterDefinitionRequest { source }.encode_to_vec();
        assert!(bytes.len() < 4 << 20);
        assert_eq!(left::<RegisterDefinitionRequest>(&bytes).0, 0);
    }

    #[test]
    fn the_largest_definition_that_is_allowed_can_be_read() {
        let step = |n: usize| StepTemplate {
            name: format!("step{n}"),
            handler: "handler".into(),
            depends_on: (0..10).map(|i| format!("step{}", n + i)).collect(),
            retry: Some(crate::v1::RetryPolicy {
                max_attempts: 3,
                initial_backoff: Some(prost_types::Duration { seconds: 1, nanos: 1 }),
                max_backoff: Some(prost_types::Duration { seconds: 9, nanos: 1 }),
                ..Default::default()
            }),
            timeout: Some(prost_types::Duration { seconds: 30, nanos: 1 }),
            ..StepTemplate::default()
        };
        let steps = (0..10_000).map(step).collect();
        let definition = Definition { steps, ..Definition::default() };
        let source = Some(Source::Definition(definition));
        let bytes = RegisterDefinitionRequest { source }.encode_to_vec();
        let (left, decoded) = left::<RegisterDefinitionRequest>(&bytes);
        assert!(decoded && left > READS_MAX / 10, "{left} reads are left");
    }
}
