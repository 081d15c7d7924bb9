//! What the text of a definition leaves open, decided before anything else is read from it: the values of its
//! variables, and what an environment says otherwise. On the tree of the text, so that every fault, these and those
//! to come, has its place. Pure.

use std::collections::{BTreeMap, HashMap};

use stepwell_yaml::{Fields, Key, Node, Place, Reader, Value};

use crate::{
    rule::{NAME_BYTES_MAX, name_fault, quoted, suggestion},
    yaml::STEP,
};

/// Most variables of a text, and environments.
const DECLARED_MAX: usize = 100;
/// Most bytes of one value.
const VALUE_BYTES_MAX: usize = 16 << 10;
/// Most bytes that all values add to a text.
const ADDED_BYTES_MAX: usize = 1 << 20;

const VARIABLE: [&str; 2] = ["default", "description"];
const ENVIRONMENT: [&str; 1] = ["steps"];

/// What whoever registers a text decides.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// The environment; none: what the text says for no environment in particular.
    pub environment: Option<String>,
    /// Values of variables.
    pub set: BTreeMap<String, String>,
    /// Values of those that are not there.
    pub environ: BTreeMap<String, String>,
}

/// What a text declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// The names of its variables.
    pub variables: Vec<String>,
    /// The names of its environments.
    pub environments: Vec<String>,
    /// It has a name or steps; what has not may be a mere list of subscriptions.
    pub is_definition: bool,
}

/// The text as it is to be.
pub(crate) struct Settled {
    pub(crate) root: Node,
    pub(crate) declared: Declared,
    /// It says something else than the text as it was written.
    pub(crate) is_changed: bool,
}

/// A variable as it is declared.
struct Variable {
    default: Option<String>,
    /// It is told once that it has no value.
    is_missed: bool,
}

/// Decides what is open. Without choices nothing may be.
pub(crate) fn settle(reader: &mut Reader, mut root: Node, choices: Option<&Choices>) -> Settled {
    let mut declared = Declared::default();
    let Value::Map(entries) = &mut root.value else {
        return Settled { root, declared, is_changed: false };
    };
    declared.is_definition = entries.iter().any(|(key, _)| ["name", "steps"].contains(&&*key.text));
    let variables = taken(entries, "variables");
    let environments = taken(entries, "environments");
    if choices.is_none() {
        for (key, what) in [(&variables, "variables"), (&environments, "environments")] {
            if let Some((key, _)) = key {
                let told = "are decided before a definition is registered: `stepwell definition apply` does it";
                reader.fault(what, key.at, told);
            }
        }
    }
    let known = variables.map(|(_, node)| self::variables(reader, &node)).unwrap_or_default();
    declared.variables = known.keys().cloned().collect();
    let mut values = Values { known, choices, added: 0, is_changed: false };
    if let Some((_, node)) = environments {
        let chosen = choices.and_then(|choices| choices.environment.as_deref());
        let overrides = self::environments(reader, &node, &root, chosen, &mut declared);
        if let Some(overrides) = overrides {
            values.is_changed = true;
            overrides.into_iter().for_each(|(step, entries)| apply(&mut root, step, entries));
        }
    }
    values.expand(reader, "", &mut root);
    Settled { root, declared, is_changed: values.is_changed }
}

/// Takes an entry out. One that stands twice stays, and is found by whoever reads the rest.
fn taken(entries: &mut Entries, key: &str) -> Option<(Key, Node)> {
    let at = entries.iter().position(|(k, _)| k.text == key)?;
    let more = entries.iter().filter(|(k, _)| k.text == key).count() > 1;
    if more { Some(entries[at].clone()) } else { Some(entries.remove(at)) }
}

