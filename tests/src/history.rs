//! What each process of a chaos run saw, one JSON object a line, and the shapes of tasks that such
//! a run is made of. A line is written before what follows from it: a process may be killed at any
//! moment, and then only its last line may be cut.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde_json::{Value, json};

/// The history of one process.
#[derive(Debug)]
pub struct History {
    file: Mutex<File>,
    start: Instant,
}

impl History {
    /// A new file; one process, one file.
    pub fn create(path: &Path) -> Self {
        let file = File::create_new(path).unwrap();
        let history = Self { file: Mutex::new(file), start: Instant::now() };
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        history.record(json!({"what": "began", "unix_ms": wall.as_millis() as u64}));
        history
    }

    /// Appends one entry.
    pub fn record(&self, mut entry: Value) {
        entry["ms"] = json!(self.start.elapsed().as_secs_f64() * 1000.0);
        let line = format!("{entry}\n");
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// The entries of one file; none if it is not there yet. A last line that was cut is left out.
pub fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.split('\n').collect::<Vec<_>>();
    lines.pop();
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A kind of task.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The name of its definition.
    pub name: &'static str,
    /// What the last step counts to, when every step adds one to the sum of its parents. None: it
    /// must end in error.
    pub last: Option<i64>,
    /// One in so many tasks is of this shape, about.
    pub weight: u32,
    yaml: &'static str,
}

/// Singles, chains, diamonds, wide ones; some with failures, some that must fail.
pub const SHAPES: &[Shape] = &[
    Shape { name: "single", last: Some(1), weight: 30, yaml: "steps: [{name: a, handler: work}]" },
    Shape {
        name: "chain",
        last: Some(5),
        weight: 20,
        yaml: "
steps:
  - {name: a, handler: work}
  - {name: b, handler: work, depends_on: [a]}
  - {name: c, handler: work, depends_on: [b]}
  - {name: d, handler: work, depends_on: [c]}
  - {name: e, handler: work, depends_on: [d]}",
    },
    Shape {
        name: "diamond",
        last: Some(5),
        weight: 20,
        yaml: "
steps:
  - {name: a, handler: work}
  - {name: b, handler: work, depends_on: [a]}
  - {name: c, handler: work, depends_on: [a]}
  - {name: d, handler: work, depends_on: [b, c]}",
    },
    Shape {
        name: "flaky",
        last: Some(3),
        weight: 20,
        yaml: "
steps:
  - {name: a, handler: work, config: {fail_percent: 30}}
  - {name: b, handler: work, depends_on: [a], config: {fail_percent: 30}}
  - {name: c, handler: work, depends_on: [b], config: {fail_percent: 30}}",
    },
    Shape {
        name: "doomed",
        last: None,
        weight: 8,
        yaml: "
steps:
  - {name: a, handler: work}
  - {name: b, handler: work, depends_on: [a], config: {doomed: true}}
  - {name: c, handler: work, depends_on: [b]}",
    },
    Shape { name: "wide", last: Some(101), weight: 2, yaml: "" },
];

impl Shape {
    /// Its definition. A step may be tried so often that lost leases alone hardly end it.
    pub fn yaml(&self) -> String {
        let head = format!(
            "name: {}\ndefaults: {{retry: {{max_attempts: 50, initial_backoff: 20ms, max_backoff: 500ms}}, timeout: 60s}}\n",
            self.name
        );
        if self.name != "wide" {
            return head + self.yaml.trim_start();
        }
        let leaves: Vec<String> = (0..50).map(|i| format!("leaf{i}")).collect();
        let mut steps = String::from("steps:\n  - {name: root, handler: work}\n");
        for leaf in &leaves {
            steps += &format!("  - {{name: {leaf}, handler: work, depends_on: [root]}}\n");
        }
        steps +=
            &format!("  - {{name: join, handler: work, depends_on: [{}]}}\n", leaves.join(", "));
        head + &steps
    }
}
