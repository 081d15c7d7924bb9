//! What is written about metrics: `docs/metrics.md`, the dashboard and the rules for alerts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use promql_parser::{
    parser::{self, Expr, VectorSelector},
    util::{ExprVisitor, walk_expr},
};
use serde_json::Value;
use stepwell_tests::{Scrape, metric_of};

fn document(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The cells of the rows of tables whose first one begins so.
fn rows<'a>(text: &'a str, begins: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.filter(move |row| row.starts_with(begins))
        .map(|row| row.split(" | ").map(str::trim).collect())
}

/// The words between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The documented names.
fn documented() -> BTreeSet<String> {
    let text = document("docs/metrics.md");
    rows(&text, "`stepwell_").map(|row| row[0].trim_matches('`').to_owned()).collect()
}

/// What services told is what the document says: names, types, units, labels and their values, meanings.
pub(super) fn agree(told: &Scrape) {
    let text = document("docs/metrics.md");
    let mut written = BTreeMap::new();
    for row in rows(&text, "`stepwell_") {
        let [name, kind, unit, labels, meaning, _] = row[..] else { panic!("{row:?}") };
        let name = name.trim_matches('`').to_owned();
        let told_unit = match name.trim_end_matches("_total") {
            name if name.ends_with("_seconds") => "seconds",
            name if name.ends_with("_bytes") => "bytes",
            _ => "",
        };
        assert_eq!(unit, told_unit, "the unit of {name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        let row = (kind.to_owned(), quoted(labels), meaning.to_owned());
        assert!(written.insert(name, row).is_none());
    }
    let told_rows: BTreeMap<_, _> = told
        .families
        .iter()
        .map(|(name, (kind, help))| {
            (name.clone(), (kind.clone(), told.labels_of(name), help.clone()))
        })
        .collect();
    for (name, row) in &told_rows {
        assert_eq!(Some(row), written.get(name), "{name}: what is told, and what is written");
    }
    let untold: Vec<_> = written.keys().filter(|name| !told_rows.contains_key(*name)).collect();
    assert!(untold.is_empty(), "documented, but no service tells of them: {untold:?}");
    assert!(told_rows.len() > 50, "{} metrics", told_rows.len());
    labels_are_of_few_values(told, &text);
}

/// Each value of a label is one that the document lists, or a name that a user gave to a handler, a
/// namespace or a subscription. So there is no place for an id or a payload.
fn labels_are_of_few_values(told: &Scrape, text: &str) {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let table = text.split("## Labels").nth(1).unwrap().split("\n## ").next().unwrap();
    for row in rows(table, "`") {
        for label in quoted(row[0]) {
            values.insert(label, quoted(row[1]));
        }
    }
    let named = [
        "default", "a", "b", "d", "hang", "left", "nobody", "slow", "unread", "paused", "", "other",
    ];
    for sample in &told.samples {
        for (label, value) in sample.labels.iter().filter(|(label, _)| *label != "le") {
            let listed = values.get(label).unwrap_or_else(|| panic!("the label {label}"));
            let known = match label.as_str() {
                "namespace" | "handler" | "subscription" | "definition" | "step" => {
                    named.contains(&value.as_str())
                }
                "event" => stepwell_proto::catalog::event_type(value).is_some(),
                "version" => value == env!("CARGO_PKG_VERSION"),
                _ => listed.contains(value),
            };
            assert!(known, "{label}={value:?} of {}", sample.name);
        }
    }
}

/// Collects the names a query selects.
struct Names(BTreeSet<String>);

impl ExprVisitor for Names {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        let selected = match expr {
            Expr::VectorSelector(selector) => Some(selector),
            Expr::MatrixSelector(matrix) => Some(&matrix.vs),
            _ => None,
        };
        if let Some(VectorSelector { name, .. }) = selected {
            self.0.insert(name.clone().ok_or("a selector without a name")?);
        }
        Ok(true)
    }
}

fn names_of(query: &str) -> BTreeSet<String> {
    let query = query.replace("$__rate_interval", "5m");
    let parsed = parser::parse(&query).unwrap_or_else(|error| panic!("{query}\n{error}"));
    let mut names = Names(BTreeSet::new());
    walk_expr(&mut names, &parsed).unwrap_or_else(|error| panic!("{query}\n{error}"));
    names.0
}

/// The metrics of queries; each is a documented one.
fn metrics_of<'a>(queries: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let documented = documented();
    let mut used = BTreeSet::new();
    for query in queries {
        let names = names_of(query);
        assert!(!names.is_empty(), "{query} is about nothing");
        for name in names {
            let metric = metric_of(&name, |name| documented.contains(name)).to_owned();
            assert!(documented.contains(&metric), "{name}, in {query}");
            used.insert(metric);
        }
    }
    used
}

/// All values of this key, however deep.
fn all<'a>(value: &'a Value, key: &str, into: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            if name == key {
                into.push(value);
            }
            all(value, key, into);
        }),
        Value::Array(items) => items.iter().for_each(|item| all(item, key, into)),
        _ => {}
    }
}

#[test]
fn every_query_of_the_dashboard_is_about_documented_metrics_and_shows_all_of_them() {
    let dashboard: Value = serde_json::from_str(&document("docs/grafana/stepwell.json")).unwrap();
    assert!(dashboard["schemaVersion"].as_i64().unwrap() >= 39);
    let mut queries = Vec::new();
    all(&dashboard, "expr", &mut queries);
    let used = metrics_of(queries.iter().map(|query| query.as_str().unwrap()));
    assert_eq!(used, documented());

    let panels = dashboard["panels"].as_array().unwrap();
    let (rows, panels): (Vec<_>, Vec<_>) = panels.iter().partition(|p| p["type"] == "row");
    let rows: Vec<&str> = rows.iter().map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(rows, ["Health", "Tasks", "Steps", "Hand-over", "Queues", "Events", "Database"]);
    for panel in panels {
        let text = |key: &str| panel[key].as_str().unwrap_or_default().to_owned();
        assert!(!text("title").is_empty() && text("description").ends_with('.'), "{panel}");
        let mut sources = Vec::new();
        all(panel, "datasource", &mut sources);
        assert!(
            sources.len() > 1 && sources.iter().all(|s| s["uid"] == "${datasource}"),
            "{panel}"
        );
    }
}

#[test]
fn every_alert_is_about_documented_metrics_and_says_what_to_do() {
    let rules: Value = serde_saphyr::from_str(&document("docs/prometheus/alerts.yaml")).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules: Vec<&Value> =
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    let used = metrics_of(rules.iter().map(|rule| rule["expr"].as_str().unwrap()));
    assert!(used.len() > 15, "{used:?}");
    let mut names = BTreeSet::new();
    for rule in rules {
        assert!(names.insert(rule["alert"].as_str().unwrap()), "{rule} stands twice");
        assert!(rule["alert"].as_str().unwrap().starts_with("Stepwell"));
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()));
        for key in ["summary", "action"] {
            let text = rule["annotations"][key].as_str().unwrap();
            assert!(text.ends_with('.') && text.len() > 20, "{key} of {rule}");
        }
        let known = ["alert", "expr", "for", "labels", "annotations"];
        assert!(rule.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())));
    }
}
