//! The handlers. What is there already is no failure: a step whose first attempt did its work, and whose outcome
//! was lost, finds its own work on the second.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stepwell_client::{Client, Executor, HandlerError, StepContext};

use super::NAMESPACE;
use crate::caller::{Answer, Caller};

/// What a service that asks to wait, and does not say how long, is given.
const WAIT: Duration = Duration::from_secs(60);
/// The same of the welcome.
const WAIT_FOR_WELCOME: Duration = Duration::from_secs(30);

/// The context of a task.
#[derive(Deserialize)]
struct Context {
    user_info: UserInfo,
    billing_info: Map<String, Value>,
    preferences: Map<String, Value>,
    correlation_id: Option<String>,
}

/// What people send of themselves: anything may be missing.
#[derive(Deserialize)]
struct UserInfo {
    email: Option<String>,
    name: Option<String>,
    plan: String,
}

/// The result of `create_user_account`.
#[derive(Serialize, Deserialize)]
struct Account {
    user_id: String,
    email: String,
    created_at: String,
    correlation_id: String,
    /// `created` or `already_exists`.
    status: String,
}

/// A user as the service has it.
#[derive(Deserialize)]
struct User {
    #[serde(default)]
    user_id: String,
    email: String,
    name: String,
    plan: String,
    created_at: String,
}

#[derive(Deserialize)]
struct Config {
    answer_within_seconds: u64,
}

pub(super) fn executors(client: &Client, servers: &str) -> Result<Vec<Executor>, String> {
    let executor = Executor::new(client, "registration").namespace(NAMESPACE);
    let caller = |_| Caller::at(servers);
    let [users, billing, preferences, welcome, status] = [(); 5].map(caller);
    let executor = executor
        .handler("create_user_account", move |step| create_user_account(users.clone(), step))
        .handler("setup_billing_profile", move |step| setup_billing_profile(billing.clone(), step))
        .handler("initialize_preferences", move |step| {
            initialize_preferences(preferences.clone(), step)
        })
        .handler("send_welcome_sequence", move |step| send_welcome_sequence(welcome.clone(), step))
        .handler("update_user_status", move |step| update_user_status(status.clone(), step));
    Ok(vec![executor])
}

async fn call(
    caller: &Caller,
    step: &StepContext,
    call: (Method, &str),
    body: Option<Value>,
) -> Result<Answer, HandlerError> {
    let Config { answer_within_seconds } = step.config()?;
    caller.call(step, call, body.as_ref(), Duration::from_secs(answer_within_seconds)).await
}

/// What is missing stays missing.
#[track_caller]
fn given(value: Option<String>, what: &str, code: &str) -> Result<String, HandlerError> {
    let missing = || HandlerError::new("InvalidInput", format!("{what} is missing")).code(code);
    value.filter(|value| !value.trim().is_empty()).ok_or_else(|| missing().permanent())
}

async fn create_user_account(caller: Caller, step: StepContext) -> Result<Account, HandlerError> {
    let Context { user_info: UserInfo { email, name, plan }, correlation_id, .. } = step.input()?;
    let email = given(email, "the email", "MISSING_EMAIL")?;
    let name = given(name, "the name", "MISSING_NAME")?;
    let user = json!({"email": email, "name": name, "plan": plan});
    let answer = call(&caller, &step, (Method::POST, "/users"), Some(user)).await?;
    let (user, status): (User, _) = if answer.status == StatusCode::CONFLICT {
        let path = format!("/users/{email}");
        let there = call(&caller, &step, (Method::GET, &path), None).await?;
        (there.into_success(WAIT)?, "already_exists")
    } else {
        (answer.into_success(WAIT)?, "created")
    };
    if (&user.name, &user.plan) != (&name, &plan) {
        let what = format!("{email} is registered with another name or plan");
        return Err(HandlerError::new("UserConflict", what).code("USER_CONFLICT").permanent());
    }
    Ok(Account {
        user_id: user.user_id,
        email: user.email,
        created_at: user.created_at,
        correlation_id: correlation_id.unwrap_or_else(|| step.task_id().to_owned()),
        status: status.into(),
    })
}

/// The account, which has an id.
async fn account(step: &StepContext) -> Result<Account, HandlerError> {
    let account: Account = step.parent("create_user_account").await?;
    given(Some(account.user_id.clone()), "the user's id", "MISSING_USER_ID")?;
    Ok(account)
}

/// Creates what belongs to a user; 409 says that it is there, and that is as good.
async fn create_for_user(
    caller: &Caller,
    step: &StepContext,
    path: &str,
    mut of: Map<String, Value>,
) -> Result<Value, HandlerError> {
    let account = account(step).await?;
    of.insert("user_id".into(), account.user_id.into());
    of.insert("email".into(), account.email.into());
    let answer = call(caller, step, (Method::POST, path), Some(of.into())).await?;
    if answer.status == StatusCode::CONFLICT {
        return Ok(json!({"status": "already_exists"}));
    }
    answer.into_success(WAIT)
}

async fn setup_billing_profile(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let context: Context = step.input()?;
    if context.user_info.plan == "free" {
        // There is nothing to bill, so nothing of billing can stop a free account.
        return Ok(json!({"status": "not_needed"}));
    }
    create_for_user(&caller, &step, "/billing", context.billing_info).await
}

async fn initialize_preferences(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let context: Context = step.input()?;
    create_for_user(&caller, &step, "/preferences", context.preferences).await
}

async fn send_welcome_sequence(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let Context { user_info: UserInfo { name, plan, .. }, .. } = step.input()?;
    let account = account(&step).await?;
    let billing: Value = step.parent("setup_billing_profile").await?;
    let welcome = json!({
        "email": account.email, "name": name, "plan": plan, "billing": billing["status"],
    });
    let answer = call(&caller, &step, (Method::POST, "/welcome"), Some(welcome)).await?;
    answer.into_success(WAIT_FOR_WELCOME)
}

async fn update_user_status(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let account = account(&step).await?;
    let path = format!("/users/{}/status", account.user_id);
    let status = json!({"email": account.email, "status": "active"});
    let answer = call(&caller, &step, (Method::PUT, &path), Some(status)).await?;
    answer.into_success(WAIT)
}
