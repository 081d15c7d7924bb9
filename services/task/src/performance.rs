//! How it went lately: what the store measured, as the contract has it. The question is checked here.

use std::time::Duration;

use stepwell_proto::{
    id::step_id,
    refusal::Refusal,
    v1::{
        DurationFigures, ErrorClassCount, ErrorReason, GetPerformanceRequest, Performance,
        SlowExecution, SlowTask, StepPerformance, TaskPerformance,
    },
};
use stepwell_store::{Durations, EVENTS_READ_MAX, Slow, Store, Went, Window, timestamp};
use tokio::sync::Semaphore;

use crate::{filter, rule};

const WINDOW_DEFAULT: Duration = Duration::from_secs(3600);
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const SLOWEST_DEFAULT: i32 = 10;
const SLOWEST_MAX: i32 = 100;
/// So many are measured at once: others need the connections too.
pub(crate) const MEASURED_MAX: usize = 2;

/// How it went in the window that is asked for.
pub(crate) async fn get(
    store: &Store,
    room: &Semaphore,
    request: GetPerformanceRequest,
) -> Result<Performance, Refusal> {
    let window = read(request)?;
    let _room = room.try_acquire().map_err(|_| {
        Refusal::new(ErrorReason::Overloaded, "as many windows are measured as may")
            .retry_after(Duration::from_secs(1))
    })?;
    match store.went(&window).await? {
        Ok(went) => Ok(performance(went)),
        Err(earliest) => {
            let earliest = earliest.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            let what = format!("events are kept from {earliest} on");
            Err(Refusal::new(ErrorReason::WindowExpired, what).with("earliest", earliest))
        }
    }
}

/// What is asked for.
fn read(request: GetPerformanceRequest) -> Result<Window, Refusal> {
    let mut faults = Vec::new();
    for (path, name) in
        [("namespace", &request.namespace), ("definition_name", &request.definition_name)]
    {
        if !name.is_empty() {
            faults.extend(rule::name_fault(name).map(|what| (path.to_owned(), what)));
        }
    }
    let version = match request.definition_version.as_str() {
        "" => None,
        _ if request.definition_name.is_empty() => {
            faults.push(("definition_version".into(), "goes with definition_name".into()));
            None
        }
        text => rule::version(text)
            .map_err(|what| faults.push(("definition_version".into(), what)))
            .ok(),
    };
    let length = match request.window {
        None => WINDOW_DEFAULT,
        Some(sent) => stepwell_proto::time::duration(&sent)
            .filter(|window| (WINDOW_MIN..=WINDOW_MAX).contains(window))
            .unwrap_or_else(|| {
                faults.push(("window".into(), "1 s to 30 days".into()));
                WINDOW_DEFAULT
            }),
    };
    let until = request.until.and_then(|until| {
        let time = filter::time_of(until);
        if time.is_none() {
            faults.push(("until".into(), "must be a time from 1970 to 9999".into()));
        }
        time
    });
    let slowest = match request.slowest {
        0 => SLOWEST_DEFAULT,
        n if (1..=SLOWEST_MAX).contains(&n) => n,
        _ => {
            faults.push(("slowest".into(), format!("1 to {SLOWEST_MAX}")));
            SLOWEST_DEFAULT
        }
    };
    if !faults.is_empty() {
        return Err(Refusal::fields(faults));
    }
    Ok(Window {
        until,
        length_us: i64::try_from(length.as_micros()).unwrap_or(i64::MAX),
        namespace: request.namespace,
        name: request.definition_name,
        version,
        slowest: slowest.into(),
        events_max: EVENTS_READ_MAX,
    })
}

fn performance(went: Went) -> Performance {
    let length = (went.until - went.since).to_std().unwrap_or_default().as_secs_f64();
    let tasks = went.tasks.into_iter().map(|tasks| {
        let of = tasks.of.clone();
        let (namespace, definition_name, definition_version) =
            of.map(|of| (of.namespace, of.name, of.version)).unwrap_or_default();
        TaskPerformance {
            namespace,
            definition_name,
            definition_version,
            created: tasks.created,
            completed: tasks.completed,
            failed: tasks.failed,
            cancelled: tasks.cancelled,
            resolved: tasks.resolved,
            throughput_per_second: rate(tasks.completed + tasks.failed, length),
            error_rate: error_rate(tasks.completed, tasks.failed),
            duration: Some(figures(&tasks.duration)),
        }
    });
    let (all, definitions): (Vec<_>, Vec<_>) =
        tasks.partition(|tasks| tasks.definition_name.is_empty());
    let steps = went.steps.into_iter().map(|step| StepPerformance {
        namespace: step.of.namespace,
        definition_name: step.of.name,
        definition_version: step.of.version,
        step_name: step.step,
        started: step.started,
        completed: step.completed,
        failed: step.failed,
        retried: step.retried,
        returned: step.returned,
        throughput_per_second: rate(step.completed + step.failed, length),
        error_rate: error_rate(step.completed, step.failed),
        execution: Some(figures(&step.execution)),
        queue_wait: Some(figures(&step.wait)),
    });
    let errors = went.errors.into_iter().map(|failed| ErrorClassCount {
        error_class: failed.class,
        count: failed.n,
        final_count: failed.final_n,
    });
    Performance {
        since: Some(timestamp(went.since)),
        until: Some(timestamp(went.until)),
        complete: went.complete,
        events: went.events,
        all: all.into_iter().next(),
        definitions: definitions.into_iter().collect(),
        steps: steps.collect(),
        errors: errors.collect(),
        slowest_tasks: went.slow_tasks.into_iter().map(slow_task).collect(),
        slowest_executions: went.slow_executions.into_iter().map(slow_execution).collect(),
    }
}

