//! The handlers, and the executor of the calls.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use stepwell_client::{Client, Executor, HandlerError, StepContext};
use stepwell_http::{AllowedHost, Hosts, Secrets, Settings};

use super::{
    NAMESPACE,
    price::{Cart, Line, Product, totals},
};
use crate::checkout::Money;

pub(super) fn executors(client: &Client, servers: &str) -> Result<Vec<Executor>, String> {
    let host = servers.strip_prefix("http://").ok_or("the servers are at http://host:port")?;
    let host: AllowedHost = host.parse().map_err(|error| format!("{servers}: {error}"))?;
    let settings = Settings {
        hosts: Hosts::new([host]),
        secrets: Secrets::from_env().map_err(|error| error.to_string())?,
        ..Settings::default()
    };
    let calls = stepwell_http::executor(client, "cart-calls", settings);
    let calls = calls.map_err(|error| error.to_string())?.namespace(NAMESPACE);
    let handlers = Executor::new(client, "cart")
        .namespace(NAMESPACE)
        .handler("validate_products", validate_products)
        .handler("create_order", create_order)
        .handler("publish_event", publish_event);
    Ok(vec![calls, handlers])
}

fn refused(code: &str, message: String) -> HandlerError {
    HandlerError::new("CartRefused", message).code(code).permanent()
}

/// A member of what a parent returned. A step that was resolved by hand without a result, or a server that
/// answered something else, leaves it missing.
async fn member<T: DeserializeOwned>(
    step: &StepContext,
    parent: &str,
    name: &str,
) -> Result<T, HandlerError> {
    let result: Value = step.parent(parent).await?;
    let missing = |why| refused("MISSING_STEP_RESULTS", format!("{parent} has no {name}: {why}"));
    let of = result.get(name).ok_or_else(|| missing("it is not there".to_owned()))?;
    T::deserialize(of).map_err(|error| missing(error.to_string()))
}

/// The result of `validate_products`: the lines in the order of the cart.
#[derive(Serialize, Deserialize)]
struct Validated {
    valid_products: Vec<Line>,
}

async fn validate_products(step: StepContext) -> Result<Validated, HandlerError> {
    let cart: Cart = member(&step, "fetch_cart", "cart").await?;
    let products: Vec<Product> = member(&step, "fetch_products", "products").await?;
    let products: BTreeMap<u64, Product> =
        products.into_iter().map(|product| (product.id, product)).collect();
    let lines = cart.products.iter().map(|wanted| {
        let product = products.get(&wanted.product_id).ok_or_else(|| {
            refused("PRODUCT_NOT_FOUND", format!("there is no product {}", wanted.product_id))
        })?;
        Ok(Line::of(wanted, product))
    });
    let valid_products: Vec<Line> = lines.collect::<Result<_, HandlerError>>()?;
    if valid_products.is_empty() {
        let what = format!("cart {} has no products", cart.id);
        return Err(refused("INVALID_CART_PRODUCTS", what));
    }
    Ok(Validated { valid_products })
}

/// The result of `create_order`.
#[derive(Serialize, Deserialize)]
struct Order {
    order_id: u64,
    user_id: u64,
    total: Money,
    discounted_total: Money,
}

async fn create_order(step: StepContext) -> Result<Order, HandlerError> {
    let cart: Cart = member(&step, "fetch_cart", "cart").await?;
    let validated: Validated = step.parent("validate_products").await?;
    let (total, discounted_total) = totals(&validated.valid_products);
    // One order of a cart: its number is the cart's.
    Ok(Order { order_id: cart.id, user_id: cart.user_id, total, discounted_total })
}

async fn publish_event(step: StepContext) -> Result<Value, HandlerError> {
    let order: Order = step.parent("create_order").await?;
    let placed = json!({"order_id": order.order_id, "total": order.discounted_total});
    step.publish_at_end("order.placed", &placed)?;
    let results = json!({"order_id": order.order_id, "status": "placed_pending_fulfillment"});
    Ok(json!({"published": true, "publish_results": results}))
}
