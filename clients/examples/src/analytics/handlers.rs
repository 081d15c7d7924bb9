//! The handlers. One serves the three extracts: what it asks for stands in their config.

use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stepwell_client::{Client, Executor, HandlerError, StepContext};

use super::{
    NAMESPACE,
    dates::DateRange,
    figures::{Customers, Insights, Order, Product, Products, User},
};
use crate::caller::Caller;

/// Servers that ask to wait and do not say how long are given this.
const WAIT: Duration = Duration::from_secs(1);
/// How long the dashboards and the channels may take.
const WITHIN: Duration = Duration::from_secs(10);

/// The context of a task.
#[derive(Deserialize)]
struct Context {
    date_range: DateRange,
    warehouse: String,
    dashboard: String,
    channel: String,
}

/// The config of an extract.
#[derive(Deserialize)]
struct Extract {
    source: String,
    answer_within_seconds: u64,
}

/// What an extract returns.
#[derive(Serialize, Deserialize)]
struct Extracted<T> {
    records: Vec<T>,
}

pub(super) fn executors(client: &Client, servers: &str) -> Result<Vec<Executor>, String> {
    let caller = Caller::at(servers);
    let (warehouse, dashboards, channels) = (caller.clone(), caller.clone(), caller);
    let executor = Executor::new(client, "analytics")
        .namespace(NAMESPACE)
        .handler("extract", move |step| extract(warehouse.clone(), step))
        .handler("transform_customer_metrics", transform_customer_metrics)
        .handler("transform_product_metrics", transform_product_metrics)
        .handler("generate_insights", generate_insights)
        .handler("update_dashboard", move |step| update_dashboard(dashboards.clone(), step))
        .handler("send_notifications", move |step| send_notifications(channels.clone(), step));
    Ok(vec![executor])
}

async fn extract(caller: Caller, step: StepContext) -> Result<Extracted<Value>, HandlerError> {
    let context: Context = step.input()?;
    let Extract { source, answer_within_seconds } = step.config()?;
    let (first, last) = context.date_range.days()?;
    let started = json!({"source": source, "attempt": step.attempt()});
    step.publish("data_extraction.started", &started).await?;
    let path = format!("/warehouse/{}/{source}/{first}/{last}", context.warehouse);
    let within = Duration::from_secs(answer_within_seconds);
    let answer = caller.call(&step, (Method::GET, &path), None, within).await?;
    let records: Vec<Value> = answer.into_success(WAIT)?;
    let completed = json!({"source": source, "records": records.len()});
    step.publish_at_end("data_extraction.completed", &completed)?;
    Ok(Extracted { records })
}

async fn transform_customer_metrics(step: StepContext) -> Result<Customers, HandlerError> {
    let orders: Extracted<Order> = step.parent("extract_orders").await?;
    let users: Extracted<User> = step.parent("extract_users").await?;
    Ok(Customers::of(&orders.records, users.records))
}

async fn transform_product_metrics(step: StepContext) -> Result<Products, HandlerError> {
    let orders: Extracted<Order> = step.parent("extract_orders").await?;
    let products: Extracted<Product> = step.parent("extract_products").await?;
    Ok(Products::of(&orders.records, products.records))
}

async fn generate_insights(step: StepContext) -> Result<Insights, HandlerError> {
    let customers: Customers = step.parent("transform_customer_metrics").await?;
    let products: Products = step.parent("transform_product_metrics").await?;
    let Some(insights) = Insights::of(&customers, &products) else {
        return Err(HandlerError::new("InsufficientData", "nothing was sold in these days")
            .code("INSUFFICIENT_DATA")
            .permanent());
    };
    let reached =
        json!({"milestone": "insights_generated", "total_revenue": insights.total_revenue});
    step.publish_at_end("pipeline.milestone_reached", &reached)?;
    Ok(insights)
}

async fn update_dashboard(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let context: Context = step.input()?;
    let insights: Value = step.parent("generate_insights").await?;
    let path = format!("/dashboards/{}", context.dashboard);
    let answer = caller.call(&step, (Method::PUT, &path), Some(&insights), WITHIN).await?;
    let updated = answer.into_success(WAIT)?;
    step.publish_at_end("pipeline.milestone_reached", &json!({"milestone": "dashboard_updated"}))?;
    Ok(updated)
}

async fn send_notifications(caller: Caller, step: StepContext) -> Result<Value, HandlerError> {
    let context: Context = step.input()?;
    let insights: Insights = step.parent("generate_insights").await?;
    let text =
        format!("The dashboard {} is new: {} in all", context.dashboard, insights.total_revenue);
    let message = json!({"channel": context.channel, "text": text});
    let answer = caller.call(&step, (Method::POST, "/messages"), Some(&message), WITHIN).await?;
    answer.into_success(WAIT)
}
