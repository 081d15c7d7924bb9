//! Business metrics: what tasks and steps came to, how long they took, and what they were worth. A handler of
//! events like any other: it uses nothing that others cannot.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use serde_json::Value;

use crate::{EventFacts, EventHandler, HandlerError, v1::*};

/// As many values of a label that comes out of results; those beyond count as `other`.
const VALUES_MAX: usize = 50;
const OTHER: &str = "other";

/// Counts and times tasks and steps from their events, into the instruments of a meter:
///
/// | name | kind | labels | meaning |
/// |---|---|---|---|
/// | `business_tasks_total` | counter | `namespace`, `definition`, `state` | tasks that came into the state; `pending`: were created |
/// | `business_task_seconds` | histogram, seconds | `namespace`, `definition`, `state` | from the first lease to the end |
/// | `business_steps_total` | counter | … `step`, `state` | steps that came into the state; `error`: failed for good |
/// | `business_step_seconds` | histogram, seconds | … `step` | of attempts that completed, from lease to outcome |
/// | `business_failures_total` | counter | … `step`, `category`, `retryable`, `final` | attempts that failed |
/// | `business_late_total` | counter | … `step` unless it is a task | tasks and steps that took longer than they should: [`Self::task_within`], [`Self::step_within`] |
/// | `business_<name>_total` | counter | … `step`, and the one that was asked for | sums: [`Self::amount`] |
///
/// An event that comes again, after a crash, counts again. Where the figures go is the meter's affair.
///
/// ```
/// use std::time::Duration;
/// use stepwell_client::BusinessMetrics;
///
/// let meter = opentelemetry::global::meter("shop");
/// BusinessMetrics::new(&meter)
///     .amount("revenue", "create_order", "total_amount", Some("customer_tier"))
///     .step_within("process_payment", Duration::from_secs(5))
///     .task_within("process_order", Duration::from_secs(45));
/// ```
#[derive(Debug)]
pub struct BusinessMetrics {
    meter: Meter,
    tasks: Counter<u64>,
    task_seconds: Histogram<f64>,
    steps: Counter<u64>,
    step_seconds: Histogram<f64>,
    failures: Counter<u64>,
    late: Counter<u64>,
    amounts: Vec<Amount>,
    /// By definition, and by step.
    tasks_within: HashMap<String, Duration>,
    steps_within: HashMap<String, Duration>,
}

#[derive(Debug)]
struct Amount {
    sum: Counter<f64>,
    step: String,
    field: String,
    label: Option<String>,
    /// Values of the label so far.
    values: Mutex<BTreeSet<String>>,
}

impl BusinessMetrics {
    /// Records into this meter.
    pub fn new(meter: &Meter) -> Self {
        let seconds = |name, meaning| {
            let instrument = meter.f64_histogram(name).with_unit("s").with_description(meaning);
            instrument.build()
        };
        let counter = |name, meaning| meter.u64_counter(name).with_description(meaning).build();
        Self {
            meter: meter.clone(),
            tasks: counter("business_tasks_total", "Tasks that came into the state"),
            task_seconds: seconds(
                "business_task_seconds",
                "From the first lease of a task to its end",
            ),
            steps: counter("business_steps_total", "Steps that came into the state"),
            step_seconds: seconds(
                "business_step_seconds",
                "Of attempts that completed, from lease to outcome",
            ),
            failures: counter("business_failures_total", "Attempts that failed"),
            late: counter("business_late_total", "Tasks and steps that took too long"),
            amounts: Vec::new(),
            tasks_within: HashMap::new(),
            steps_within: HashMap::new(),
        }
    }

    /// Adds a number up that the results of a step have: `business_<name>_total`, `field` being a key of the
    /// result, or a path of keys with dots. With `label` another key of the result says what it belongs to,
    /// such as the customer's tier; of its values the first 50 are told apart, the others are `other`. A result
    /// without the number, or with one below 0, adds nothing.
    #[must_use]
    pub fn amount(
        mut self,
        name: &str,
        step: impl Into<String>,
        field: impl Into<String>,
        label: Option<&str>,
    ) -> Self {
        self.amounts.push(Amount {
            sum: self.meter.f64_counter(format!("business_{name}_total")).build(),
            step: step.into(),
            field: field.into(),
            label: label.map(str::to_owned),
            values: Mutex::default(),
        });
        self
    }

