//! Events sent by HTTP, signed as [Standard Webhooks](https://www.standardwebhooks.com) has it.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Response, StatusCode, header};
use serde::Serialize;
use serde_json::json;
use sha2::Sha256;
use stepwell_outbound::{Clients, reason, retry_after};
use tokio::time::timeout;
use url::Url;

use super::queue::{Failure, Parcel};
use crate::cloud_event::{CONTENT_TYPE, CloudEvent};

/// Bytes of an answer that are read: a connection with more to say is not used again.
const ANSWER_BYTES_MAX: usize = 4 << 10;
/// … and for how long: what matters came before.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// … that are quoted when it is a refusal.
const QUOTED_BYTES_MAX: usize = 256;
/// Bytes of a reason; what is stored has room for more.
const REASON_BYTES_MAX: usize = 1000;
/// Keys that a variable may have, for the time in which one takes the place of another.
const KEYS_MAX: usize = 5;

/// Where the events of a subscription are sent.
pub(super) struct Webhook {
    pub(super) clients: Clients,
    pub(super) url: Url,
    pub(super) secret: Option<Secret>,
    pub(super) timeout: Duration,
    pub(super) name: String,
    pub(super) config: Option<String>,
}

/// What is sent: the event, for whom, and what was declared for it.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    event: CloudEvent,
    /// Extension `subscription`.
    subscription: &'a str,
    /// Extension `subscriptionconfig`: JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptionconfig: Option<&'a str>,
}

/// A change of an alert that is sent.
pub(super) struct AlertEvent {
    pub(super) id: String,
    pub(super) is_firing: bool,
    pub(super) namespace: String,
    pub(super) definition: String,
    pub(super) time: String,
    pub(super) rule: String,
    pub(super) n: i32,
    pub(super) seconds: u64,
    /// The event that made it fire; 0: none.
    pub(super) position: i64,
    pub(super) subscription: String,
}

impl AlertEvent {
    /// As a CloudEvent.
    fn body(&self, config: Option<&str>) -> String {
        let (namespace, definition) = (&self.namespace, &self.definition);
        let mut body = json!({
            "specversion": "1.0",
            "id": self.id,
            "source": format!("/namespaces/{namespace}/definitions/{definition}"),
            "type": if self.is_firing { "alert.firing" } else { "alert.resolved" },
            "time": self.time,
            "datacontenttype": "application/json",
            "data": {
                "rule": self.rule,
                "events": self.n,
                "windowSeconds": self.seconds,
                "namespace": namespace,
                "definitionName": definition,
            },
            "subscription": self.subscription,
        });
        if self.is_firing {
            body["data"]["position"] = json!(self.position.to_string());
        }
        if let Some(config) = config {
            body["subscriptionconfig"] = json!(config);
        }
        body.to_string()
    }
}

impl Webhook {
    /// Sends an event; it is taken if the answer is 2xx.
    pub(super) async fn post(&self, parcel: &Parcel) -> Result<(), Failure> {
        let event = CloudEvent::new(&parcel.event).map_err(|error| failed(error.to_string()))?;
        let id = webhook_id(event.id());
        let (subscription, subscriptionconfig) = (&*self.name, self.config.as_deref());
        let body = serde_json::to_string(&Body { event, subscription, subscriptionconfig })
            .map_err(|error| failed(error.to_string()))?;
        self.send(id, body, Some(parcel.attempt)).await
    }

    /// Sends a change of an alert; it is taken if the answer is 2xx.
    pub(super) async fn post_alert(&self, event: &AlertEvent) -> Result<(), Failure> {
        self.send(webhook_id(&event.id), event.body(self.config.as_deref()), None).await
    }

    async fn send(&self, id: String, body: String, attempt: Option<i32>) -> Result<(), Failure> {
        let late = |_| failed(format!("no answer within {:?}", self.timeout));
        let mut answer =
            timeout(self.timeout, self.answered(id, body, attempt)).await.map_err(late)??;
        let (status, mut said) = (answer.status(), Vec::new());
        // What came until then is what is quoted.
        let _ = timeout(ANSWER_TIMEOUT, hear(&mut answer, &mut said)).await;
        if status.is_success() { Ok(()) } else { Err(refused(status, &answer, &said)) }
    }

    async fn answered(
        &self,
        id: String,
        body: String,
        attempt: Option<i32>,
    ) -> Result<Response, Failure> {
        let client = self.clients.of(&self.url).map_err(|refused| failed(refused.to_string()))?;
        let request = self.request(id, body, attempt, SystemTime::now()).map_err(failed)?;
        let sent = client.execute(request).await;
        sent.map_err(|error| {
            failed(reason(error).unwrap_or_else(|not_allowed| not_allowed.to_string()))
        })
    }