fn slow_task(slow: Slow) -> SlowTask {
    SlowTask {
        task_id: slow.uid.to_string(),
        namespace: slow.of.namespace,
        definition_name: slow.of.name,
        definition_version: slow.of.version,
        duration: Some(duration(slow.seconds)),
        end_time: Some(timestamp(slow.at)),
        failed: slow.failed,
    }
}

fn slow_execution(slow: Slow) -> SlowExecution {
    let (number, step_name, attempt) = slow.step.unwrap_or_default();
    SlowExecution {
        step_id: step_id(&slow.uid.to_string(), number),
        step_name,
        namespace: slow.of.namespace,
        definition_name: slow.of.name,
        definition_version: slow.of.version,
        attempt,
        duration: Some(duration(slow.seconds)),
        end_time: Some(timestamp(slow.at)),
        failed: slow.failed,
    }
}

/// So many in a second; none in no time.
#[expect(clippy::cast_precision_loss, reason = "counts are of 200,000 events at most")]
fn rate(n: i64, seconds: f64) -> f64 {
    if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts are of 200,000 events at most")]
fn error_rate(completed: i64, failed: i64) -> Option<f64> {
    (completed + failed > 0).then(|| failed as f64 / (completed + failed) as f64)
}

fn figures(durations: &Durations) -> DurationFigures {
    let at = |i: usize| durations.figures.get(i).map(|seconds| duration(*seconds));
    DurationFigures { measured: durations.n, p50: at(0), p90: at(1), p99: at(2), max: at(3) }
}

/// To the microsecond. Where the clock was set back, none is negative.
fn duration(seconds: f64) -> prost_types::Duration {
    let micros = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    let micros = micros + Duration::from_nanos(500);
    prost_types::Duration {
        seconds: i64::try_from(micros.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(micros.subsec_micros()).unwrap_or(0) * 1_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_question_about_performance_is_refused_with_its_field() {
        let request = GetPerformanceRequest::default;
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let read_of = read(request()).unwrap();
        assert_eq!((read_of.length_us, read_of.slowest), (3_600_000_000, 10));
        let until = Some(prost_types::Timestamp { seconds: -1, nanos: 0 });
        for (request, field) in [
            (GetPerformanceRequest { window: seconds(0), ..request() }, "window"),
            (GetPerformanceRequest { window: seconds(2_592_001), ..request() }, "window"),
            (GetPerformanceRequest { until, ..request() }, "until"),
            (GetPerformanceRequest { namespace: "a b".into(), ..request() }, "namespace"),
            (
                GetPerformanceRequest { definition_name: "a b".into(), ..request() },
                "definition_name",
            ),
            (
                GetPerformanceRequest { definition_version: "1.0.0".into(), ..request() },
                "definition_version",
            ),
            (
                GetPerformanceRequest {
                    definition_name: "a".into(),
                    definition_version: "1".into(),
                    ..request()
                },
                "definition_version",
            ),
            (GetPerformanceRequest { slowest: -1, ..request() }, "slowest"),
            (GetPerformanceRequest { slowest: 101, ..request() }, "slowest"),
        ] {
            let refused = read(request).unwrap_err();
            let paths: Vec<&str> = refused.violations.iter().map(|(path, _)| &**path).collect();
            assert_eq!(paths, [field]);
        }
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured() {
        let of = figures(&Durations::default());
        assert_eq!(of, DurationFigures::default());
        assert_eq!((error_rate(0, 0), error_rate(3, 1)), (None, Some(0.25)));
        assert_eq!((rate(5, 0.0), rate(5, 2.0)), (0.0, 2.5));
        let of = |seconds: f64| (duration(seconds).seconds, duration(seconds).nanos);
        assert_eq!(
            [of(-1.0), of(0.0), of(1.5), of(0.000_001_4), of(0.000_001_6)],
            [(0, 0), (0, 0), (1, 500_000_000), (0, 1_000), (0, 2_000)]
        );
    }
}
