//! A refund over two namespaces whose definitions have one name: customer success checks and asks a person,
//! payments give the money back. The one's task starts the other's, and waits for it without a slot.

mod customer_success;
mod payments;
mod servers;

use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stepwell_client::{Client, Executor, HandlerError, StepContext};

use crate::{caller::Caller, example::Example};

/// The example.
pub const EXAMPLE: Example = Example {
    name: "refund",
    about: "two namespaces, a person's approval, a task that starts another",
    definitions: &[
        (customer_success::NAMESPACE, include_str!("../../refund/customer_success.yaml")),
        (payments::NAMESPACE, include_str!("../../refund/payments.yaml")),
    ],
    of: (customer_success::NAMESPACE, NAME),
    inputs: include_str!("../../refund/inputs.json"),
    servers: servers::routes,
    executors,
};

/// The name of both definitions.
const NAME: &str = "process_refund";
/// Servers that ask to wait and do not say how long are given this; it is also how long they may take.
const WAIT: std::time::Duration = std::time::Duration::from_secs(5);

fn executors(client: &Client, servers: &str) -> Result<Vec<Executor>, String> {
    let caller = Caller::at(servers);
    Ok(vec![customer_success::executor(client, caller.clone()), payments::executor(client, caller)])
}

async fn call<T: DeserializeOwned>(
    caller: &Caller,
    step: &StepContext,
    call: (Method, &str),
    body: Option<&Value>,
) -> Result<T, HandlerError> {
    caller.call(step, call, body, WAIT).await?.into_success(WAIT)
}

/// A refund that is not to be: it fails for good.
#[track_caller]
fn refused(code: &str, message: impl Into<String>) -> HandlerError {
    HandlerError::new("RefundRefused", message).code(code).permanent()
}

/// Sees that a payment's id is `pay_` and letters or digits.
fn payment_id(id: &str) -> Result<(), HandlerError> {
    let rest = id.strip_prefix("pay_").unwrap_or_default();
    if rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(refused("INVALID_PAYMENT_ID", format!("{id:?} is no payment's id")));
    }
    Ok(())
}
