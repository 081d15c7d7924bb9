//! What a cart costs, with and without its discounts.

use serde::{Deserialize, Serialize};

use crate::checkout::Money;

/// A cart as the API has it.
#[derive(Serialize, Deserialize)]
pub(super) struct Cart {
    pub(super) id: u64,
    pub(super) user_id: u64,
    pub(super) products: Vec<Wanted>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) product_id: u64,
    quantity: i64,
    discount_percentage: Percent,
}

/// A product as the API has it.
#[derive(Serialize, Deserialize)]
pub(super) struct Product {
    pub(super) id: u64,
    title: String,
    price: Money,
}

/// A line of a cart whose product there is.
#[derive(Serialize, Deserialize)]
pub(super) struct Line {
    product_id: u64,
    title: String,
    price: Money,
    quantity: i64,
    discount_percentage: Percent,
}

/// Hundredths with two decimals, read and written as money is.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
struct Percent(Money);

impl Percent {
    /// What is left of so many cents, in ten-thousandths of a cent.
    fn off(self, cents: i64) -> i64 {
        cents * (10_000 - self.0.cents())
    }
}

impl Line {
    pub(super) fn of(wanted: &Wanted, product: &Product) -> Self {
        Self {
            product_id: product.id,
            title: product.title.clone(),
            price: product.price,
            quantity: wanted.quantity,
            discount_percentage: wanted.discount_percentage,
        }
    }
}

/// The total, and the total with discounts: rounded to the cent once, at the end, halves up.
pub(super) fn totals(lines: &[Line]) -> (Money, Money) {
    let full = |line: &Line| line.price.times(line.quantity);
    let left: i64 = lines.iter().map(|line| line.discount_percentage.off(full(line).cents())).sum();
    (lines.iter().map(full).sum(), Money::of_cents((left + 5_000) / 10_000))
}
