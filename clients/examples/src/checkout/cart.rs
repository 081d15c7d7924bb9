//! What a cart costs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{money::Money, order::Item, problem::Problem};

/// What there is to buy: the configuration of the step `validate_cart`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Catalogue {
    /// The tax, in hundredths of the subtotal.
    pub(super) tax_percent: i64,
    /// By number.
    pub(super) products: BTreeMap<String, Product>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Product {
    pub(super) name: String,
    pub(super) price: Money,
    /// Whether it is sold.
    pub(super) active: bool,
}

/// A cart, checked and priced: the result of `validate_cart`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cart {
    pub(super) validated_items: Vec<ValidItem>,
    pub(super) subtotal: Money,
    pub(super) tax: Money,
    pub(super) shipping: Money,
    pub(super) total: Money,
    pub(super) item_count: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ValidItem {
    pub(super) product_id: u64,
    pub(super) name: String,
    pub(super) quantity: i64,
    pub(super) price: Money,
    pub(super) line_total: Money,
}

/// More of one product than this is no order of a shop, but a slip.
const QUANTITY_MAX: i64 = 1_000;

impl Catalogue {
    /// Checks and prices a cart.
    pub(super) fn price(&self, items: &[Item]) -> Result<Cart, Problem> {
        if items.is_empty() {
            return Err(Problem::refused("MISSING_CART_ITEMS", "the cart is empty"));
        }
        let items = items.iter().map(|item| self.price_item(item));
        let validated_items = items.collect::<Result<Vec<_>, _>>()?;
        let subtotal: Money = validated_items.iter().map(|item| item.line_total).sum();
        let tax = subtotal.percent(self.tax_percent);
        let shipping = shipping(validated_items.iter().map(|item| item.quantity).sum());
        Ok(Cart {
            item_count: validated_items.len(),
            validated_items,
            subtotal,
            tax,
            shipping,
            total: subtotal + tax + shipping,
        })
    }

    fn price_item(&self, item: &Item) -> Result<ValidItem, Problem> {
        let missing = || Problem::refused("MISSING_PRODUCT_ID", "an item names no product");
        let product_id = item.product_id.ok_or_else(missing)?;
        let quantity = item.quantity;
        if !(1..=QUANTITY_MAX).contains(&quantity) {
            let what = format!("{quantity} of product {product_id}, not 1 to {QUANTITY_MAX}");
            return Err(Problem::refused("INVALID_QUANTITY", what));
        }
        let product = self.products.get(&product_id.to_string()).ok_or_else(|| {
            Problem::refused("PRODUCT_NOT_FOUND", format!("there is no product {product_id}"))
        })?;
        let Product { name, price, active } = product;
        if !active {
            return Err(Problem::refused("PRODUCT_INACTIVE", format!("{name} is not sold")));
        }
        let line_total = price.times(quantity);
        Ok(ValidItem { product_id, name: name.clone(), quantity, price: *price, line_total })
    }
}

/// By weight, half a pound a piece: up to 2 pounds, up to 10, and more.
fn shipping(pieces: i64) -> Money {
    Money::of_cents(match pieces {
        ..=4 => 599,
        5..=20 => 999,
        _ => 1_499,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkout::orders::catalogue;

    fn item(product_id: u64, quantity: i64) -> Item {
        Item {
            product_id: Some(product_id),
            quantity,
            price: Money::default(),
            name: String::new(),
        }
    }

    #[test]
    fn a_cart_is_priced_to_the_cent() {
        let cart = catalogue().price(&[item(1, 2), item(2, 1)]).unwrap();
        let json = serde_json::to_value(&cart).unwrap();
        for (field, written) in
            [("subtotal", "109.97"), ("tax", "8.80"), ("shipping", "5.99"), ("total", "124.76")]
        {
            assert_eq!(json[field].to_string(), written);
        }
        assert_eq!(cart.item_count, 2);
        assert_eq!(cart.validated_items[0].line_total, Money::of_cents(5_998));
    }

    #[test]
    fn shipping_goes_by_weight() {
        for (pieces, cents) in [(1, 599), (4, 599), (5, 999), (20, 999), (21, 1_499), (99, 1_499)] {
            assert_eq!(shipping(pieces), Money::of_cents(cents), "{pieces} pieces");
        }
    }

    #[test]
    fn a_wrong_cart_is_refused_for_what_is_wrong_and_for_good() {
        let nameless = Item { product_id: None, ..item(1, 1) };
        for (items, code) in [
            (vec![], "MISSING_CART_ITEMS"),
            (vec![item(1, 1), nameless], "MISSING_PRODUCT_ID"),
            (vec![item(1, 0)], "INVALID_QUANTITY"),
            (vec![item(1, -1)], "INVALID_QUANTITY"),
            (vec![item(1, i64::MAX)], "INVALID_QUANTITY"),
            (vec![item(99, 1)], "PRODUCT_NOT_FOUND"),
            (vec![item(5, 1)], "PRODUCT_INACTIVE"),
        ] {
            let problem = catalogue().price(&items).unwrap_err();
            assert_eq!(problem, Problem::refused(code, problem.message.clone()));
        }
    }
}