    /// Steps of this name that complete in an attempt longer than this are late.
    #[must_use]
    pub fn step_within(mut self, step: impl Into<String>, time: Duration) -> Self {
        self.steps_within.insert(step.into(), time);
        self
    }

    /// Tasks of this definition that end later than this after their first lease are late.
    #[must_use]
    pub fn task_within(mut self, definition: impl Into<String>, time: Duration) -> Self {
        self.tasks_within.insert(definition.into(), time);
        self
    }

    fn count_task(&self, event: &Event, state: State) {
        let mut labels = labels(event);
        labels.push(KeyValue::new("state", state.word()));
        self.tasks.add(1, &labels);
        let Some(took) = event.ran_for() else { return };
        self.task_seconds.record(took.as_secs_f64(), &labels);
        if self.tasks_within.get(&event.definition_name).is_some_and(|within| took > *within) {
            labels.pop();
            self.late.add(1, &labels);
        }
    }

    fn count_step(&self, event: &Event, state: State) {
        let mut labels = labels(event);
        labels.push(KeyValue::new("state", state.word()));
        self.steps.add(1, &labels);
    }
}

/// Namespace, definition and step, as far as there are any.
fn labels(event: &Event) -> Vec<KeyValue> {
    let core = event.core();
    let mut labels = vec![
        KeyValue::new("namespace", core.namespace.to_owned()),
        KeyValue::new("definition", core.definition.to_owned()),
    ];
    labels.extend(core.step.map(|step| KeyValue::new("step", step.to_owned())));
    labels
}

impl Amount {
    fn add(&self, event: &Event, result: &Value) {
        let number = at(result, &self.field).and_then(Value::as_f64);
        let Some(number) = number.filter(|number| number.is_finite() && *number >= 0.0) else {
            return;
        };
        let mut labels = labels(event);
        if let Some(label) = &self.label {
            let value = match at(result, label) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => "unknown".to_owned(),
            };
            labels.push(KeyValue::new(label.clone(), self.bounded(value)));
        }
        self.sum.add(number, &labels);
    }

    fn bounded(&self, value: String) -> String {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() < VALUES_MAX {
            values.insert(value.clone());
        }
        if values.contains(&value) { value } else { OTHER.to_owned() }
    }
}

/// What stands at a path of keys with dots.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

impl EventHandler for BusinessMetrics {
    fn subscribe_to(&self) -> Vec<&str> {
        vec![
            "task.initialize_requested",
            "task.start_requested",
            "task.completed",
            "task.failed",
            "task.cancelled",
            "task.resolved_manually",
            "step.completed",
            "step.failed",
            "step.cancelled",
            "step.resolved_manually",
        ]
    }

    async fn handle_step_completed(
        &self,
        event: &Event,
        _: &StepCompleted,
    ) -> Result<(), HandlerError> {
        self.count_step(event, State::Complete);
        let took = event.ran_for().unwrap_or_default();
        self.step_seconds.record(took.as_secs_f64(), &labels(event));
        if self.steps_within.get(&event.step_name).is_some_and(|within| took > *within) {
            self.late.add(1, &labels(event));
        }
        let amounts = self.amounts.iter().filter(|amount| amount.step == event.step_name);
        let mut amounts = amounts.peekable();
        if amounts.peek().is_some()
            && let Some(result) = event.result::<Value>()
        {
            amounts.for_each(|amount| amount.add(event, &result));
        }
        Ok(())
    }

