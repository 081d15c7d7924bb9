//! The payment gateway, the inventory and the mail: small, but real HTTP servers, that remember by
//! idempotency key what they did, and fail when the order says so.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::post,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Calls by idempotency key.
type Calls = Arc<Mutex<HashMap<String, u32>>>;

/// Serves all three on one address until the process ends.
pub async fn serve(listener: TcpListener) -> std::io::Result<()> {
    let router = Router::new()
        .route("/gateway/charge", post(charge))
        .route("/inventory/reserve", post(reserve))
        .route("/mail/send", post(send))
        .with_state(Calls::default());
    axum::serve(listener, router).await
}

/// The key of the call, and which call with it this is.
fn nth(calls: &Calls, headers: &HeaderMap, of: &str) -> Result<(String, u32), Response> {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let Some(key) = key else {
        return Err(error(StatusCode::BAD_REQUEST, "an Idempotency-Key is wanted"));
    };
    let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
    let n = calls.entry(format!("{of} {key}")).or_insert(0);
    *n += 1;
    Ok((key.to_owned(), *n))
}

fn error(status: StatusCode, what: &str) -> Response {
    (status, Json(json!({"error": what}))).into_response()
}

fn busy() -> Response {
    let mut response = error(StatusCode::TOO_MANY_REQUESTS, "rate_limited");
    response.headers_mut().insert(RETRY_AFTER, 1.into());
    response
}

#[derive(Deserialize)]
struct Charge {
    amount: f64,
    token: String,
}

async fn charge(
    State(calls): State<Calls>,
    headers: HeaderMap,
    Json(charge): Json<Charge>,
) -> Response {
    let (key, n) = match nth(&calls, &headers, "charge") {
        Ok(call) => call,
        Err(refused) => return refused,
    };
    match charge.token.as_str() {
        "tok_insufficient_funds" => error(StatusCode::PAYMENT_REQUIRED, "insufficient_funds"),
        "tok_card_declined" => error(StatusCode::PAYMENT_REQUIRED, "card_declined"),
        "tok_invalid_card" => error(StatusCode::PAYMENT_REQUIRED, "invalid_card"),
        "tok_busy_twice" if n <= 2 => busy(),
        "tok_unavailable_twice" if n <= 2 => {
            error(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable")
        }
        _ => Json(json!({
            "payment_id": format!("pay_{key}"),
            "transaction_id": format!("txn_{key}"),
            "amount_charged": charge.amount,
            "status": "completed",
        }))
        .into_response(),
    }
}

#[derive(Deserialize)]
struct Reserve {
    items: Vec<Wanted>,
}

#[derive(Deserialize)]
struct Wanted {
    product_id: Option<u64>,
    quantity: i64,
    stock: i64,
}

async fn reserve(
    State(calls): State<Calls>,
    headers: HeaderMap,
    Json(reserve): Json<Reserve>,
) -> Response {
    let key = match nth(&calls, &headers, "reserve") {
        Ok((key, _)) => key,
        Err(refused) => return refused,
    };
    if let Some(item) = reserve.items.iter().find(|item| item.stock < item.quantity) {
        let what = format!("Insufficient stock: {} of {}", item.stock, item.quantity);
        return error(StatusCode::CONFLICT, &what);
    }
    let updated = reserve.items.iter().enumerate().map(|(i, item)| {
        json!({
            "product_id": item.product_id,
            "previous_stock": item.stock,
            "new_stock": item.stock - item.quantity,
            "quantity_reserved": item.quantity,
            "reservation_id": format!("rsv_{key}_{i}"),
        })
    });
    let total: i64 = reserve.items.iter().map(|item| item.quantity).sum();
    Json(json!({
        "updated_products": updated.collect::<Vec<Value>>(),
        "total_items_reserved": total,
    }))
    .into_response()
}

#[derive(Deserialize)]
struct Mail {
    to: String,
}

async fn send(State(calls): State<Calls>, headers: HeaderMap, Json(mail): Json<Mail>) -> Response {
    let n = match nth(&calls, &headers, "mail") {
        Ok((_, n)) => n,
        Err(refused) => return refused,
    };
    if !mail.to.contains('@') {
        return error(StatusCode::UNPROCESSABLE_ENTITY, "invalid address");
    }
    if mail.to.starts_with("busy-once.") && n == 1 {
        return busy();
    }
    Json(json!({"email_sent": true, "recipient": mail.to})).into_response()
}
