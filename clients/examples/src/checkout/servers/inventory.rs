//! The inventory. What it holds is stated by the order; see [`crate::checkout::Order`].

use std::collections::{BTreeMap, btree_map::Entry};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ledger::{Key, Ledger, Refused};

#[derive(PartialEq, Deserialize)]
struct Reserve {
    items: Vec<Wanted>,
    stock: BTreeMap<String, i64>,
}

#[derive(PartialEq, Deserialize)]
struct Wanted {
    product_id: u64,
    quantity: i64,
}

type Reservations = Ledger<Reserve, Value>;

pub(super) fn routes() -> Router {
    Router::new().route("/reserve", post(reserve)).with_state(Reservations::default())
}

async fn reserve(
    State(reservations): State<Reservations>,
    Key(key): Key,
    Json(reserve): Json<Reserve>,
) -> Result<Json<Value>, Refused> {
    reservations.once(&key, reserve, |reserve, _| reserve.take(&key)).map(Json)
}

impl Reserve {
    /// All of it, or nothing.
    fn take(&self, key: &str) -> Result<Value, Refused> {
        let mut left = self.stock.clone();
        let mut updated = Vec::new();
        for (i, &Wanted { product_id, quantity }) in self.items.iter().enumerate() {
            let held = match left.entry(product_id.to_string()) {
                Entry::Occupied(held) => held.into_mut(),
                Entry::Vacant(none) => none.insert(0),
            };
            if *held < quantity {
                let what = format!(
                    "Insufficient stock: {held} of product {product_id}, {quantity} wanted"
                );
                return Err(Refused::new(StatusCode::CONFLICT, what));
            }
            let previous = *held;
            *held -= quantity;
            updated.push(json!({
                "product_id": product_id,
                "previous_stock": previous,
                "new_stock": *held,
                "quantity_reserved": quantity,
                "reservation_id": format!("rsv_{key}_{i}"),
            }));
        }
        let total: i64 = self.items.iter().map(|item| item.quantity).sum();
        Ok(json!({"updated_products": updated, "total_items_reserved": total}))
    }
}