    fn request(
        &self,
        id: String,
        body: String,
        attempt: Option<i32>,
        now: SystemTime,
    ) -> Result<reqwest::Request, String> {
        let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut request = reqwest::Request::new(reqwest::Method::POST, self.url.clone());
        let signature = self.secret.as_ref().map(|secret| secret.sign(&id, timestamp, &body));
        let headers = [
            (header::CONTENT_TYPE.as_str(), Some(CONTENT_TYPE.to_owned())),
            ("webhook-id", Some(id)),
            ("webhook-timestamp", Some(timestamp.to_string())),
            ("webhook-signature", signature),
            ("stepwell-attempt", attempt.map(|attempt| attempt.to_string())),
            ("stepwell-subscription", Some(self.name.clone())),
        ];
        for (name, value) in headers {
            let Some(value) = value else { continue };
            let value = value.parse().map_err(|_| format!("{name} is no header"))?;
            request.headers_mut().insert(name, value);
        }
        *request.body_mut() = Some(body.into());
        Ok(request)
    }
}

/// What comes of the body, up to a bound.
async fn hear(answer: &mut Response, said: &mut Vec<u8>) {
    // How a body ends matters to nobody.
    while let Ok(Some(chunk)) = answer.chunk().await {
        let room = ANSWER_BYTES_MAX - said.len();
        said.extend_from_slice(&chunk[..room.min(chunk.len())]);
        if said.len() == ANSWER_BYTES_MAX {
            break;
        }
    }
}

fn refused(status: StatusCode, answer: &Response, said: &[u8]) -> Failure {
    let busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let wait = answer.headers().get(header::RETRY_AFTER).filter(|_| busy);
    let wait = wait.and_then(|wait| retry_after(wait.to_str().ok()?, SystemTime::now()));
    // One that is busy and says "now" gets the usual time.
    let wait = wait.filter(|wait| !wait.is_zero());
    let quoted = String::from_utf8_lossy(&said[..said.len().min(QUOTED_BYTES_MAX)]);
    let quoted = quoted.trim();
    let what = match quoted {
        _ if status.is_redirection() => format!("{status}: redirects are not followed"),
        "" => status.to_string(),
        quoted => format!("{status}: {quoted}"),
    };
    Failure { wait, ..failed(what) }
}

fn failed(mut reason: String) -> Failure {
    reason.retain(|c| c != '\0');
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    Failure { reason, wait: None }
}

/// The id of a message: the same each time it is sent. What is signed is joined by dots, so it has none.
fn webhook_id(id: &str) -> String {
    id.replace('.', "_")
}

/// What events are signed with: one key, or several while they are changed.
pub(super) struct Secret(Vec<Vec<u8>>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Keys with spaces between them: `whsec_` and base64, or plain text. Or what is wrong.
    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        let keys = text.split_ascii_whitespace().map(|key| match key.strip_prefix("whsec_") {
            Some(coded) => STANDARD.decode(coded).map_err(|_| "is no base64 after `whsec_`"),
            None => Ok(key.as_bytes().to_owned()),
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        match keys.len() {
            0 => Err("is empty"),
            _ if keys.iter().any(Vec::is_empty) => Err("has an empty key"),
            n if n > KEYS_MAX => Err("has more than 5 keys"),
            _ => Ok(Self(keys)),
        }
    }

    /// `v1,` and the signature, for each key.
    fn sign(&self, id: &str, timestamp: u64, body: &str) -> String {
        let signed = format!("{id}.{timestamp}.{body}");
        let signatures = self.0.iter().map(|key| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
            mac.update(signed.as_bytes());
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification, signed by its own libraries.
    #[test]
    fn what_is_signed_is_what_the_specification_s_example_has() {
        let secret = Secret::read("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed =
            secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn while_keys_are_changed_there_is_a_signature_of_each() {
        let both = Secret::read("old  new\n").unwrap().sign("a", 1, "{}");
        let each = ["old", "new"].map(|key| Secret::read(key).unwrap().sign("a", 1, "{}"));
        assert_eq!(both, each.join(" "));
        for wrong in ["", "  ", "whsec_", "whsec_%", "1 2 3 4 5 6"] {
            assert!(Secret::read(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(format!("{:?}", Secret::read("word").unwrap()), "Secret");
    }

    #[test]
    fn a_reason_fits_where_it_is_kept_and_has_no_nul() {
        let failure = failed("\0ä".repeat(1000));
        assert!(failure.reason.len() <= REASON_BYTES_MAX && !failure.reason.contains('\0'));
        assert_eq!(webhook_id("t/4/step.completed/0"), "t/4/step_completed/0");
    }
}
