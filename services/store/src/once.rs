//! Requests that are done once, however often they are asked for.

use prost::Message;
use sha2::{Digest, Sha256};
use stepwell_proto::{refusal::Refusal, v1::ErrorReason};

use crate::Error;

/// What a request is known by: for 48 hours a repeat changes nothing, and is answered what the first one was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    pub(crate) id: String,
    pub(crate) hash: [u8; 32],
}

impl Once {
    /// Of a request with this id and this content; none: it has no id, and each repeat is a request of its
    /// own.
    pub fn of(id: &str, request: &impl Message) -> Option<Self> {
        // Maps of these requests are in the order of their keys, so equal ones have equal bytes.
        let hash = || Sha256::digest(request.encode_to_vec()).into();
        (!id.is_empty()).then(|| Self { id: id.to_owned(), hash: hash() })
    }

    /// Refuses it if another request has its id.
    pub(crate) fn check(&self, same: Option<bool>) -> Result<(), Error> {
        if same == Some(false) {
            let what = format!("the id {} was used before for another request", self.id);
            let refusal = Refusal::new(ErrorReason::RequestIdReused, what);
            return Err(refusal.with("request_id", &self.id).into());
        }
        Ok(())
    }
}
