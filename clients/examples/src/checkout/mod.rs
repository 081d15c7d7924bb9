//! A checkout: validate_cart → process_payment → update_inventory → create_order →
//! send_confirmation. The payment gateway, the inventory and the mail are HTTP servers; handlers
//! call them as they would call real ones, with the step's id as idempotency key.

mod cart;
mod expected;
mod handlers;
mod money;
mod order;
mod orders;
mod problem;
mod servers;
mod shop;

use serde::Deserialize;

pub use handlers::executor;
pub use money::Money;
pub use order::{Customer, Expectation, Item, Line, Order, Payment, Shipping};
pub use orders::generate;
pub use servers::serve;

/// The definition, as it is registered.
pub const DEFINITION: &str = include_str!("../../checkout/definition.yaml");
/// The shipped orders, one JSON object a line: the order and what must become of it.
pub const ORDERS: &str = include_str!("../../checkout/orders.jsonl");
/// The definition's namespace.
pub const NAMESPACE: &str = "ecommerce";
/// The definition's name.
pub const NAME: &str = "process_order";

/// What must become of an order.
pub fn expected(order: &Order) -> Expectation {
    expected::expected(order, &orders::catalogue())
}

/// Reads orders, one a line: `{"order": …, "expect": …}`. What is expected of a line that does not
/// say it is [`expected`].
pub fn read(text: &str) -> Result<Vec<Line>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Given {
        order: Order,
        expect: Option<Expectation>,
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = lines.map(|(i, line)| {
        let Given { order, expect } =
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1))?;
        let expect = expect.unwrap_or_else(|| expected(&order));
        Ok(Line { order, expect })
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `UPDATE=1 cargo test -p stepwell-examples` writes the file anew.
    #[test]
    fn the_shipped_orders_are_those_that_are_generated() {
        let text: String =
            generate().iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        if std::env::var_os("UPDATE").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkout/orders.jsonl");
            std::fs::write(path, &text).unwrap();
        } else {
            let help = "run UPDATE=1 cargo test -p stepwell-examples";
            assert!(text == ORDERS, "checkout/orders.jsonl is stale: {help}");
            assert_eq!(read(ORDERS).unwrap(), generate());
        }
    }

    #[test]
    fn what_must_become_of_an_order_follows_from_the_order() {
        for (i, line) in generate().into_iter().enumerate() {
            assert_eq!(expected(&line.order), line.expect, "line {}: {:?}", i + 1, line.order);
        }
    }

    #[test]
    fn the_shipped_orders_are_of_every_kind() {
        let lines = generate();
        let count = |wanted: &dyn Fn(&Line) -> bool| lines.iter().filter(|l| wanted(l)).count();
        assert!(lines.len() >= 200);
        for code in [
            "MISSING_CART_ITEMS",
            "MISSING_PRODUCT_ID",
            "INVALID_QUANTITY",
            "PRODUCT_NOT_FOUND",
            "PRODUCT_INACTIVE",
            "PAYMENT_AMOUNT_MISMATCH",
            "MISSING_PAYMENT_TOKEN",
            "PAYMENT_DECLINED",
            "SERVICE_UNAVAILABLE",
            "INSUFFICIENT_STOCK",
            "INVALID_EMAIL",
        ] {
            assert!(count(&|line| line.expect.error_code == code) >= 2, "{code}");
        }
        let token = |token: &str| count(&|line| line.order.payment_info.token == token);
        for wanted in servers::gateway::DECLINED.map(|(token, _)| token) {
            assert!(token(wanted) >= 2, "{wanted}");
        }
        for wanted in [servers::gateway::BUSY_TWICE, servers::gateway::UNAVAILABLE_TWICE] {
            assert!(token(wanted) >= 5, "{wanted}");
        }
        for tier in ["standard", "premium", "gold"] {
            let complete = |line: &Line| {
                line.order.customer_info.tier == tier && line.expect.state == "complete"
            };
            assert!(count(&complete) >= 30, "{tier}");
        }
        let pieces =
            |line: &Line| line.order.cart_items.iter().map(|item| item.quantity).sum::<i64>();
        for range in [1..=4, 5..=20, 21..=999] {
            assert!(count(&|line| range.contains(&pieces(line))) >= 5, "{range:?}");
        }
    }

    #[test]
    fn the_definition_sells_what_the_orders_are_made_of() {
        let catalogue = orders::catalogue();
        assert!(DEFINITION.contains(&format!("tax_percent: {}", catalogue.tax_percent)));
        for (id, product) in &catalogue.products {
            let cart::Product { name, price, active } = product;
            let line = format!("\"{id}\": {{name: {name}, price: {price}, active: {active}}}");
            assert!(DEFINITION.contains(&line), "{line}");
        }
    }

    #[test]
    fn a_line_that_says_nothing_is_judged_by_the_rules() {
        let line = &generate()[3];
        let given = format!("\n{{\"order\": {}}}\n", serde_json::to_string(&line.order).unwrap());
        assert_eq!(read(&given).unwrap()[0].expect, line.expect);
        let wrong = format!("{given}{{\"order\": 1}}\n");
        assert!(read(&wrong).unwrap_err().starts_with("line 3: "));
    }
}