/// A name by which a variable may be called: upper-case, so that nothing else in `${…}` is one.
fn is_variable(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn variables(reader: &mut Reader, node: &Node) -> BTreeMap<String, Variable> {
    let mut known = BTreeMap::new();
    for (key, node) in reader.entries("variables", node) {
        let path = format!("variables.{}", quoted(&key.text).trim_matches('"'));
        if !is_variable(&key.text) {
            let upper = key.text.to_ascii_uppercase();
            let meant = if is_variable(&upper) {
                format!("; did you mean `{upper}`?")
            } else {
                String::new()
            };
            let what = format!(
                "is no name of a variable: upper-case letters, digits and `_`, a letter first, \
                 at most {NAME_BYTES_MAX}{meant}"
            );
            reader.fault(&path, key.at, what);
            continue;
        }
        let mut variable = Variable { default: None, is_missed: false };
        if node.value.kind() != "empty" {
            let fields = reader.fields(&path, node, &VARIABLE);
            variable.default = fields.get("default").map(|_| reader.text(&fields, "default"));
            reader.text(&fields, "description");
        }
        known.insert(key.text.clone(), variable);
    }
    if known.len() > DECLARED_MAX {
        let what = format!("are {}; at most {DECLARED_MAX} are allowed", known.len());
        reader.fault("variables", node.at, what);
    }
    known
}

/// What a mapping says.
type Entries = Vec<(Key, Node)>;

/// Checks all environments; of the chosen one, what it says of which step.
fn environments<'n>(
    reader: &mut Reader,
    node: &'n Node,
    root: &Node,
    chosen: Option<&str>,
    declared: &mut Declared,
) -> Option<Vec<(usize, &'n Entries)>> {
    let steps = step_numbers(root);
    let mut overrides = None;
    let entries = reader.entries("environments", node);
    for (key, node) in &entries {
        let path = format!("environments.{}", quoted(&key.text).trim_matches('"'));
        if let Some(what) = name_fault(&key.text) {
            reader.fault(&path, key.at, what);
            continue;
        }
        declared.environments.push(key.text.clone());
        let found = of_steps(reader, &path, node, &steps);
        if chosen == Some(key.text.as_str()) {
            overrides = Some(found);
        }
    }
    if entries.len() > DECLARED_MAX {
        let what = format!("are {}; at most {DECLARED_MAX} are allowed", entries.len());
        reader.fault("environments", node.at, what);
    }
    if let Some(chosen) = chosen.filter(|_| overrides.is_none()) {
        let known = declared.environments.iter().map(String::as_str);
        let hint = match suggestion(chosen, known) {
            hint if hint.is_empty() && declared.environments.is_empty() => {
                "; there are none".into()
            }
            hint if hint.is_empty() => format!("; known are {}", declared.environments.join(", ")),
            hint => hint,
        };
        let what = format!("no environment is named {}{hint}", quoted(chosen));
        reader.fault("environments", node.at, what);
    }
    overrides
}

/// The numbers of the steps of a definition, by name.
fn step_numbers(root: &Node) -> HashMap<String, usize> {
    let Some(Value::List(steps)) = entry(root, "steps").map(|steps| &steps.value) else {
        return HashMap::new();
    };
    let named =
        steps.iter().enumerate().filter_map(|(i, step)| match &entry(step, "name")?.value {
            Value::Scalar { text, .. } => Some((text.clone(), i)),
            _ => None,
        });
    named.collect()
}

/// What an environment says of steps.
fn of_steps<'n>(
    reader: &mut Reader,
    path: &str,
    node: &'n Node,
    steps: &HashMap<String, usize>,
) -> Vec<(usize, &'n Entries)> {
    let fields: Fields<'n> = reader.fields(path, node, &ENVIRONMENT);
    let Some((path, node)) = fields.get("steps") else { return Vec::new() };
    let mut found = Vec::new();
    for (key, node) in reader.entries(&path, node) {
        let path = format!("{path}.{}", quoted(&key.text).trim_matches('"'));
        match steps.get(&key.text) {
            Some(step) => {
                // Its name is what it is found by.
                reader.fields(&path, node, &STEP[1..]);
                if let Value::Map(entries) = &node.value {
                    found.push((*step, entries));
                }
            }
            None => {
                let meant = suggestion(&key.text, steps.keys().map(String::as_str));
                let what = format!("no step is named {}{meant}", quoted(&key.text));
                reader.fault(&path, key.at, what);
            }
        }
    }
    found
}

