//! The handlers of payments, of version 2.1.0 alone.

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use stepwell_client::{Client, Executor, HandlerError, StepContext};

use super::{WAIT, call, payment_id, refused};
use crate::caller::Caller;

pub(super) const NAMESPACE: &str = "payments";
/// The version of the definition that these handlers are for.
const VERSION: &str = "=2.1.0";

pub(super) fn executor(client: &Client, caller: Caller) -> Executor {
    let [payments, gateway, records, mail] = [(); 4].map(|()| caller.clone());
    Executor::new(client, "payments")
        .namespace(NAMESPACE)
        .handler_for("validate_payment_eligibility", VERSION, move |step| {
            validate_payment_eligibility(payments.clone(), step)
        })
        .handler_for("process_gateway_refund", VERSION, move |step| {
            process_gateway_refund(gateway.clone(), step)
        })
        .handler_for("update_payment_records", VERSION, move |step| {
            update_payment_records(records.clone(), step)
        })
        .handler_for("notify_customer", VERSION, move |step| notify_customer(mail.clone(), step))
}

/// The context of a task.
#[derive(Deserialize)]
struct Request {
    payment_id: String,
    refund_amount: i64,
    refund_reason: String,
}

#[derive(Deserialize)]
struct Payment {
    amount: i64,
}

async fn validate_payment_eligibility(
    caller: Caller,
    step: StepContext,
) -> Result<Value, HandlerError> {
    let request: Request = step.input()?;
    payment_id(&request.payment_id)?;
    let path = format!("/payments/{}", request.payment_id);
    let payment: Payment = call(&caller, &step, (Method::GET, &path), None).await?;
    let Request { refund_amount, .. } = request;
    if refund_amount > payment.amount {
        let what = format!("{refund_amount} is more than the {} that were paid", payment.amount);
        return Err(refused("EXCEEDS_PAYMENT", what));
    }
    Ok(json!({"eligible": true, "paid": payment.amount}))
}

async fn process_gateway_refund(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let Request { payment_id, refund_amount, refund_reason } = step.input()?;
    let refund =
        json!({"payment_id": payment_id, "amount": refund_amount, "reason": refund_reason});
    let answer = caller.call(&step, (Method::POST, "/refunds"), Some(&refund), WAIT).await?;
    if answer.status == StatusCode::PAYMENT_REQUIRED {
        return Err(refused("GATEWAY_REFUSED", "the bank does not take it back"));
    }
    answer.into_success(WAIT)
}

async fn update_payment_records(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let request: Request = step.input()?;
    let refund: Value = step.parent("process_gateway_refund").await?;
    let path = format!("/records/{}", request.payment_id);
    call(&caller, &step, (Method::PUT, &path), Some(&refund)).await
}

async fn notify_customer(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let refund: Value = step.parent("process_gateway_refund").await?;
    call(&caller, &step, (Method::POST, "/mails"), Some(&json!({"refund": refund}))).await
}
