//! Names that other engines publish as events and this one does not, with what stands for them: the
//! page of events lists them, and whoever asks for one is told. The build reads this file as well.

/// A name that is no event here.
#[derive(Debug)]
pub struct Elsewhere {
    /// The name.
    pub name: &'static str,
    /// What stands for it, or why nothing does.
    pub here: &'static str,
}

const BEFORE: &str = "Not applicable: nothing is seen before its commit, and after it is too late to \
                      object. Each event of a transition carries `from_state` and `to_state`.";
const PASSES: &str = "Not applicable: each step runs once it is ready, and there are no passes over a task. \
                      See `step.execution_requested`, `step.completed`, `step.failed`.";
const READY: &str = "The same moment as `workflow.viable_steps_discovered`, which has the steps.";
const HANDLERS: &str = "Not recorded: handlers come and go with the executors that offer them. See \
                        ListHandlers, ListExecutors, and the log lines of step-service.";
const NO_PLUGINS: &str = "Not applicable: nothing is plugged into the services. Executors and \
                          subscribers are programs of their own.";
const SUBSCRIBERS: &str =
    "Not recorded: whoever subscribes is seen in the metrics and the log of event-service.";
const ONE_REGISTRY: &str = "Not applicable: Postgres is the one registry, and there are no copies to \
                            bring together.";
const EXPORT: &str = "Not applicable: metrics are read from `/metrics`, spans are sent over OTLP; nothing is kept to be \
     exported later.";
const METRIC: &str = "Not an event: what is measured is in metrics.md.";
const EXAMPLE: &str = "Not applicable: a name for tests of an event bus inside one process.";

/// Every such name, in the order of the model they come from.
pub const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere { name: "task.before_transition", here: BEFORE },
    Elsewhere {
        name: "step.before_handle",
        here: "A hook: `Executor::observer` of the client is told of each lease before its handler \
               runs. To others it is `step.execution_requested`.",
    },
    Elsewhere {
        name: "step.handle",
        here: "A span of the executor, `step.handle`: see tracing.md.",
    },
    Elsewhere { name: "step.before_transition", here: BEFORE },
    Elsewhere {
        name: "workflow.orchestration_requested",
        here: "Not applicable: nobody asks for a pass. What moves a step decides in the same commit \
               what comes next.",
    },
    Elsewhere {
        name: "workflow.task_reenqueue_started",
        here: "Not applicable: a task is not put into a queue; its ready steps are, by the commit \
               that made them ready.",
    },
    Elsewhere {
        name: "workflow.task_reenqueue_failed",
        here: "Not applicable: to become ready is part of the commit that decides it, and fails or \
               holds with it.",
    },
    Elsewhere {
        name: "workflow.task_state_unclear",
        here: "Not applicable: a task's state follows from counts that each commit keeps exactly.",
    },
    Elsewhere {
        name: "workflow.step_execution_failed",
        here: "`step.failed` with the class `LeaseExpired`: the executor was lost.",
    },
    Elsewhere { name: "workflow.viable_steps_batch_ready", here: READY },
    Elsewhere { name: "workflow.steps_execution_started", here: PASSES },
    Elsewhere { name: "workflow.steps_execution_completed", here: PASSES },
    Elsewhere {
        name: "observability.task.handle",
        here: "The spans of a task are one tree, from the call that created it: see tracing.md. The \
               time is `ran_for` of `task.completed` and `task.failed`.",
    },
    Elsewhere {
        name: "observability.task.finalize",
        here: "The span `step.settle` of the last step: see tracing.md. The decision is \
               `workflow.task_finalization_completed`.",
    },
    Elsewhere {
        name: "observability.step.handle",
        here: "A span of the executor, `step.handle`: see tracing.md. The time is `ran_for` of \
               `step.completed` and `step.failed`.",
    },
    Elsewhere { name: "observability.step.find_viable", here: READY },
    Elsewhere { name: "test.event", here: EXAMPLE },
    Elsewhere { name: "slow.event", here: EXAMPLE },
    Elsewhere { name: "custom.event", here: EXAMPLE },
    Elsewhere { name: "Test.Event", here: EXAMPLE },
    Elsewhere { name: "handler.registered", here: HANDLERS },
    Elsewhere { name: "handler.unregistered", here: HANDLERS },
    Elsewhere {
        name: "handler.validation_failed",
        here: "RegisterDefinition refuses what is wrong, and a hello with wrong handlers is answered \
               with its faults.",
    },
    Elsewhere { name: "plugin.registered", here: NO_PLUGINS },
    Elsewhere { name: "plugin.unregistered", here: NO_PLUGINS },
    Elsewhere { name: "plugin.validation_failed", here: NO_PLUGINS },
    Elsewhere { name: "subscriber.registered", here: SUBSCRIBERS },
    Elsewhere { name: "subscriber.unregistered", here: SUBSCRIBERS },
    Elsewhere {
        name: "subscriber.validation_failed",
        here: "Subscribe refuses what is wrong, a name that is not in the catalog with a suggestion.",
    },
    Elsewhere { name: "registry.sync_requested", here: ONE_REGISTRY },
    Elsewhere {
        name: "registry.health_check",
        here: "`/readyz` of each service says whether it reaches Postgres.",
    },
    Elsewhere { name: "registry.stats_collected", here: METRIC },
    Elsewhere { name: "registry.cross_discovery", here: ONE_REGISTRY },
    Elsewhere { name: "registry.coordination_complete", here: ONE_REGISTRY },
    Elsewhere { name: "tasker.telemetry.cache_synced", here: EXPORT },
    Elsewhere { name: "tasker.telemetry.export_requested", here: EXPORT },
    Elsewhere { name: "tasker.telemetry.export_completed", here: EXPORT },
    Elsewhere { name: "tasker.telemetry.export_failed", here: EXPORT },
    Elsewhere { name: "tasker.telemetry.plugin_registered", here: NO_PLUGINS },
    Elsewhere { name: "tasker.telemetry.plugin_unregistered", here: NO_PLUGINS },
    Elsewhere { name: "database.query_executed", here: METRIC },
    Elsewhere { name: "dependency.resolved", here: READY },
    Elsewhere { name: "batch.step_execution", here: PASSES },
    Elsewhere { name: "memory.spike_detected", here: METRIC },
    Elsewhere { name: "performance.slow_operation", here: METRIC },
];
