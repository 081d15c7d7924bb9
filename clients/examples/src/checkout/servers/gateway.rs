//! The payment gateway. Cards are tokens, as in the test mode of a real one: each says what becomes
//! of its charge.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::checkout::money::Money;
use crate::ledger::{Key, Ledger, Refused};

/// A card that works.
pub(crate) const VALID: &str = "tok_visa_valid";
/// Cards that are declined, and why.
pub(crate) const DECLINED: [(&str, &str); 3] = [
    ("tok_insufficient_funds", "insufficient_funds"),
    ("tok_card_declined", "card_declined"),
    ("tok_invalid_card", "invalid_card"),
];
/// For each charge of this card the gateway asks twice to wait a second, then it works.
pub(crate) const BUSY_TWICE: &str = "tok_busy_twice";
/// For each charge of this card the gateway is not available twice, then it works.
pub(crate) const UNAVAILABLE_TWICE: &str = "tok_unavailable_twice";
/// The gateway is never available for this card.
pub(crate) const UNAVAILABLE: &str = "tok_unavailable";

#[derive(PartialEq, Deserialize)]
struct Charge {
    amount: Money,
    currency: String,
    token: String,
}

type Charges = Ledger<Charge, Value>;

pub(super) fn routes() -> Router {
    Router::new()
        .route("/charge", post(charge))
        .route("/charges", get(charges))
        .with_state(Charges::default())
}

async fn charge(
    State(charges): State<Charges>,
    Key(key): Key,
    Json(charge): Json<Charge>,
) -> Result<Json<Value>, Refused> {
    let charged = charges.once(&key, charge, |charge, call| {
        if let Some((_, why)) = DECLINED.iter().find(|(token, _)| *token == charge.token) {
            return Err(Refused::new(StatusCode::PAYMENT_REQUIRED, *why));
        }
        let unavailable = Refused::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable");
        match charge.token.as_str() {
            BUSY_TWICE if call <= 2 => Err(Refused::busy()),
            UNAVAILABLE_TWICE if call <= 2 => Err(unavailable),
            UNAVAILABLE => Err(unavailable),
            _ => Ok(json!({
                "payment_id": format!("pay_{key}"),
                "transaction_id": format!("txn_{key}"),
                "amount_charged": charge.amount,
                "currency": charge.currency,
                "status": "completed",
            })),
        }
    });
    charged.map(Json)
}

async fn charges(State(charges): State<Charges>) -> Json<Value> {
    let amounts = charges.done(|charge| charge.amount);
    Json(json!({"charges": amounts.len(), "total": amounts.into_iter().sum::<Money>()}))
}
