//! The mail. It delivers to nobody.

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ledger::{Key, Ledger, Refused};

/// For each mail to an address that begins so, the server asks once to wait a second.
pub(crate) const BUSY_ONCE: &str = "busy-once.";

#[derive(PartialEq, Deserialize)]
struct Mail {
    to: String,
    subject: String,
}

type Mails = Ledger<Mail, Value>;

pub(super) fn routes() -> Router {
    Router::new().route("/send", post(send)).with_state(Mails::default())
}

async fn send(
    State(mails): State<Mails>,
    Key(key): Key,
    Json(mail): Json<Mail>,
) -> Result<Json<Value>, Refused> {
    let sent = mails.once(&key, mail, |mail, call| {
        if !is_address(&mail.to) {
            return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid address"));
        }
        if mail.to.starts_with(BUSY_ONCE) && call == 1 {
            return Err(Refused::busy());
        }
        Ok(json!({"email_sent": true, "recipient": mail.to, "message_id": format!("msg_{key}")}))
    });
    sent.map(Json)
}

/// Something, an `@`, and a domain.
pub(crate) fn is_address(text: &str) -> bool {
    text.split_once('@').is_some_and(|(user, domain)| {
        let spaced = text.contains(char::is_whitespace);
        !user.is_empty() && !domain.starts_with('.') && domain.contains('.') && !spaced
    })
}
