//! The services: users, billing, preferences and welcomes. They do what is asked once per idempotency key. What
//! an address of mail says before its `@` is how they fail for this user: `billing-503-twice` gets a 503 from
//! billing twice, and `users-slow-once` no answer from the users at first. The words are
//!
//! - `users`, `billing`, `preferences`, `welcome`, `status`: the service;
//! - a status, `busy` (429 that does not say how long to wait), `slow` (no answer), `noid` (a user without an
//!   id);
//! - `once`, `twice`, `always`.

use std::future::pending;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post, put},
};
use serde_json::{Value, json};

use crate::ledger::{Key, Ledger, Refused};

/// Who is registered.
const REGISTERED: &str = "jane.before@example.com";

type Done = Ledger<Value, Value>;

pub(super) fn routes() -> Router {
    Router::new()
        .route("/{service}", post(create))
        .route("/users/{email}", get(find))
        .route("/users/{id}/status", put(activate))
        .with_state(Done::default())
}

/// What is wrong with a service for this user: the word of the fault, if this call has it.
fn fault<'e>(email: &'e str, service: &str, call: u32) -> Option<&'e str> {
    let (local, _) = email.split_once('@')?;
    let mut words = local.split('-');
    let (of, fault, how_often) = (words.next()?, words.next()?, words.next()?);
    let calls = match how_often {
        "once" => 1,
        "twice" => 2,
        _ => u32::MAX,
    };
    (of == service && call <= calls).then_some(fault)
}

async fn create(
    done: State<Done>,
    Path(service): Path<String>,
    key: Key,
    body: Json<Value>,
) -> Result<(StatusCode, Json<Value>), Refused> {
    Ok((StatusCode::CREATED, act(done, &service, key, body).await?))
}

async fn activate(
    done: State<Done>,
    Path(_): Path<String>,
    key: Key,
    body: Json<Value>,
) -> Result<Json<Value>, Refused> {
    act(done, "status", key, body).await
}

async fn act(
    State(done): State<Done>,
    service: &str,
    Key(key): Key,
    Json(body): Json<Value>,
) -> Result<Json<Value>, Refused> {
    let mut slow = false;
    let email = body["email"].as_str().unwrap_or_default().to_owned();
    let answer = done.once(&key, body, |body, call| match fault(&email, service, call) {
        Some("busy") => Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited")),
        Some("429") => Err(Refused::busy()),
        Some("slow") => {
            slow = true;
            Err(Refused::new(StatusCode::GATEWAY_TIMEOUT, "nobody hears this"))
        }
        Some("noid") => Ok(user(body, None)),
        Some(status) => {
            let status = StatusCode::from_bytes(status.as_bytes());
            Err(Refused::new(status.unwrap_or(StatusCode::NOT_IMPLEMENTED), "as the address says"))
        }
        None => did(service, &email, body, &key),
    });
    if slow {
        pending::<()>().await;
    }
    answer.map(Json)
}

fn user(body: &Value, id: Option<&str>) -> Value {
    let mut user = body.clone();
    user["created_at"] = "2024-05-01T08:00:00Z".into();
    if let Some(id) = id {
        user["user_id"] = format!("user_{id}").into();
    }
    user
}

/// What a service does and answers.
fn did(service: &str, email: &str, body: &Value, key: &str) -> Result<Value, Refused> {
    match service {
        "users" if email == REGISTERED => Err(Refused::new(StatusCode::CONFLICT, "it is there")),
        "users" => Ok(user(body, Some(key))),
        "billing" => Ok(json!({"billing_id": format!("bill_{key}"), "status": "created"})),
        "preferences" => Ok(json!({"preferences": body, "status": "created"})),
        "welcome" => Ok(json!({"recipient": email, "plan": body["plan"], "status": "started"})),
        "status" => Ok(json!({"status": body["status"]})),
        _ => Err(Refused::new(StatusCode::NOT_FOUND, format!("there is no service {service}"))),
    }
}

async fn find(Path(email): Path<String>) -> Result<Json<Value>, Refused> {
    match email.as_str() {
        REGISTERED => {
            let body = json!({"email": email, "name": "Jane Smith", "plan": "pro"});
            Ok(Json(user(&body, Some("7"))))
        }
        _ => Err(Refused::new(StatusCode::NOT_FOUND, "nobody has this address")),
    }
}
