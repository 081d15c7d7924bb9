//! A checkout: validate_cart → process_payment → update_inventory → create_order →
//! send_confirmation. The payment gateway, the inventory and the mail are HTTP servers; handlers
//! call them as they would call real ones, with the step's id as idempotency key.

mod handlers;
mod order;
mod orders;
mod servers;

pub use handlers::executor;
pub use order::{Expectation, Line, Order};
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

/// Reads orders, one a line.
pub fn read(text: &str) -> Result<Vec<Line>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `UPDATE=1 cargo test -p stepwell-examples` writes the file anew.
    #[test]
    fn the_shipped_orders_are_those_that_are_generated() {
        let text: String = generate()
            .iter()
            .map(|line| serde_json::to_string(line).expect("plain data") + "\n")
            .collect();
        if std::env::var_os("UPDATE").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkout/orders.jsonl");
            std::fs::write(path, &text).expect("it is our file");
        } else {
            assert!(text == ORDERS, "checkout/orders.jsonl is stale: run UPDATE=1 cargo test");
        }
    }

    #[test]
    fn the_shipped_orders_are_of_every_kind() {
        let lines = generate();
        assert!(lines.len() >= 200);
        let with = |code: &str| lines.iter().filter(|l| l.expect.error_code == code).count();
        for code in [
            "MISSING_CART_ITEMS",
            "MISSING_PRODUCT_ID",
            "INVALID_QUANTITY",
            "PRODUCT_NOT_FOUND",
            "PRODUCT_INACTIVE",
            "PAYMENT_AMOUNT_MISMATCH",
            "MISSING_PAYMENT_TOKEN",
            "PAYMENT_DECLINED",
            "INSUFFICIENT_STOCK",
            "INVALID_EMAIL",
        ] {
            assert!(with(code) >= 2, "{code}");
        }
        let twice = |l: &&Line| l.expect.attempts.get("process_payment") == Some(&3);
        assert!(lines.iter().filter(twice).count() >= 10);
    }
}
