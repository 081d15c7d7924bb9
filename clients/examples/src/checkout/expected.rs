//! What must become of an order, said of the order alone: no step runs for it.

use std::collections::BTreeMap;

use super::{
    cart::{Cart, Catalogue},
    order::{Expectation, Order},
    servers::{gateway, mail},
};

/// Attempts that the definition allows where they matter.
const PAYMENT_ATTEMPTS: i32 = 3;
const INVENTORY_ATTEMPTS: i32 = 2;

/// How the order's task must end. `catalogue` is what the definition says of `validate_cart`.
pub(super) fn expected(order: &Order, catalogue: &Catalogue) -> Expectation {
    let mut walk = Walk { attempts: BTreeMap::new() };
    let failed = walk.through(order, catalogue).err();
    let (failed_step, error_code) = failed.unwrap_or_default();
    let state = if failed_step.is_empty() { "complete" } else { "error" };
    Expectation {
        state: state.to_owned(),
        failed_step: failed_step.to_owned(),
        error_code: error_code.to_owned(),
        attempts: walk.attempts,
    }
}

/// The steps gone through, and how often each is tried.
struct Walk {
    attempts: BTreeMap<String, i32>,
}

/// A step that fails for good, and the code it fails with.
type Failed = (&'static str, &'static str);

impl Walk {
    fn through(&mut self, order: &Order, catalogue: &Catalogue) -> Result<(), Failed> {
        self.tried("validate_cart", 1);
        let cart = catalogue.price(&order.cart_items);
        let cart = cart.map_err(|problem| ("validate_cart", problem.code))?;
        self.pay(order, &cart)?;
        let short = is_short(order, &cart);
        self.tried("update_inventory", if short { INVENTORY_ATTEMPTS } else { 1 });
        if short {
            return Err(("update_inventory", "INSUFFICIENT_STOCK"));
        }
        self.tried("create_order", 1);
        let to = order.customer_info.email.as_str();
        let is_put_off = mail::is_address(to) && to.starts_with(mail::BUSY_ONCE);
        self.tried("send_confirmation", if is_put_off { 2 } else { 1 });
        if mail::is_address(to) { Ok(()) } else { Err(("send_confirmation", "INVALID_EMAIL")) }
    }

    fn pay(&mut self, order: &Order, cart: &Cart) -> Result<(), Failed> {
        let step = "process_payment";
        let payment = &order.payment_info;
        let token = payment.token.as_str();
        let refusal = if payment.amount != cart.total {
            Some("PAYMENT_AMOUNT_MISMATCH")
        } else if token.is_empty() {
            Some("MISSING_PAYMENT_TOKEN")
        } else if gateway::DECLINED.iter().any(|(declined, _)| *declined == token) {
            Some("PAYMENT_DECLINED")
        } else {
            None
        };
        if let Some(code) = refusal {
            self.tried(step, 1);
            return Err((step, code));
        }
        let troubled = [gateway::BUSY_TWICE, gateway::UNAVAILABLE_TWICE, gateway::UNAVAILABLE];
        self.tried(step, if troubled.contains(&token) { PAYMENT_ATTEMPTS } else { 1 });
        if token == gateway::UNAVAILABLE { Err((step, "SERVICE_UNAVAILABLE")) } else { Ok(()) }
    }

    fn tried(&mut self, step: &str, attempts: i32) {
        self.attempts.insert(step.to_owned(), attempts);
    }
}

/// True when the stock lacks something of the cart.
fn is_short(order: &Order, cart: &Cart) -> bool {
    let mut wanted: BTreeMap<String, i64> = BTreeMap::new();
    for item in &cart.validated_items {
        *wanted.entry(item.product_id.to_string()).or_default() += item.quantity;
    }
    wanted.iter().any(|(product, quantity)| order.stock.get(product).unwrap_or(&0) < quantity)
}
