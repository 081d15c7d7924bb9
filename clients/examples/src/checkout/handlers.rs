//! The handlers: what each step does.

use std::{collections::HashMap, time::Duration};

use reqwest::{Client as Http, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use stepwell_client::{Client, Executor, HandlerError, StepContext};

use super::{
    NAMESPACE,
    order::{Order, amount, cents, shipping_cents},
};

/// An executor of all handlers, which call the servers at this address.
pub fn executor(client: &Client, name: &str, servers: &str, slots: usize) -> Executor {
    let shop = Shop { http: Http::new(), servers: servers.trim_end_matches('/').to_owned() };
    let (payment, inventory, mail) = (shop.clone(), shop.clone(), shop);
    Executor::new(client, name)
        .namespace(NAMESPACE)
        .slots(slots)
        .handler("validate_cart", validate_cart)
        .handler("process_payment", move |step| process_payment(payment.clone(), step))
        .handler("update_inventory", move |step| update_inventory(inventory.clone(), step))
        .handler("create_order", create_order)
        .handler("send_confirmation", move |step| send_confirmation(mail.clone(), step))
}

/// The way to the servers.
#[derive(Clone)]
struct Shop {
    http: Http,
    servers: String,
}

fn refused(code: &str, message: impl Into<String>) -> HandlerError {
    HandlerError::new("OrderRefused", message).code(code).permanent()
}

#[derive(Deserialize)]
struct Pricing {
    tax_percent: i64,
    products: HashMap<String, Product>,
}

#[derive(Deserialize)]
struct Product {
    name: String,
    price: f64,
    active: bool,
}

#[derive(Serialize, Deserialize)]
struct Cart {
    validated_items: Vec<ValidatedItem>,
    subtotal: f64,
    tax: f64,
    shipping: f64,
    total: f64,
    item_count: usize,
}

#[derive(Serialize, Deserialize)]
struct ValidatedItem {
    product_id: u64,
    name: String,
    quantity: i64,
    price: f64,
    line_total: f64,
}

async fn validate_cart(step: StepContext) -> Result<Cart, HandlerError> {
    price(&step.input()?, &step.config()?)
}

/// Prices a cart. Amounts are added up in cents.
fn price(order: &Order, pricing: &Pricing) -> Result<Cart, HandlerError> {
    if order.cart_items.is_empty() {
        return Err(refused("MISSING_CART_ITEMS", "the cart is empty"));
    }
    let mut items = Vec::new();
    for item in &order.cart_items {
        let id = item
            .product_id
            .ok_or_else(|| refused("MISSING_PRODUCT_ID", "an item has no product"))?;
        if item.quantity < 1 {
            return Err(refused("INVALID_QUANTITY", format!("{} of product {id}", item.quantity)));
        }
        let product = pricing
            .products
            .get(&id.to_string())
            .ok_or_else(|| refused("PRODUCT_NOT_FOUND", format!("there is no product {id}")))?;
        if !product.active {
            return Err(refused("PRODUCT_INACTIVE", format!("{} is not sold", product.name)));
        }
        items.push(ValidatedItem {
            product_id: id,
            name: product.name.clone(),
            quantity: item.quantity,
            price: product.price,
            line_total: amount(cents(product.price) * item.quantity),
        });
    }
    let subtotal: i64 = items.iter().map(|i| cents(i.line_total)).sum();
    let tax = (subtotal * pricing.tax_percent + 50) / 100;
    let shipping = shipping_cents(items.iter().map(|i| i.quantity).sum());
    Ok(Cart {
        subtotal: amount(subtotal),
        tax: amount(tax),
        shipping: amount(shipping),
        total: amount(subtotal + tax + shipping),
        item_count: items.len(),
        validated_items: items,
    })
}

#[derive(Serialize, Deserialize)]
struct Charged {
    payment_id: String,
    transaction_id: String,
    amount_charged: f64,
    status: String,
}

async fn process_payment(shop: Shop, step: StepContext) -> Result<Charged, HandlerError> {
    let order: Order = step.input()?;
    let cart: Cart = step.parent("validate_cart").await?;
    let agreed = order.payment_info.amount;
    if cents(agreed) != cents(cart.total) {
        let what = format!("{agreed} was agreed to, the cart costs {}", cart.total);
        return Err(refused("PAYMENT_AMOUNT_MISMATCH", what));
    }
    if order.payment_info.token.is_empty() {
        return Err(refused("MISSING_PAYMENT_TOKEN", "no card was given"));
    }
    let charge = json!({"amount": cart.total, "token": order.payment_info.token});
    shop.call("gateway/charge", &step, &charge, "PAYMENT_DECLINED").await
}

async fn update_inventory(shop: Shop, step: StepContext) -> Result<Value, HandlerError> {
    let order: Order = step.input()?;
    let items = order.cart_items.iter().map(|item| {
        let id = item.product_id.unwrap_or(0).to_string();
        let stock = order.stock.get(&id).copied().unwrap_or(0);
        json!({"product_id": item.product_id, "quantity": item.quantity, "stock": stock})
    });
    let reserve = json!({"items": items.collect::<Vec<_>>()});
    shop.call("inventory/reserve", &step, &reserve, "RESERVATION_REFUSED").await
}

async fn create_order(step: StepContext) -> Result<Value, HandlerError> {
    let order: Order = step.input()?;
    let cart: Cart = step.parent("validate_cart").await?;
    let charged: Charged = step.parent("process_payment").await?;
    // The step's id is the same in every attempt, so the order's number is too.
    let digits: String = step.task_id().chars().filter(char::is_ascii_hexdigit).collect();
    let number = digits[digits.len().saturating_sub(8)..].to_uppercase();
    Ok(json!({
        "order_id": step.task_id(),
        "order_number": format!("ORD-{number}"),
        "status": "confirmed",
        "customer_tier": order.customer_info.tier,
        "total_amount": cart.total,
        "payment_id": charged.payment_id,
    }))
}

async fn send_confirmation(shop: Shop, step: StepContext) -> Result<Value, HandlerError> {
    let order: Order = step.input()?;
    let created: Value = step.parent("create_order").await?;
    let mail = json!({"to": order.customer_info.email, "order": created["order_number"]});
    shop.call("mail/send", &step, &mail, "INVALID_EMAIL").await
}

impl Shop {
    /// Calls a server; the step's id makes repeats harmless.
    async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        step: &StepContext,
        body: &Value,
        refusal: &str,
    ) -> Result<T, HandlerError> {
        let request = self.http.post(format!("{}/{path}", self.servers));
        let request = request.header("idempotency-key", step.step_id()).json(body);
        let response = request.timeout(step.remaining()).send().await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.json().await?);
        }
        let wait = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        let said: Value = response.json().await.unwrap_or_default();
        let error = said["error"].as_str().unwrap_or("no reason given").to_owned();
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => {
                let busy = HandlerError::new("RateLimited", error).code("RATE_LIMITED");
                busy.retry_after(Duration::from_secs(wait.unwrap_or(1)))
            }
            StatusCode::CONFLICT => {
                HandlerError::new("InsufficientStock", error).code("INSUFFICIENT_STOCK")
            }
            status if status.is_client_error() => refused(refusal, error),
            _ => HandlerError::new("ServiceUnavailable", error).code("SERVICE_UNAVAILABLE"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkout::order::Item;

    fn pricing() -> Pricing {
        serde_json::from_value(json!({"tax_percent": 8, "products": {
            "1": {"name": "Widget A", "price": 29.99, "active": true},
            "2": {"name": "Widget B", "price": 49.99, "active": true},
        }}))
        .expect("well formed")
    }

    #[test]
    fn a_cart_is_priced_to_the_cent() {
        let mut order = crate::checkout::generate()[0].order.clone();
        let item = |id, quantity| Item { product_id: Some(id), quantity };
        order.cart_items = vec![item(1, 2), item(2, 1)];
        let cart = price(&order, &pricing()).expect("a good cart");
        let amounts = (cart.subtotal, cart.tax, cart.shipping, cart.total, cart.item_count);
        assert_eq!(amounts, (109.97, 8.80, 5.99, 124.76, 2));
    }
}
