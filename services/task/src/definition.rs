//! What makes a definition valid, and its normal form: every default filled in, so that nobody
//! after this file needs to know one. Pure. All faults are told at once.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    time::Duration,
};

use prost::Message;
use stepwell_proto::{
    json,
    refusal::{Refusal, describe},
    v1::{
        Concurrency, Definition, ErrorReason, EventTypeSpec, Identity, IdentityStrategy,
        RetryPolicy, StepTemplate,
    },
};
use stepwell_yaml::{Places, START, TextFault};

use crate::{
    canonical, graph,
    rule::{
        self, DURATION_MAX, Fault, LONG_MAX, NAMESPACE_DEFAULT, check_event_type, name_fault,
        quoted, schema, suggestion,
    },
    written::{Choices, Declared},
    yaml,
};

/// Most steps of a definition.
pub const STEPS_MAX: usize = 10_000;
/// Most dependencies of a definition.
pub const EDGES_MAX: usize = 100_000;
/// Most bytes of a definition with its defaults filled in: it, and every task with its steps, must
/// fit into one answer.
pub const BYTES_MAX: usize = 2 << 20;
const VERSION_DEFAULT: &str = "0.1.0";
const DESCRIPTION_BYTES_MAX: usize = 4 << 10;
const SCHEMA_BYTES_MAX: usize = 256 << 10;
const EXCEPT_MAX: usize = 100;
const REQUIRES_MAX: usize = 32;
const LABEL_BYTES_MAX: usize = 128;
const ERROR_CLASS_BYTES_MAX: usize = 256;
const PUBLISHES_MAX: usize = 20;
const PUBLISHES_ALL_MAX: usize = 100;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const DURATION_MIN: Duration = Duration::from_millis(1);
const ATTEMPTS_DEFAULT: i32 = 3;
const BACKOFF_DEFAULT: Duration = Duration::from_secs(1);
const BACKOFF_MAX_DEFAULT: Duration = Duration::from_secs(300);
const MULTIPLIER_DEFAULT: f64 = 2.0;
const JITTER_DEFAULT: f64 = 0.1;
const WINDOW_DEFAULT: Duration = Duration::from_secs(60);
/// Looking for what was meant is dear: only so many faults of a request get it.
pub const SUGGESTIONS_MAX: usize = 10;

/// Reads a definition as a message.
pub fn from_message(definition: Definition) -> Result<Definition, Refusal> {
    normalise(definition).map_err(refused)
}

/// Reads a definition as text that leaves nothing open. Faults carry line and column, and come in the order of the
/// text.
pub fn from_yaml(text: &str) -> Result<Definition, Refusal> {
    Ok(read(text, None)?.definition)
}

/// A definition that was read from text.
#[derive(Debug)]
pub struct Written {
    /// What is to be registered: defaults filled in, and its hash.
    pub definition: Definition,
    /// The subscriptions that it declares, as text for `ApplySubscriptions`; none: it declares none.
    pub subscriptions: Option<String>,
    places: Places,
}

impl Written {
    /// The refusal of what is registered, with the places of its fields in the text.
    #[must_use]
    pub fn placed(&self, mut refusal: Refusal) -> Refusal {
        for (path, _) in &mut refusal.violations {
            if let Some(at) = self.places.around(path) {
                *path = format!("{path} at {at}");
            }
        }
        refusal
    }
}

/// Reads a definition as text in which something is open, with what was chosen. Nothing is asked of a service.
///
/// Errors: INVALID_DEFINITION, with all faults.
pub fn written(text: &str, choices: &Choices) -> Result<Written, Refusal> {
    read(text, Some(choices))
}

/// What can be chosen of a text; none: it cannot be read at all.
pub fn declared(text: &str) -> Option<Declared> {
    yaml::load(text, Some(&Choices::default())).declared
}

fn read(text: &str, choices: Option<&Choices>) -> Result<Written, Refusal> {
    let yaml::Loaded { definition, mut faults, places, subscriptions, .. } =
        yaml::load(text, choices);
    match normalise(definition) {
        Ok(definition) if faults.is_empty() => {
            return Ok(Written { definition, subscriptions, places });
        }
        Ok(_) => {}
        Err(found) => {
            // What could not be read would be told twice: once as it stands, once as missing.
            let covered = |path: &str| {
                places.get(path).is_none() || faults.iter().any(|f| is_within(path, &f.path))
            };
            let news: Vec<Fault> =
                found.into_iter().filter(|(path, _)| faults.is_empty() || !covered(path)).collect();
            faults.extend(news.into_iter().map(|(path, what)| {
                let at = places.around(&path).unwrap_or(START);
                TextFault { path, at, what }
            }));
        }
    }
    Err(refused(stepwell_yaml::told(faults)))
}

