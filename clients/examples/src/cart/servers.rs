//! The API of carts and products. Asked in test mode, it says so in its answers.

use axum::{
    Json, Router,
    extract::{Path, RawQuery},
    http::StatusCode,
    routing::get,
};
use serde_json::{Value, json};

use crate::ledger::Refused;

const CARTS: &str = include_str!("../../cart/data/carts.json");
const PRODUCTS: &str = include_str!("../../cart/data/products.json");

/// This cart is answered without a cart.
const HOLLOW: u64 = 7;

pub(super) fn routes() -> Router {
    Router::new().route("/carts/{id}", get(cart)).route("/products", get(products))
}

fn all(text: &str) -> Vec<Value> {
    serde_json::from_str(text).expect("the shipped data is JSON")
}

fn answer(mut of: Value, query: Option<&str>) -> Json<Value> {
    if query.is_some_and(|query| query.split('&').any(|pair| pair == "test_mode=true")) {
        of["test_mode"] = true.into();
    }
    Json(of)
}

async fn cart(Path(id): Path<u64>, RawQuery(query): RawQuery) -> Result<Json<Value>, Refused> {
    let found = all(CARTS).into_iter().find(|cart| cart["id"].as_u64() == Some(id));
    match found {
        Some(cart) => Ok(answer(json!({"cart": cart}), query.as_deref())),
        None if id == HOLLOW => Ok(answer(json!({"moved": true}), query.as_deref())),
        None => Err(Refused::new(StatusCode::NOT_FOUND, "Cart not found")),
    }
}

async fn products(RawQuery(query): RawQuery) -> Json<Value> {
    answer(json!({"products": all(PRODUCTS)}), query.as_deref())
}
