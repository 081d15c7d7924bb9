//! An order as it is given, and what must become of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of the orders' file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The order: the task's context.
    pub order: Order,
    /// What must become of it.
    pub expect: Expectation,
}

/// How the order's task must end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// `complete` or `error`.
    pub state: String,
    /// The step that fails; empty when none does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failed_step: String,
    /// Its error code.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error_code: String,
    /// Attempts by step, of steps that need more than one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attempts: BTreeMap<String, i32>,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Who buys.
    pub customer_info: Customer,
    /// What.
    pub cart_items: Vec<Item>,
    /// How it is paid.
    pub payment_info: Payment,
    /// Where it goes.
    pub shipping_info: Shipping,
    /// What the inventory holds, by product.
    pub stock: BTreeMap<String, i64>,
}

/// Who buys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Customer {
    /// Number of the customer.
    pub id: u64,
    /// Where the mail goes.
    pub email: String,
    /// `standard`, `premium` or `gold`.
    pub tier: String,
    /// The name.
    pub name: String,
}

/// One line of a cart. Fields may be missing, as in carts that people send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_id: Option<u64>,
    /// How many.
    #[serde(default)]
    pub quantity: i64,
}

/// How it is paid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payment {
    /// `credit_card`.
    pub method: String,
    /// What the customer agreed to.
    pub amount: f64,
    /// `USD`.
    pub currency: String,
    /// The gateway's name for the card.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shipping {
    /// Street and number.
    pub address: String,
    /// City.
    pub city: String,
}

/// An amount in cents; amounts are compared and added as such.
pub(crate) fn cents(amount: f64) -> i64 {
    // Amounts in orders have two decimals, so this is exact.
    (amount * 100.0).round() as i64
}

/// The amount as it is written.
pub(crate) fn amount(cents: i64) -> f64 {
    cents as f64 / 100.0
}

/// Half a pound a piece: up to 2, up to 10, or more.
pub(crate) fn shipping_cents(pieces: i64) -> i64 {
    match pieces {
        ..=4 => 599,
        5..=20 => 999,
        _ => 1499,
    }
}
