//! Customers, tickets, and what payments call: the gateway, the records and the mail. What a customer or a payment
//! is called says how the servers behave.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post, put},
};
use serde_json::{Value, json};

use crate::ledger::{Key, Ledger, Refused};

/// Customers and their tiers.
const CUSTOMERS: [(&str, &str); 4] =
    [("CUST-54321", "premium"), ("CUST-2", "standard"), ("CUST-3", "basic"), (REVIEWED, "premium")];
/// Of this customer the first question of each step hears that somebody looks at it.
const REVIEWED: &str = "CUST-REVIEWED";
/// What was paid with each payment, in cents.
const PAID: i64 = 60_000;
/// There is no such payment.
const UNKNOWN: &str = "pay_unknown";
/// The bank does not take this one back.
const REFUSED: &str = "pay_refused";
/// The gateway is down when this one is first to be taken back.
const DOWN_ONCE: &str = "pay_downonce";

type Done = Ledger<Value, Value>;

pub(super) fn routes() -> Router {
    Router::new()
        .route("/customers/{id}", get(customer))
        .route("/payments/{id}", get(payment))
        .route("/refunds", post(refund).get(refunds))
        .route("/records/{id}", put(record))
        .route("/tickets/{id}", put(ticket))
        .route("/mails", post(mail))
        .with_state(Done::default())
}

fn unknown(what: &str) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, format!("{what} is not known"))
}

async fn customer(
    State(done): State<Done>,
    Path(id): Path<String>,
    Key(key): Key,
) -> Result<Json<Value>, Refused> {
    let (_, tier) = CUSTOMERS.iter().find(|(known, _)| *known == id).ok_or_else(|| unknown(&id))?;
    // Only what was carried out is remembered, so that the question may be answered anew.
    let looked = done.once(&key, Value::Null, |_, call| match call {
        1 if id == REVIEWED => Err(Refused::new(StatusCode::CONFLICT, "under review")),
        _ => Ok(Value::Null),
    });
    Ok(Json(json!({"tier": tier, "under_review": looked.is_err()})))
}

async fn payment(Path(id): Path<String>) -> Result<Json<Value>, Refused> {
    match id.as_str() {
        UNKNOWN => Err(unknown(&id)),
        _ => Ok(Json(json!({"payment_id": id, "amount": PAID}))),
    }
}

async fn refund(
    State(done): State<Done>,
    Key(key): Key,
    Json(refund): Json<Value>,
) -> Result<Json<Value>, Refused> {
    let refunded = done.once(&key, refund, |refund, call| match refund["payment_id"].as_str() {
        Some(REFUSED) => Err(Refused::new(StatusCode::PAYMENT_REQUIRED, "not taken back")),
        Some(DOWN_ONCE) if call == 1 => {
            Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is down"))
        }
        _ => Ok(json!({"refund_id": format!("ref_{key}"), "amount": refund["amount"]})),
    });
    refunded.map(Json)
}

/// What was taken back: payments and amounts.
async fn refunds(State(done): State<Done>) -> Json<Value> {
    let all = done.done(|of| of["payment_id"].is_string().then(|| of.clone()));
    Json(all.into_iter().flatten().collect())
}

async fn record(
    State(done): State<Done>,
    Path(id): Path<String>,
    Key(key): Key,
    Json(of): Json<Value>,
) -> Result<Json<Value>, Refused> {
    let answer = |_: &Value, _| Ok(json!({"payment": id, "records_updated": true}));
    done.once(&key, of, answer).map(Json)
}

async fn ticket(
    State(done): State<Done>,
    Path(id): Path<String>,
    Key(key): Key,
    Json(of): Json<Value>,
) -> Result<Json<Value>, Refused> {
    done.once(&key, of, |of, _| Ok(json!({"ticket": id, "status": of["status"]}))).map(Json)
}

async fn mail(
    State(done): State<Done>,
    Key(key): Key,
    Json(of): Json<Value>,
) -> Result<Json<Value>, Refused> {
    done.once(&key, of, |_, _| Ok(json!({"notified": true}))).map(Json)
}
