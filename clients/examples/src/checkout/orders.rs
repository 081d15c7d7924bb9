//! The shipped orders are made here, always the same: mixed carts, and every way to fail.

use std::collections::BTreeMap;

use super::order::{
    Customer, Expectation, Item, Line, Order, Payment, Shipping, amount, cents, shipping_cents,
};

const ORDERS: u64 = 240;
const PRICES: [(u64, f64); 4] = [(1, 29.99), (2, 49.99), (3, 19.99), (4, 89.50)];
const TIERS: [&str; 3] = ["standard", "premium", "gold"];
const NAMES: [&str; 6] =
    ["Ada Green", "Bert Hill", "Cleo Moss", "Dan Vale", "Eve Stone", "Finn Brook"];

/// The orders with what must become of them.
pub fn generate() -> Vec<Line> {
    (0..ORDERS).map(line).collect()
}

fn line(n: u64) -> Line {
    let order = good(n);
    let nth = n / 24;
    match n % 24 {
        3 => gateway_works_at_last(order, "tok_busy_twice"),
        7 => gateway_works_at_last(order, "tok_unavailable_twice"),
        10 => declined(order, nth),
        13 => invalid(order, nth),
        16 => invalid(order, nth + 4),
        18 => out_of_stock(order),
        21 => mail_works_at_last(order),
        22 => invalid(order, nth + 2),
        _ => Line { order, expect: complete(&[]) },
    }
}

fn good(n: u64) -> Order {
    let kinds = 1 + n % 3;
    let items: Vec<Item> = (0..kinds)
        .map(|i| Item {
            product_id: Some(PRICES[usize::try_from((n + i) % 4).unwrap_or(0)].0),
            quantity: i64::try_from(1 + (n / 4 + i) % 5).unwrap_or(1),
        })
        .collect();
    let place = |list: &[&str]| list[usize::try_from(n).unwrap_or(0) % list.len()].to_owned();
    let name = place(&NAMES);
    Order {
        customer_info: Customer {
            id: 1000 + n,
            email: format!("{}.{n}@example.com", name.to_lowercase().replace(' ', ".")),
            tier: place(&TIERS),
            name,
        },
        payment_info: Payment {
            method: "credit_card".into(),
            amount: amount(total_cents(&items)),
            currency: "USD".into(),
            token: "tok_visa_valid".into(),
        },
        shipping_info: Shipping { address: format!("{} Main St", 1 + n), city: "Anytown".into() },
        stock: PRICES.iter().map(|(id, _)| (id.to_string(), 100)).collect(),
        cart_items: items,
    }
}

fn total_cents(items: &[Item]) -> i64 {
    let price = |id: u64| PRICES.iter().find(|(p, _)| *p == id).map_or(0, |(_, p)| cents(*p));
    let subtotal: i64 = items.iter().map(|i| price(i.product_id.unwrap_or(0)) * i.quantity).sum();
    let pieces = items.iter().map(|i| i.quantity).sum();
    subtotal + (subtotal * 8 + 50) / 100 + shipping_cents(pieces)
}

fn complete(attempts: &[(&str, i32)]) -> Expectation {
    let attempts = attempts.iter().map(|(step, n)| ((*step).to_owned(), *n)).collect();
    Expectation { state: "complete".into(), attempts, ..Expectation::default() }
}

fn fails(step: &str, code: &str) -> Expectation {
    Expectation {
        state: "error".into(),
        failed_step: step.into(),
        error_code: code.into(),
        attempts: BTreeMap::new(),
    }
}

fn gateway_works_at_last(mut order: Order, token: &str) -> Line {
    order.payment_info.token = token.into();
    Line { order, expect: complete(&[("process_payment", 3)]) }
}

fn mail_works_at_last(mut order: Order) -> Line {
    order.customer_info.email = format!("busy-once.{}", order.customer_info.email);
    Line { order, expect: complete(&[("send_confirmation", 2)]) }
}

fn declined(mut order: Order, nth: u64) -> Line {
    let tokens = ["tok_insufficient_funds", "tok_card_declined", "tok_invalid_card"];
    order.payment_info.token = tokens[usize::try_from(nth % 3).unwrap_or(0)].into();
    Line { order, expect: fails("process_payment", "PAYMENT_DECLINED") }
}

fn out_of_stock(mut order: Order) -> Line {
    if let Some(id) = order.cart_items[0].product_id {
        order.stock.insert(id.to_string(), 0);
    }
    let mut expect = fails("update_inventory", "INSUFFICIENT_STOCK");
    expect.attempts.insert("update_inventory".into(), 2);
    Line { order, expect }
}

fn invalid(mut order: Order, nth: u64) -> Line {
    let (step, code) = match nth % 8 {
        0 => {
            order.cart_items.clear();
            ("validate_cart", "MISSING_CART_ITEMS")
        }
        1 => {
            order.cart_items[0].product_id = None;
            ("validate_cart", "MISSING_PRODUCT_ID")
        }
        2 => {
            order.cart_items[0].quantity = 0;
            ("validate_cart", "INVALID_QUANTITY")
        }
        3 => {
            order.cart_items[0].product_id = Some(99);
            ("validate_cart", "PRODUCT_NOT_FOUND")
        }
        4 => {
            order.cart_items[0].product_id = Some(5);
            ("validate_cart", "PRODUCT_INACTIVE")
        }
        5 => {
            order.payment_info.amount = amount(cents(order.payment_info.amount) + 1);
            ("process_payment", "PAYMENT_AMOUNT_MISMATCH")
        }
        6 => {
            order.payment_info.token.clear();
            ("process_payment", "MISSING_PAYMENT_TOKEN")
        }
        _ => {
            order.customer_info.email = "nobody".into();
            ("send_confirmation", "INVALID_EMAIL")
        }
    };
    Line { order, expect: fails(step, code) }
}
