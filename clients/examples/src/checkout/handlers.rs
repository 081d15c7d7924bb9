//! The handlers: what each step does. They read the order and what their parents returned, and
//! leave the work to the cart and the shop; what those refuse becomes the step's failure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use stepwell_client::{Client, Executor, HandlerError, StepContext};
use uuid::Uuid;

use super::{
    NAMESPACE,
    cart::{Cart, Catalogue},
    money::Money,
    order::Order,
    shop::{Call, Confirmation, Paid, Reservation, Shop},
};

/// An executor of all handlers, which call the servers at this address.
pub fn executor(client: &Client, name: &str, servers: &str, slots: usize) -> Executor {
    let shop = Shop::at(servers);
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

async fn validate_cart(step: StepContext) -> Result<Cart, HandlerError> {
    let order: Order = step.input()?;
    let catalogue: Catalogue = step.config()?;
    Ok(catalogue.price(&order.cart_items)?)
}

async fn process_payment(shop: Shop, step: StepContext) -> Result<Paid, HandlerError> {
    let order: Order = step.input()?;
    let cart: Cart = step.parent("validate_cart").await?;
    Ok(shop.pay(&call(&step), &order.payment_info, cart.total).await?)
}

async fn update_inventory(shop: Shop, step: StepContext) -> Result<Reservation, HandlerError> {
    let order: Order = step.input()?;
    let cart: Cart = step.parent("validate_cart").await?;
    Ok(shop.reserve(&call(&step), &cart.validated_items, &order.stock).await?)
}

/// An order, written: the result of `create_order`.
#[derive(Serialize, Deserialize)]
struct Created {
    order_id: String,
    order_number: String,
    status: String,
    customer_tier: String,
    total_amount: Money,
    payment_id: String,
    items_reserved: i64,
}

async fn create_order(step: StepContext) -> Result<Created, HandlerError> {
    let order: Order = step.input()?;
    let cart: Cart = step.parent("validate_cart").await?;
    let paid: Paid = step.parent("process_payment").await?;
    let reserved: Reservation = step.parent("update_inventory").await?;
    Ok(Created {
        order_id: step.task_id().to_owned(),
        order_number: order_number(step.task_id()),
        status: "confirmed".into(),
        customer_tier: order.customer_info.tier,
        total_amount: cart.total,
        payment_id: paid.payment_id,
        items_reserved: reserved.total_items_reserved,
    })
}

async fn send_confirmation(shop: Shop, step: StepContext) -> Result<Confirmation, HandlerError> {
    let order: Order = step.input()?;
    let created: Created = step.parent("create_order").await?;
    let to = &order.customer_info.email;
    Ok(shop.confirm(&call(&step), to, &created.order_number).await?)
}

/// The step's id is the same in every attempt: whatever a server did for an attempt whose outcome
/// was lost, it does not do again.
fn call(step: &StepContext) -> Call<'_> {
    Call { idempotency_key: step.step_id(), timeout: step.remaining() }
}

/// `ORD-`, the day and eight digits: the same in every attempt, since all of it is the task's id.
fn order_number(task_id: &str) -> String {
    let id = Uuid::parse_str(task_id).unwrap_or_default();
    // Of an id that carries no time, the day is today's.
    let seconds = id.get_timestamp().and_then(|at| i64::try_from(at.to_unix().0).ok());
    let day = seconds.and_then(|s| DateTime::from_timestamp(s, 0)).unwrap_or_else(Utc::now);
    let digits = id.simple().to_string().to_uppercase();
    format!("ORD-{}-{}", day.format("%Y%m%d"), &digits[24..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_one_number() {
        let id = "0193b3f0-6f3a-7000-8000-0000deadbeef";
        assert_eq!(order_number(id), "ORD-20241211-DEADBEEF");
    }
}
