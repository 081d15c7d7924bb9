//! The warehouse, the dashboards and the channels. What a warehouse, dashboard or channel is called says how it
//! behaves, so that each task states its own trouble.

use std::{future::pending, ops::RangeInclusive};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post, put},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ledger::{Key, Ledger, Refused};

const ORDERS: &str = include_str!("../../analytics/data/orders.json");
const USERS: &str = include_str!("../../analytics/data/users.json");
const PRODUCTS: &str = include_str!("../../analytics/data/products.json");

/// The first query of each step is never answered.
const SLOW_ONCE: &str = "slow_once";
/// The first query of each step finds it down.
const DOWN_ONCE: &str = "down_once";
/// It is always down.
const DOWN: &str = "down";
/// This dashboard takes nothing.
const BROKEN: &str = "broken";
/// This channel is never there.
const GONE: &str = "#gone";

type Queries = Ledger<String, Value>;
type Messages = Ledger<Value, Value>;

pub(super) fn routes() -> Router {
    Router::new()
        .route("/warehouse/{warehouse}/{source}/{from}/{to}", get(query))
        .with_state(Queries::default())
        .route("/dashboards/{dashboard}", put(update))
        .route("/messages", post(send))
        .with_state(Messages::default())
}

fn down(what: &str) -> Refused {
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, format!("{what} is down"))
}

async fn query(
    State(queries): State<Queries>,
    Path((warehouse, source, from, to)): Path<(String, String, String, String)>,
    Key(key): Key,
) -> Result<Json<Value>, Refused> {
    let answer = queries.once(&key, format!("{source} of {from} to {to}"), |_, call| {
        if warehouse == DOWN || call == 1 && [SLOW_ONCE, DOWN_ONCE].contains(&warehouse.as_str()) {
            return Err(down(&warehouse));
        }
        records(&source, &(from..=to))
    });
    if answer.is_err() && warehouse == SLOW_ONCE {
        pending::<()>().await;
    }
    answer.map(Json)
}

/// What a source has; of orders, those of these days, which as they are written are in order as texts.
fn records(source: &str, days: &RangeInclusive<String>) -> Result<Value, Refused> {
    let text = match source {
        "orders" => ORDERS,
        "users" => USERS,
        "products" => PRODUCTS,
        _ => {
            let what = format!("the warehouse has no {source}");
            return Err(Refused::new(StatusCode::NOT_FOUND, what));
        }
    };
    let mut all: Vec<Value> = serde_json::from_str(text).expect("the shipped data is JSON");
    all.retain(|record| record["date"].as_str().is_none_or(|date| days.contains(&date.to_owned())));
    Ok(Value::Array(all))
}

async fn update(
    State(updates): State<Messages>,
    Path(dashboard): Path<String>,
    Key(key): Key,
    Json(insights): Json<Value>,
) -> Result<Json<Value>, Refused> {
    let updated = updates.once(&key, insights, |_, _| match dashboard.as_str() {
        BROKEN => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "out of order")),
        _ => Ok(json!({"dashboard": dashboard, "status": "updated"})),
    });
    updated.map(Json)
}

#[derive(Deserialize)]
struct Message {
    channel: String,
    text: String,
}

async fn send(
    State(messages): State<Messages>,
    Key(key): Key,
    Json(message): Json<Value>,
) -> Result<Json<Value>, Refused> {
    let sent = messages.once(&key, message, |message, _| {
        let wrong =
            |_| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "channel and text are wanted");
        let Message { channel, text } = Message::deserialize(message).map_err(wrong)?;
        match channel.as_str() {
            GONE => Err(down(&channel)),
            _ => Ok(json!({"sent": true, "channel": channel, "text": text})),
        }
    });
    sent.map(Json)
}