fn entry<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
}

/// Lays what is said of a step over it; what cannot be said of one was told.
fn apply(root: &mut Node, step: usize, entries: &Entries) {
    let Value::Map(fields) = &mut root.value else { return };
    let steps = fields.iter_mut().find(|(key, _)| key.text == "steps");
    if let Some((_, Node { value: Value::List(steps), .. })) = steps
        && let Some(Node { value: Value::Map(step), .. }) = steps.get_mut(step)
    {
        let known = entries.iter().filter(|(key, _)| STEP[1..].contains(&key.text.as_str()));
        known.for_each(|entry| lay(step, entry));
    }
}

/// Lays one entry over those of its name: mappings key by key, anything else instead of what is there.
fn lay(entries: &mut Entries, (key, over): &(Key, Node)) {
    let there = entries.iter_mut().find(|(k, _)| k.text == key.text).map(|(_, node)| node);
    match (there, &over.value) {
        (Some(Node { value: Value::Map(base), .. }), Value::Map(others)) => {
            others.iter().for_each(|other| lay(base, other));
        }
        (Some(there), _) => *there = over.clone(),
        (None, _) => entries.push((key.clone(), over.clone())),
    }
}

/// What variables stand for.
struct Values<'c> {
    known: BTreeMap<String, Variable>,
    choices: Option<&'c Choices>,
    added: usize,
    is_changed: bool,
}

impl Values<'_> {
    /// Puts the values into every text of the node that is no key.
    fn expand(&mut self, reader: &mut Reader, path: &str, node: &mut Node) {
        match &mut node.value {
            Value::Map(entries) => {
                for (key, node) in entries {
                    self.expand(reader, &stepwell_yaml::child(path, &key.text), node);
                }
            }
            Value::List(items) => {
                for (i, node) in items.iter_mut().enumerate() {
                    self.expand(reader, &format!("{path}[{i}]"), node);
                }
            }
            Value::Scalar { text, plain } => {
                if let Some(expanded) = self.expanded(reader, path, node.at, text) {
                    // A value never becomes more than text.
                    (*text, *plain) = (expanded, false);
                }
            }
        }
    }

    /// The text with values in it; none: it has no variable.
    fn expanded(
        &mut self,
        reader: &mut Reader,
        path: &str,
        at: Place,
        text: &str,
    ) -> Option<String> {
        let (mut out, mut rest, mut is_changed) = (String::new(), text, false);
        while let Some(found) = rest.find("${") {
            let (before, inside) = (&rest[..found], &rest[found + 2..]);
            let name = inside.split_once('}').map_or("", |(name, _)| name);
            let is_literal = before.ends_with('$');
            if !is_variable(name) {
                self.meant(reader, path, at, name);
                out.push_str(&rest[..found + 2]);
                rest = inside;
                continue;
            }
            out.push_str(if is_literal { &before[..before.len() - 1] } else { before });
            match is_literal {
                true => out.push_str(&format!("${{{name}}}")),
                false => out.push_str(&self.value(reader, path, at, name)),
            }
            is_changed = true;
            rest = &inside[name.len() + 1..];
        }
        if !is_changed {
            return None;
        }
        self.is_changed = true;
        out.push_str(rest);
        Some(out)
    }

    /// What is no variable is somebody else's, such as `${context.id}`, unless it is one in small letters.
    fn meant(&self, reader: &mut Reader, path: &str, at: Place, name: &str) {
        let upper = name.to_ascii_uppercase();
        if self.known.contains_key(&upper) {
            let what = format!("${{{name}}} is no variable; did you mean `${{{upper}}}`?");
            reader.fault(path, at, what);
        }
    }

    fn value(&mut self, reader: &mut Reader, path: &str, at: Place, name: &str) -> String {
        let Some(choices) = self.choices else {
            let what = format!(
                "${{{name}}} is a variable, which has no value here: `stepwell definition apply` \
                 gives it one; the text itself is written `$${{{name}}}`"
            );
            reader.fault(path, at, what);
            return String::new();
        };
        let Some(variable) = self.known.get_mut(name) else {
            let hint = match suggestion(name, self.known.keys().map(String::as_str)) {
                hint if hint.is_empty() => {
                    format!(
                        "; declare it under `variables`, or write `$${{{name}}}` for the text itself"
                    )
                }
                hint => hint,
            };
            reader.fault(path, at, format!("no variable is named {name}{hint}"));
            return String::new();
        };
        let value = choices.set.get(name).or_else(|| choices.environ.get(name));
        let Some(value) = value.or(variable.default.as_ref()) else {
            if !std::mem::replace(&mut variable.is_missed, true) {
                let what = format!(
                    "${{{name}}} has neither a value nor a default; give `--set {name}=…`, or set \
                     it in the process's environment"
                );
                reader.fault(path, at, what);
            }
            return String::new();
        };
        self.added += value.len();
        let what = match value.len() {
            bytes if bytes > VALUE_BYTES_MAX => {
                format!(
                    "the value of ${{{name}}} has {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed"
                )
            }
            _ if self.added > ADDED_BYTES_MAX => {
                format!("the values of variables have more than {ADDED_BYTES_MAX} bytes in all")
            }
            _ => return value.clone(),
        };
        reader.fault(path, at, what);
        String::new()
    }
}

