//! The handlers of customer success. `get_manager_approval` has none: a person resolves it, and up to some amount
//! the policy does so itself.

use std::{collections::BTreeMap, time::Duration};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stepwell_client::{Client, Executor, HandlerError, StepContext, v1};

use super::{NAME, call, payment_id, payments, refused};
use crate::caller::Caller;

pub(super) const NAMESPACE: &str = "customer_success";
/// The versions of the definition that these handlers are for.
const VERSIONS: &str = ">=1.3, <2";
/// The step that waits for a person.
const APPROVAL: &str = "get_manager_approval";

pub(super) fn executor(client: &Client, caller: Caller) -> Executor {
    let (policy, delegates) = (client.clone(), client.clone());
    let (customers, tickets) = (caller.clone(), caller);
    Executor::new(client, "customer-success")
        .namespace(NAMESPACE)
        .handler_for("validate_refund_request", VERSIONS, validate_refund_request)
        .handler_for("check_refund_policy", VERSIONS, move |step| {
            check_refund_policy(policy.clone(), customers.clone(), step)
        })
        .handler_for("execute_refund_workflow", VERSIONS, move |step| {
            execute_refund_workflow(delegates.clone(), step)
        })
        .handler_for("update_ticket_status", VERSIONS, move |step| {
            update_ticket_status(tickets.clone(), step)
        })
}

/// The context of a task.
#[derive(Deserialize)]
struct Request {
    ticket_id: String,
    customer_id: String,
    payment_id: String,
    refund_amount: i64,
    refund_reason: String,
    correlation_id: Option<String>,
}

async fn validate_refund_request(step: StepContext) -> Result<Value, HandlerError> {
    let request: Request = step.input()?;
    payment_id(&request.payment_id)?;
    Ok(json!({"request_validated": true, "ticket_id": request.ticket_id}))
}

/// The config of `check_refund_policy`, in cents.
#[derive(Deserialize)]
struct Policy {
    approval_above: i64,
    limits: BTreeMap<String, i64>,
    limit: i64,
}

#[derive(Deserialize)]
struct Customer {
    tier: String,
    under_review: bool,
}

async fn check_refund_policy(
    client: Client,
    caller: Caller,
    step: StepContext,
) -> Result<Value, HandlerError> {
    let request: Request = step.input()?;
    let policy: Policy = step.config()?;
    let path = format!("/customers/{}", request.customer_id);
    let customer: Customer = call(&caller, &step, (Method::GET, &path), None).await?;
    if customer.under_review {
        return Err(HandlerError::new("UnderReview", "somebody looks at this customer now")
            .code("REQUIRES_REVIEW"));
    }
    let limit = policy.limits.get(&customer.tier).copied().unwrap_or(policy.limit);
    let amount = request.refund_amount;
    if amount > limit {
        let tier = &customer.tier;
        return Err(refused(
            "POLICY_DENIED",
            format!("{amount} is above {limit}, the limit of {tier}"),
        ));
    }
    let approval_needed = amount > policy.approval_above;
    if !approval_needed {
        approve(&client, &step, policy.approval_above).await?;
    }
    Ok(json!({
        "policy_compliant": true, "tier": customer.tier, "limit": limit,
        "approval_needed": approval_needed,
    }))
}

/// Resolves the approval in the name of the policy. A repeat finds it resolved, and is as good.
async fn approve(client: &Client, step: &StepContext, up_to: i64) -> Result<(), HandlerError> {
    let request = v1::GetTaskRequest { task_id: step.task_id().to_owned(), ..Default::default() };
    let task = client.get_task(request).await?.task.unwrap_or_default();
    let approval = task.steps.into_iter().find(|step| step.name == APPROVAL);
    let missing = || HandlerError::new("MissingStep", format!("there is no step {APPROVAL}"));
    let approval = approval.ok_or_else(|| missing().permanent())?;
    let result = json!({"approved": true, "approval_id": format!("auto_{}", step.task_id())});
    let request = v1::ResolveStepRequest {
        step_id: approval.step_id,
        reason: format!("up to {up_to} nobody is asked"),
        resolved_by: "refund policy".into(),
        result: result.to_string(),
        ..v1::ResolveStepRequest::default()
    };
    client.resolve_step(request).await?;
    Ok(())
}

/// What the manager, or the policy, said: the result of the resolved step.
#[derive(Deserialize)]
struct Approval {
    approved: bool,
    approval_id: Option<String>,
}

/// The config of `execute_refund_workflow`.
#[derive(Deserialize)]
struct Delegation {
    definition_version: String,
    /// How long it waits for the other task, with its slot.
    wait_ms: u64,
    /// How long after that it looks again, without one.
    look_again_ms: u64,
}

/// The result of `execute_refund_workflow`.
#[derive(Serialize)]
struct Delegated {
    task_delegated: bool,
    delegated_task_id: String,
    delegated_task_status: &'static str,
    approval_id: Option<String>,
}

async fn execute_refund_workflow(
    client: Client,
    step: StepContext,
) -> Result<Delegated, HandlerError> {
    let request: Request = step.input()?;
    let Delegation { definition_version, wait_ms, look_again_ms } = step.config()?;
    let approval: Option<Approval> = step.parent(APPROVAL).await?;
    let Some(Approval { approved: true, approval_id }) = approval else {
        return Err(refused("APPROVAL_DENIED", "the manager did not approve"));
    };
    let context = json!({
        "payment_id": request.payment_id,
        "refund_amount": request.refund_amount,
        "refund_reason": request.refund_reason,
        "initiated_by": NAMESPACE,
        "approval_id": approval_id.clone().unwrap_or_default(),
        "ticket_id": request.ticket_id,
        "correlation_id": request.correlation_id.unwrap_or_else(|| step.task_id().to_owned()),
    });
    // The key is the same in every attempt, and so is the task: a retried step starts no second refund.
    let task = client.task(NAME).namespace(payments::NAMESPACE).version(definition_version);
    let task = task.context(&context).initiator(NAMESPACE).idempotency_key(step.step_id());
    let task = task.create().await?;
    let task = client.wait_task(&task.task_id, Duration::from_millis(wait_ms)).await?;
    match task.state() {
        v1::State::Complete | v1::State::ResolvedManually => Ok(Delegated {
            task_delegated: true,
            delegated_task_status: task.state().word(),
            delegated_task_id: task.task_id,
            approval_id,
        }),
        v1::State::Error | v1::State::Cancelled => {
            let what = format!("the task {} of payments is {}", task.task_id, task.state().word());
            Err(refused("REFUND_FAILED", what))
        }
        _ => {
            let what = format!("the task {} of payments goes on", task.task_id);
            Err(HandlerError::new("RefundUnderWay", what)
                .code("REFUND_UNDER_WAY")
                .retry_after(Duration::from_millis(look_again_ms)))
        }
    }
}

async fn update_ticket_status(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let request: Request = step.input()?;
    let delegated: Value = step.parent("execute_refund_workflow").await?;
    let path = format!("/tickets/{}", request.ticket_id);
    let status = json!({"status": "resolved", "refund_task": delegated["delegated_task_id"]});
    call(&caller, &step, (Method::PUT, &path), Some(&status)).await
}
