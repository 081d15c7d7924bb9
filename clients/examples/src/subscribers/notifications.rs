//! Mails about orders: to the customer when an order is written and sent, to the shop when one fails.

use std::{collections::HashMap, io::Write, sync::Mutex};

use serde::Deserialize;
use stepwell_client::{EventFacts, EventHandler, HandlerError, v1::*};

use crate::checkout::Money;

/// Customers whose orders are under way; for those beyond, the shop is written to.
const CUSTOMERS_MAX: usize = 10_000;

/// Writes what would be mailed, a line for each, to `out`.
pub struct OrderNotifications<W> {
    /// Who in the shop is told of orders that fail.
    shop: String,
    customers: Mutex<HashMap<String, String>>,
    out: Mutex<W>,
}

/// What this reads of the checkout's context.
#[derive(Deserialize)]
struct Order {
    customer_info: Customer,
}

#[derive(Deserialize)]
struct Customer {
    email: String,
}

/// What this reads of the result of `create_order`.
#[derive(Deserialize)]
struct Created {
    order_number: String,
    total_amount: Money,
}

impl<W: Write + Send + 'static> OrderNotifications<W> {
    /// The shop's address, and where mails go.
    pub fn new(shop: impl Into<String>, out: W) -> Self {
        Self { shop: shop.into(), customers: Mutex::default(), out: Mutex::new(out) }
    }

    fn mail(&self, to: &str, text: &str) -> Result<(), HandlerError> {
        let mut out =
            self.out.lock().map_err(|_| HandlerError::new("Poisoned", "no more mails"))?;
        writeln!(out, "to {to}: {text}")?;
        Ok(out.flush()?)
    }

    fn customer(&self, task_id: &str) -> String {
        let customers = self.customers.lock().ok();
        let found = customers.and_then(|customers| customers.get(task_id).cloned());
        found.unwrap_or_else(|| self.shop.clone())
    }

    fn forget(&self, task_id: &str) {
        if let Ok(mut customers) = self.customers.lock() {
            customers.remove(task_id);
        }
    }
}

impl<W: Write + Send + 'static> EventHandler for OrderNotifications<W> {
    fn subscribe_to(&self) -> Vec<&str> {
        vec![
            "task.initialize_requested",
            "step.completed",
            "task.completed",
            "task.failed",
            "task.cancelled",
        ]
    }

    fn should_process(&self, event: &Event) -> bool {
        event.step_name.is_empty() || event.step_name == "create_order"
    }

    async fn handle_task_initialize_requested(
        &self,
        event: &Event,
        _: &TaskInitializeRequested,
    ) -> Result<(), HandlerError> {
        if let Some(order) = event.context::<Order>()
            && let Ok(mut customers) = self.customers.lock()
            && customers.len() < CUSTOMERS_MAX
        {
            customers.insert(event.task_id.clone(), order.customer_info.email);
        }
        Ok(())
    }

    async fn handle_step_completed(
        &self,
        event: &Event,
        _: &StepCompleted,
    ) -> Result<(), HandlerError> {
        let Some(Created { order_number, total_amount }) = event.result() else {
            return Err(HandlerError::new("NoOrder", "create_order returned no order"));
        };
        let text = format!("your order {order_number} over {total_amount} is confirmed");
        self.mail(&self.customer(&event.task_id), &text)
    }

    async fn handle_task_completed(
        &self,
        event: &Event,
        _: &TaskCompleted,
    ) -> Result<(), HandlerError> {
        self.forget(&event.task_id);
        Ok(())
    }

    async fn handle_task_cancelled(
        &self,
        event: &Event,
        _: &TaskCancelled,
    ) -> Result<(), HandlerError> {
        self.forget(&event.task_id);
        Ok(())
    }

    async fn handle_task_failed(
        &self,
        event: &Event,
        failed: &TaskFailed,
    ) -> Result<(), HandlerError> {
        let customer = self.customer(&event.task_id);
        let (task, steps) = (&event.task_id, failed.failed_steps.join(", "));
        self.mail(&self.shop, &format!("the order of {customer} failed at {steps} (task {task})"))?;
        // One that could not be sent comes again.
        self.forget(&event.task_id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stepwell_client::testing;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_customer_hears_of_an_order_and_the_shop_of_a_failure() {
        let sink = Sink::default();
        let mails = OrderNotifications::new("ops@shop", sink.clone());
        let context = r#"{"customer_info": {"email": "ada@example.com"}}"#.to_owned();
        let created = TaskInitializeRequested { context, ..Default::default() };
        let result = r#"{"order_number": "ORD-1", "total_amount": 38.38}"#.to_owned();
        let mut written = testing::event(StepCompleted { result, ..Default::default() });
        written.step_name = "create_order".into();
        let failed = testing::sample("task.failed").unwrap();
        for event in [testing::event(created), written.clone(), failed.clone()] {
            assert!(testing::handle(&mails, &event).await.unwrap());
        }
        let other = Event { step_name: "validate_cart".into(), ..written.clone() };
        assert!(!testing::handle(&mails, &other).await.unwrap());
        written.detail = Some(StepCompleted::default().into());
        assert!(testing::handle(&mails, &written).await.is_err(), "it comes again, or is logged");
        let said = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let task = failed.task_id;
        assert_eq!(
            said,
            format!(
                "to ada@example.com: your order ORD-1 over 38.38 is confirmed\n\
                 to ops@shop: the order of ada@example.com failed at charge (task {task})\n"
            )
        );
    }
}