/// A part of a tree as YAML that has the same lines: what reads it names the same places but for their columns.
pub(crate) fn text_of(entries: &[&(Key, Node)]) -> String {
    let mut out = Lines { text: String::new(), line: 1 };
    out.text.push('{');
    for (i, (key, node)) in entries.iter().enumerate() {
        if i > 0 {
            out.text.push(',');
        }
        out.entry(key, node);
    }
    out.text.push_str("}\n");
    out.text
}

struct Lines {
    text: String,
    line: usize,
}

impl Lines {
    /// Goes on in the line, unless that is past.
    fn at(&mut self, place: Place) {
        while self.line < place.line {
            self.text.push_str("\n ");
            self.line += 1;
        }
    }

    fn entry(&mut self, key: &Key, node: &Node) {
        self.at(key.at);
        self.string(&key.text);
        self.text.push_str(": ");
        self.node(node);
    }

    fn node(&mut self, node: &Node) {
        match &node.value {
            Value::Map(entries) => {
                self.text.push('{');
                for (i, (key, node)) in entries.iter().enumerate() {
                    if i > 0 {
                        self.text.push(',');
                    }
                    self.entry(key, node);
                }
                self.text.push('}');
            }
            Value::List(items) => {
                self.text.push('[');
                for (i, node) in items.iter().enumerate() {
                    if i > 0 {
                        self.text.push(',');
                    }
                    self.node(node);
                }
                self.text.push(']');
            }
            // Nothing else can be written so that it means the same in any place.
            Value::Scalar { text, plain: true } if is_bare(text) => {
                self.at(node.at);
                self.text.push_str(if text.is_empty() { "~" } else { text });
            }
            Value::Scalar { text, .. } => {
                self.at(node.at);
                self.string(text);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push_str(&serde_json::Value::from(text).to_string());
    }
}

/// Plain text that stands for a number, a boolean or nothing.
fn is_bare(text: &str) -> bool {
    stepwell_yaml::scalar_kind(text) != stepwell_yaml::ScalarKind::Text
}

#[cfg(test)]
mod tests;
