//! The shipped orders are made here, always the same: mixed carts, and every way to fail. What must
//! become of each is known from how it is made.

use std::collections::BTreeMap;

use super::{
    cart::{Catalogue, Product},
    money::Money,
    order::{Customer, Expectation, Item, Line, Order, Payment, Shipping},
    servers::{gateway, mail},
};

const ORDERS: usize = 240;
const TIERS: [&str; 3] = ["standard", "premium", "gold"];
const NAMES: [&str; 6] =
    ["Ada Green", "Bert Hill", "Cleo Moss", "Dan Vale", "Eve Stone", "Finn Brook"];
/// The steps, in their order.
const STEPS: [&str; 5] =
    ["validate_cart", "process_payment", "update_inventory", "create_order", "send_confirmation"];
/// Number, name, price in cents, and whether it is sold.
const PRODUCTS: [(u64, &str, i64, bool); 5] = [
    (1, "Widget A", 2_999, true),
    (2, "Widget B", 4_999, true),
    (3, "Widget C", 1_999, true),
    (4, "Gadget", 8_950, true),
    (5, "Retired gadget", 999, false),
];
/// Of these, the ones that are sold come first.
const SOLD: usize = 4;

/// What there is to buy, as the definition says.
pub(super) fn catalogue() -> Catalogue {
    let products = PRODUCTS.map(|(id, name, cents, active)| {
        let product = Product { name: name.into(), price: Money::of_cents(cents), active };
        (id.to_string(), product)
    });
    Catalogue { tax_percent: 8, products: products.into() }
}

/// The orders with what must become of them.
pub fn generate() -> Vec<Line> {
    (0..ORDERS).map(line).collect()
}

/// Of each 24 orders, 15 or 16 go through at once.
fn line(n: usize) -> Line {
    let order = good(n);
    let (round, place) = (n / 24, n % 24);
    match place {
        3 => gateway_works_at_last(order, gateway::BUSY_TWICE),
        7 => gateway_works_at_last(order, gateway::UNAVAILABLE_TWICE),
        10 => declined(order, round),
        13 => invalid(order, round),
        15 if round % 3 == 0 => gateway_never_works(order),
        16 => invalid(order, round + 4),
        18 => out_of_stock(order),
        21 => mail_works_at_last(order),
        22 => invalid(order, round + 2),
        _ => complete(order, &[]),
    }
}

fn good(n: usize) -> Order {
    // Every eleventh is a large one.
    let pieces = if n % 11 == 5 { 12 } else { 1 };
    let kinds = 1 + n % 3;
    let items: Vec<Item> = (0..kinds)
        .map(|i| {
            let (id, name, cents, _) = PRODUCTS[(n + i) % SOLD];
            let quantity = i64::try_from((1 + (n / 4 + i) % 5) * pieces).expect("at most 60");
            let (price, name) = (Money::of_cents(cents), name.to_owned());
            Item { product_id: Some(id), quantity, price, name }
        })
        .collect();
    let name = NAMES[n % NAMES.len()];
    Order {
        customer_info: Customer {
            id: 1_000 + u64::try_from(n).expect("a small number"),
            email: format!("{}.{n}@example.com", name.to_lowercase().replace(' ', ".")),
            // Not in step with the sizes of carts.
            tier: TIERS[(n + n / 3) % TIERS.len()].to_owned(),
            name: name.to_owned(),
        },
        payment_info: Payment {
            method: "credit_card".into(),
            amount: cost(&items),
            currency: "USD".into(),
            token: gateway::VALID.into(),
        },
        shipping_info: Shipping {
            address: format!("{} Main St", 1 + n),
            city: "Anytown, NY 12345".into(),
        },
        stock: PRODUCTS[..SOLD].iter().map(|(id, ..)| (id.to_string(), 100)).collect(),
        cart_items: items,
    }
}

fn cost(items: &[Item]) -> Money {
    catalogue().price(items).expect("a good cart").total
}

/// Through all steps; those named take so many attempts.
fn complete(order: Order, attempts: &[(&str, i32)]) -> Line {
    let attempts = tried_until("send_confirmation", attempts);
    Line { order, expect: Expectation { state: "complete".into(), attempts, ..Default::default() } }
}

/// Up to a step that fails after so many attempts.
fn fails(order: Order, step: &str, attempts: i32, code: &str) -> Line {
    let expect = Expectation {
        state: "error".into(),
        failed_step: step.into(),
        error_code: code.into(),
        attempts: tried_until(step, &[(step, attempts)]),
    };
    Line { order, expect }
}

fn tried_until(last: &str, attempts: &[(&str, i32)]) -> BTreeMap<String, i32> {
    let reached = 1 + STEPS.iter().position(|step| *step == last).expect("one of the steps");
    let once = STEPS[..reached].iter().map(|step| (*step, 1));
    once.chain(attempts.iter().copied()).map(|(step, n)| (step.to_owned(), n)).collect()
}

fn gateway_works_at_last(mut order: Order, token: &str) -> Line {
    order.payment_info.token = token.into();
    complete(order, &[("process_payment", 3)])
}

fn gateway_never_works(mut order: Order) -> Line {
    order.payment_info.token = gateway::UNAVAILABLE.into();
    fails(order, "process_payment", 3, "SERVICE_UNAVAILABLE")
}

fn mail_works_at_last(mut order: Order) -> Line {
    order.customer_info.email.insert_str(0, mail::BUSY_ONCE);
    complete(order, &[("send_confirmation", 2)])
}

fn declined(mut order: Order, round: usize) -> Line {
    order.payment_info.token = gateway::DECLINED[round % gateway::DECLINED.len()].0.into();
    fails(order, "process_payment", 1, "PAYMENT_DECLINED")
}

fn out_of_stock(mut order: Order) -> Line {
    let Item { product_id, quantity, .. } = order.cart_items[0];
    order.stock.insert(product_id.unwrap_or_default().to_string(), quantity - 1);
    fails(order, "update_inventory", 2, "INSUFFICIENT_STOCK")
}

fn invalid(mut order: Order, nth: usize) -> Line {
    let first = &mut order.cart_items[0];
    let (step, code) = match nth % 8 {
        0 => {
            order.cart_items.clear();
            ("validate_cart", "MISSING_CART_ITEMS")
        }
        1 => {
            first.product_id = None;
            ("validate_cart", "MISSING_PRODUCT_ID")
        }
        2 => {
            first.quantity = 0;
            ("validate_cart", "INVALID_QUANTITY")
        }
        3 => {
            first.product_id = Some(99);
            ("validate_cart", "PRODUCT_NOT_FOUND")
        }
        4 => {
            first.product_id = Some(5);
            ("validate_cart", "PRODUCT_INACTIVE")
        }
        5 => {
            let cents = order.payment_info.amount.cents() + 1;
            order.payment_info.amount = Money::of_cents(cents);
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
    fails(order, step, 1, code)
}