    async fn handle_step_failed(
        &self,
        event: &Event,
        failed: &StepFailed,
    ) -> Result<(), HandlerError> {
        let labels = event.metric_labels().into_iter();
        let labels: Vec<KeyValue> =
            labels.map(|(label, value)| KeyValue::new(label, value)).collect();
        self.failures.add(1, &labels);
        if failed.r#final {
            self.count_step(event, State::Error);
        }
        Ok(())
    }

    /// All others are counted by the state that they led to.
    async fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        if event.core().step.is_some() {
            self.count_step(event, event.to_state());
        } else {
            self.count_task(event, event.to_state());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::SdkMeterProvider;
    use prometheus::{Registry, TextEncoder};

    use super::*;
    use crate::testing;

    struct Figures {
        registry: Registry,
        _provider: SdkMeterProvider,
    }

    impl Figures {
        fn new() -> (Self, Meter) {
            let registry = Registry::new();
            let reader = opentelemetry_prometheus::exporter().with_registry(registry.clone());
            let reader = reader.without_units().without_counter_suffixes().without_target_info();
            let reader = reader.scope_info_enabled(false).build().unwrap();
            let provider = SdkMeterProvider::builder().with_reader(reader).build();
            let meter = provider.meter("test");
            (Self { registry, _provider: provider }, meter)
        }

        /// The lines with values, without those of buckets.
        fn told(&self) -> Vec<String> {
            let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let lines = lines.filter(|line| !line.contains("_bucket{"));
            lines.map(|line| line.replace('"', "")).collect()
        }
    }

    fn sold(tier: &str, total: &str) -> Event {
        let result = format!(r#"{{"order": {{"total": {total}}}, "tier": "{tier}"}}"#);
        testing::event(StepCompleted { result, ..StepCompleted::default() })
    }

    #[tokio::test]
    async fn tasks_steps_failures_and_amounts_are_told_by_what_they_belong_to() {
        let (figures, meter) = Figures::new();
        let metrics = BusinessMetrics::new(&meter)
            .amount("revenue", "charge", "order.total", Some("tier"))
            .amount("sales", "pay", "order.total", None)
            .task_within("example", Duration::from_secs(1))
            .step_within("charge", Duration::from_secs(1));
        let mut slow = sold("gold", "1.25");
        if let Some(event::Detail::StepCompleted(it)) = &mut slow.detail {
            it.ran_for = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        }
        let events = [
            testing::sample("task.initialize_requested").unwrap(),
            testing::sample("step.failed").unwrap(),
            sold("gold", "0.5"),
            sold("gold", "\"many\""),
            slow,
            testing::sample("step.resolved_manually").unwrap(),
            testing::sample("task.completed").unwrap(),
        ];
        for event in &events {
            assert!(testing::handle(&metrics, event).await.unwrap());
        }
        let of = "definition=example,";
        let step = "namespace=default,step=charge";
        let task = "namespace=default";
        assert_eq!(
            figures.told(),
            [
                format!(
                    "business_failures_total{{category=timeout,{of}final=true,{task},retryable=true,step=charge}} 1"
                ),
                format!("business_late_total{{{of}{task}}} 1"),
                format!("business_late_total{{{of}{step}}} 1"),
                format!("business_revenue_total{{{of}{step},tier=gold}} 1.75"),
                format!("business_step_seconds_sum{{{of}{step}}} 2"),
                format!("business_step_seconds_count{{{of}{step}}} 3"),
                format!("business_steps_total{{{of}{task},state=complete,step=charge}} 3"),
                format!("business_steps_total{{{of}{task},state=error,step=charge}} 1"),
                format!("business_steps_total{{{of}{task},state=resolved_manually,step=charge}} 1"),
                format!("business_task_seconds_sum{{{of}{task},state=complete}} 1.25"),
                format!("business_task_seconds_count{{{of}{task},state=complete}} 1"),
                format!("business_tasks_total{{{of}{task},state=complete}} 1"),
                format!("business_tasks_total{{{of}{task},state=pending}} 1"),
            ]
        );
    }

    #[tokio::test]
    async fn a_label_out_of_results_has_few_values_whatever_they_are() {
        let (figures, meter) = Figures::new();
        let metrics =
            BusinessMetrics::new(&meter).amount("n", "charge", "order.total", Some("tier"));
        for i in 0..VALUES_MAX * 2 {
            testing::handle(&metrics, &sold(&i.to_string(), "1")).await.unwrap();
        }
        let told = figures.told();
        let sums: Vec<_> =
            told.iter().filter(|line| line.starts_with("business_n_total")).collect();
        assert_eq!(sums.len(), VALUES_MAX + 1);
        let other = sums.iter().find(|line| line.contains("tier=other")).unwrap();
        assert!(other.ends_with(" 50"), "{other}");
    }

    #[tokio::test]
    async fn an_empty_event_of_any_type_is_counted_and_never_fails() {
        let (figures, meter) = Figures::new();
        let metrics = BusinessMetrics::new(&meter).amount("n", "", "a.b", Some("c"));
        for name in metrics.subscribe_to() {
            let detail = testing::sample(name).unwrap().detail;
            for detail in [detail, None] {
                let bare = Event { name: name.into(), detail, ..Event::default() };
                assert!(testing::handle(&metrics, &bare).await.unwrap(), "{name}");
            }
        }
        assert!(figures.told().iter().any(|line| line.contains("namespace=unknown")));
    }
}