/// True when the path is the other or a part of it.
fn is_within(path: &str, other: &str) -> bool {
    path.strip_prefix(other)
        .is_some_and(|rest| other.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

fn refused(faults: Vec<Fault>) -> Refusal {
    let faults = rule::bounded(faults);
    Refusal::new(ErrorReason::InvalidDefinition, describe(&faults)).with_violations(faults)
}

/// Fills in the defaults and checks everything.
fn normalise(mut definition: Definition) -> Result<Definition, Vec<Fault>> {
    let mut faults = Vec::new();
    fill(&mut definition);
    check_head(&definition, &mut faults);
    check_publishes(&mut definition.steps, &mut faults);
    check_steps(&definition.steps, &mut faults);
    let bytes = definition.encoded_len();
    if bytes > BYTES_MAX {
        let what = format!("has {bytes} bytes, defaults included; at most {BYTES_MAX} are allowed");
        faults.push((String::new(), what));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    definition.create_time = None;
    definition.content_hash = content_hash(&definition);
    Ok(definition)
}

fn fill(definition: &mut Definition) {
    let default = |text: &mut String, default: &str| {
        if text.is_empty() {
            default.clone_into(text);
        }
    };
    default(&mut definition.namespace, NAMESPACE_DEFAULT);
    default(&mut definition.version, VERSION_DEFAULT);
    if let Some(concurrency) = &mut definition.concurrency
        && concurrency.limit == 0
    {
        concurrency.limit = 1;
    }
    if let Some(identity) = &mut definition.identity {
        match identity.strategy() {
            IdentityStrategy::Unspecified => identity.strategy = IdentityStrategy::Random.into(),
            IdentityStrategy::Hash => {
                identity.window.get_or_insert_with(|| message(WINDOW_DEFAULT));
            }
            IdentityStrategy::Random | IdentityStrategy::Key => {}
        }
    }
    // What says nothing is not said.
    let says_nothing = |identity: &Identity| {
        identity.strategy == i32::from(IdentityStrategy::Random) && identity.window.is_none()
    };
    definition.identity = definition.identity.take().filter(|identity| !says_nothing(identity));
    for step in &mut definition.steps {
        default(&mut step.handler, &step.name);
        let retry = step.retry.get_or_insert_default();
        if retry.max_attempts == 0 {
            retry.max_attempts = ATTEMPTS_DEFAULT;
        }
        if retry.multiplier == 0.0 {
            retry.multiplier = MULTIPLIER_DEFAULT;
        }
        retry.initial_backoff.get_or_insert_with(|| message(BACKOFF_DEFAULT));
        retry.max_backoff.get_or_insert_with(|| message(BACKOFF_MAX_DEFAULT));
        retry.jitter.get_or_insert(JITTER_DEFAULT);
        step.timeout.get_or_insert_with(|| message(TIMEOUT_DEFAULT));
    }
}

fn message(duration: Duration) -> prost_types::Duration {
    duration.try_into().expect("defaults are short")
}

/// Most tasks with one key at once.
pub(crate) const ROOM_MAX: i32 = 10_000;
const KEY_BYTES_MAX: usize = 256;

fn check_concurrency(concurrency: &Concurrency, faults: &mut Vec<Fault>) {
    let Concurrency { key, limit } = concurrency;
    let is_right = key.len() <= KEY_BYTES_MAX && key.split('.').all(|name| !name.is_empty());
    if !is_right || key.contains('\0') {
        let what =
            format!("must be names of fields with dots between; at most {KEY_BYTES_MAX} bytes");
        faults.push(("concurrency.key".into(), what));
    }
    if !(1..=ROOM_MAX).contains(limit) {
        faults.push(("concurrency.limit".into(), format!("must be from 1 to {ROOM_MAX}")));
    }
}

fn check_identity(identity: &Identity, faults: &mut Vec<Fault>) {
    if IdentityStrategy::try_from(identity.strategy).is_err() {
        faults.push(("identity.strategy".into(), "must be `random`, `hash` or `key`".into()));
    }
    let window = match identity.strategy() {
        IdentityStrategy::Random if identity.window.is_some() => Some(
            "has no meaning where nothing is compared: `strategy: hash` or `key` is wanted".into(),
        ),
        _ => duration_fault(identity.window, DURATION_MIN, LONG_MAX),
    };
    faults.extend(window.map(|what| ("identity.window".into(), what)));
}

/// Most steps of a task at once.
pub(crate) const PARALLEL_MAX: i32 = 10_000;

fn check_head(definition: &Definition, faults: &mut Vec<Fault>) {
    let mut fault = |path: &str, what: Option<String>| {
        faults.extend(what.map(|what| (path.to_owned(), what)));
    };
    fault("namespace", name_fault(&definition.namespace));
    fault("name", name_fault(&definition.name));
    fault("version", rule::version(&definition.version).err());
    fault("description", description_fault(&definition.description));
    let in_bounds = (0..=PARALLEL_MAX).contains(&definition.max_parallel_steps);
    let what = || format!("must be from 1 to {PARALLEL_MAX}, or 0 for any number");
    fault("max_parallel_steps", (!in_bounds).then(what));
    fault("priority", rule::priority(definition.priority).err());
    fault("deadline", duration_fault(definition.deadline, DURATION_MIN, LONG_MAX));
    if let Some(concurrency) = &definition.concurrency {
        check_concurrency(concurrency, faults);
    }
    if let Some(identity) = &definition.identity {
        check_identity(identity, faults);
    }
    if !definition.context_schema.is_empty() {
        faults.extend(schema_fault(&definition.context_schema));
    }
}

fn description_fault(text: &str) -> Option<String> {
    too_long(text, DESCRIPTION_BYTES_MAX)
}

fn too_long(text: &str, max: usize) -> Option<String> {
    let bytes = text.len();
    (bytes > max).then(|| format!("has {bytes} bytes; at most {max} are allowed"))
}

fn schema_fault(text: &str) -> Option<Fault> {
    let (rest, what) = schema::context_fault(text, SCHEMA_BYTES_MAX)?;
    Some((format!("context_schema{rest}"), what))
}

fn check_steps(steps: &[StepTemplate], faults: &mut Vec<Fault>) {
    let edges: usize = steps.iter().map(|step| step.depends_on.len()).sum();
    let about_all = match steps.len() {
        0 => Some("are missing; a definition has at least one".to_owned()),
        n if n > STEPS_MAX => Some(format!("are {n}; at most {STEPS_MAX} are allowed")),
        _ if edges > EDGES_MAX => {
            Some(format!("have {edges} dependencies; at most {EDGES_MAX} are allowed"))
        }
        _ => None,
    };
    if let Some(what) = about_all {
        faults.push(("steps".into(), what));
        return;
    }
    for (i, step) in steps.iter().enumerate() {
        check_step(&format!("steps[{i}]"), step, faults);
    }
    check_edges(steps, faults);
}

fn check_step(path: &str, step: &StepTemplate, faults: &mut Vec<Fault>) {
    let mut fault = |field: &str, what: Option<String>| {
        faults.extend(what.map(|what| (format!("{path}.{field}"), what)));
    };
    let name = name_fault(&step.name);
    // A handler that takes the step's name takes its fault too: one is enough.
    let handler = if step.handler == step.name { None } else { name_fault(&step.handler) };
    fault("name", name);
    fault("handler", handler);
    fault("description", description_fault(&step.description));
    fault("timeout", duration_fault(step.timeout, DURATION_MIN, DURATION_MAX));
    fault("queue_timeout", duration_fault(step.queue_timeout, DURATION_MIN, LONG_MAX));
    fault("total_timeout", duration_fault(step.total_timeout, DURATION_MIN, LONG_MAX));
    fault("heartbeat_timeout", duration_fault(step.heartbeat_timeout, DURATION_MIN, DURATION_MAX));
    if !step.config.is_empty() {
        let checked = json::check_object(&step.config, json::CONFIG_BYTES_MAX);
        fault("config", checked.err().map(|fault| fault.to_string()));
    }
    if let Some(retry) = &step.retry {
        check_retry(&format!("{path}.retry"), retry, faults);
    }
    check_requires(&format!("{path}.requires"), &step.requires, faults);
}

/// Checks what the steps publish, and fills in the defaults.
fn check_publishes(steps: &mut [StepTemplate], faults: &mut Vec<Fault>) {
    let mut first: HashMap<(String, i32), (String, EventTypeSpec)> = HashMap::new();
    for (i, step) in steps.iter_mut().enumerate().take(STEPS_MAX) {
        let path = format!("steps[{i}].publishes");
        let many = step.publishes.len();
        if many > PUBLISHES_MAX {
            faults.push((path, format!("are {many}; at most {PUBLISHES_MAX} are allowed")));
            continue;
        }
        for (k, spec) in step.publishes.iter_mut().enumerate() {
            // Checking one takes time.
            if first.len() > PUBLISHES_ALL_MAX {
                break;
            }
            let path = format!("{path}[{k}]");
            check_event_type(&path, spec, faults);
            match first.entry((spec.name.clone(), spec.version)) {
                Entry::Vacant(entry) => drop(entry.insert((path, spec.clone()))),
                Entry::Occupied(entry) if entry.get().1 == *spec => {}
                Entry::Occupied(entry) => {
                    let what = format!("says other than {} of the same type", entry.get().0);
                    faults.push((path, what));
                }
            }
        }
    }
    if first.len() > PUBLISHES_ALL_MAX {
        let what =
            format!("publish more than {PUBLISHES_ALL_MAX} types of events; no more are allowed");
        faults.push(("steps".into(), what));
    }
}

fn check_requires(path: &str, requires: &BTreeMap<String, String>, faults: &mut Vec<Fault>) {
    if requires.len() > REQUIRES_MAX {
        let what = format!("has {} labels; at most {REQUIRES_MAX} are allowed", requires.len());
        faults.push((path.to_owned(), what));
        return;
    }
    for (label, value) in requires {
        if let Some(what) = name_fault(label) {
            faults.push((path.to_owned(), format!("the label {} {what}", quoted(label))));
        }
        let what = match value.contains('\0') {
            true => Some("may not contain NUL".to_owned()),
            false => too_long(value, LABEL_BYTES_MAX),
        };
        faults.extend(what.map(|what| (format!("{path}.{label}"), what)));
    }
}

/// Checks what is said of a policy; 0 and none say nothing.
pub(crate) fn check_retry(path: &str, retry: &RetryPolicy, faults: &mut Vec<Fault>) {
    let mut fault = |field: &str, what: Option<String>| {
        faults.extend(what.map(|what| (format!("{path}.{field}"), what)));
    };
    let wrong = |is_right: bool, what: &str| (!is_right).then(|| what.to_owned());
    let (attempts, multiplier) = (retry.max_attempts, retry.multiplier);
    fault("max_attempts", wrong((0..=1000).contains(&attempts), "must be from 1 to 1000"));
    let is_right = multiplier == 0.0 || (1.0..=100.0).contains(&multiplier);
    fault("multiplier", wrong(is_right, "must be from 1 to 100"));
    let is_right = retry.jitter.is_none_or(|jitter| (0.0..=1.0).contains(&jitter));
    fault("jitter", wrong(is_right, "must be from 0 to 1"));
    fault("initial_backoff", duration_fault(retry.initial_backoff, Duration::ZERO, DURATION_MAX));
    fault("max_backoff", duration_fault(retry.max_backoff, Duration::ZERO, DURATION_MAX));
    let many = retry.except.len();
    fault("except", wrong(many <= EXCEPT_MAX, "must have at most 100 error classes"));
    for (i, class) in retry.except.iter().take(EXCEPT_MAX).enumerate() {
        let what = match class.len() {
            0 => Some("is empty".to_owned()),
            _ => too_long(class, ERROR_CLASS_BYTES_MAX),
        };
        fault(&format!("except[{i}]"), what);
    }
}

fn duration_fault(
    duration: Option<prost_types::Duration>,
    min: Duration,
    max: Duration,
) -> Option<String> {
    let in_bounds = |d: Duration| d >= min && d <= max;
    let is_right = stepwell_proto::time::duration(&duration?).is_some_and(in_bounds);
    let least = if min.is_zero() { "0" } else { "1ms" };
    (!is_right).then(|| format!("must be from {least} to {}", rule::most(max)))
}

fn check_edges(steps: &[StepTemplate], faults: &mut Vec<Fault>) {
    let before = faults.len();
    let mut numbers: HashMap<&str, usize> = HashMap::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate().filter(|(_, step)| !step.name.is_empty()) {
        if let Some(first) = numbers.get(step.name.as_str()) {
            faults.push((format!("steps[{i}].name"), format!("is the name of steps[{first}] too")));
        } else {
            numbers.insert(&step.name, i);
        }
    }
    let mut suggestions = 0;
    let parents: Vec<Vec<usize>> = steps
        .iter()
        .enumerate()
        .map(|(i, step)| parents(i, step, &numbers, &mut suggestions, faults))
        .collect();
    if faults.len() > before {
        return;
    }
    if let Some(cycle) = graph::cycle(&parents) {
        faults.push(cycle_fault(steps, &parents, &cycle));
    }
}

/// The numbers of the steps that a step depends on.
fn parents(
    number: usize,
    step: &StepTemplate,
    numbers: &HashMap<&str, usize>,
    suggestions: &mut usize,
    faults: &mut Vec<Fault>,
) -> Vec<usize> {
    let mut parents: HashMap<usize, usize> = HashMap::with_capacity(step.depends_on.len());
    for (k, name) in step.depends_on.iter().enumerate() {
        let what = match numbers.get(name.as_str()) {
            Some(parent) if *parent == number => "is the step itself".to_owned(),
            Some(parent) => match parents.insert(*parent, k) {
                None => continue,
                Some(first) => format!("is depends_on[{first}] again"),
            },
            None => {
                *suggestions += 1;
                let known = if *suggestions <= SUGGESTIONS_MAX { Some(numbers) } else { None };
                let known = known.into_iter().flat_map(HashMap::keys).copied();
                format!("no step is named {}{}", quoted(name), suggestion(name, known))
            }
        };
        faults.push((format!("steps[{number}].depends_on[{k}]"), what));
    }
    let mut parents: Vec<usize> = parents.into_keys().collect();
    parents.sort_unstable();
    parents
}

fn cycle_fault(steps: &[StepTemplate], parents: &[Vec<usize>], cycle: &[usize]) -> Fault {
    let named = |no: &usize| steps[*no].name.as_str();
    let mut names: Vec<&str> = cycle.iter().take(100).map(named).collect();
    if cycle.len() > names.len() {
        names.push("…");
    }
    names.extend(cycle.first().map(named));
    // The edge that closes the circle: the first step depends on the last.
    let (first, last) = (cycle[0], cycle[cycle.len() - 1]);
    debug_assert!(parents[first].contains(&last));
    let closing = steps[first].depends_on.iter().position(|name| name == named(&last));
    let path = format!("steps[{first}].depends_on[{}]", closing.unwrap_or(0));
    (path, format!("the steps wait for each other in a circle: {}", names.join(" → ")))
}

/// A refusal of a type of events that a step publishes, with the step's field in its paths.
pub fn placed(definition: &Definition, mut refusal: Refusal) -> Refusal {
    if refusal.reason != ErrorReason::EventTypeChanged {
        return refusal;
    }
    let of = |key: &str| refusal.metadata.get(key).cloned().unwrap_or_default();
    let (name, version) = (of("name"), of("version"));
    let is_meant = |spec: &EventTypeSpec| spec.name == name && spec.version.to_string() == version;
    let place = definition
        .steps
        .iter()
        .enumerate()
        .find_map(|(i, step)| Some((i, step.publishes.iter().position(&is_meant)?)));
    if let Some((i, k)) = place {
        for (path, _) in &mut refusal.violations {
            *path = format!("steps[{i}].publishes[{k}].{path}");
        }
    }
    refusal
}

/// SHA-256 of the normal form, in hex. How its JSON is laid out does not count.
fn content_hash(definition: &Definition) -> String {
    let canonical = |text: &mut String| {
        if let Ok(value) = serde_json::from_str(text) {
            *text = canonical::text(&value);
        }
    };
    let mut form = Definition { content_hash: String::new(), ..definition.clone() };
    canonical(&mut form.context_schema);
    for step in &mut form.steps {
        canonical(&mut step.config);
        for spec in &mut step.publishes {
            canonical(&mut spec.schema);
            canonical(&mut spec.example);
        }
    }
    let hash = canonical::Hash::default().part(form.encode_to_vec()).done();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
