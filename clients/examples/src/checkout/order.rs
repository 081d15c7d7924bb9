//! An order as it is given, which is the context of its task, and what must become of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::money::Money;

/// One line of the orders' file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The order: the task's context.
    pub order: Order,
    /// What must become of it.
    pub expect: Expectation,
}

/// How the order's task must end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// `complete` or `error`.
    pub state: String,
    /// The step that fails; empty when none does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failed_step: String,
    /// Its error code.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error_code: String,
    /// Attempts of each step that is tried at all.
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
    /// What the inventory holds for this order, by product. Each order states its own, so that what
    /// becomes of it does not depend on which was first.
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

/// One line of a cart. The product and the quantity may be missing, as in carts that people send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_id: Option<u64>,
    /// How many.
    #[serde(default)]
    pub quantity: i64,
    /// The price of one that the customer saw. The catalogue's counts.
    #[serde(default)]
    pub price: Money,
    /// Its name, as the customer saw it.
    #[serde(default)]
    pub name: String,
}

/// How it is paid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payment {
    /// `credit_card`.
    pub method: String,
    /// What the customer agreed to.
    pub amount: Money,
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
    /// City, state and code.
    pub city: String,
}
