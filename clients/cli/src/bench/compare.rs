//! `stepwell bench compare`: two builds or settings in turns, so that what else the machine does
//! meets both alike.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};

use super::Run;
use crate::{
    fault::Fault,
    output::{self, Format},
};

/// `stepwell bench compare`
#[derive(Args)]
pub(crate) struct Compare {
    /// The first: a `stepwell` program, options of `stepwell bench`, or the program and then
    /// options, in one word for the shell: 'old/stepwell --set STEPWELL_WORKER_THREADS=1'.
    #[arg(allow_hyphen_values = true)]
    first: String,
    /// The second, in the same way.
    #[arg(allow_hyphen_values = true)]
    second: String,
    /// How often each is run. 1 to 100.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: u8,
    /// How the result looks.
    #[arg(short, long, default_value = "table", value_parser = output::of_reports())]
    output: Format,
    /// Options of `stepwell bench` for both, after `--`.
    #[arg(last = true)]
    options: Vec<String>,
}

/// Figures that are compared, by their keys; true where more is better.
const FIGURES: [(&str, bool); 11] = [
    ("/steps_per_second", true),
    ("/tasks_per_second", true),
    ("/p50_ms", false),
    ("/p99_ms", false),
    ("/hand_over/p50_ms", false),
    ("/hand_over/p99_ms", false),
    ("/create/p50_ms", false),
    ("/delivery/p50_ms", false),
    ("/database/wal_bytes_per_step", false),
    ("/database/commits_per_step", false),
    ("/database/statements_per_step", false),
];

struct Side {
    words: Vec<String>,
    reports: Vec<Value>,
}

impl Compare {
    pub(super) async fn run(self) -> Result<ExitCode, Fault> {
        let side = |text: &str| {
            let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            if words.first().is_some_and(|word| !word.starts_with('-')) {
                words.insert(0, "--executable".into());
            }
            words.splice(0..0, self.options.iter().cloned());
            Side { words, reports: Vec::new() }
        };
        let mut sides = [side(&self.first), side(&self.second)];
        for side in &sides {
            checked(&side.words)?;
        }
        for round in 0..usize::from(self.rounds) {
            // The one that was second before is first now.
            for turn in [round % 2, 1 - round % 2] {
                let side = &mut sides[turn];
                let report = run_once(&side.words).await?;
                let steps = figure(&report, FIGURES[0].0).unwrap_or(0.0);
                output::note(format!(
                    "round {}, {}: {steps:.0} steps/s",
                    round + 1,
                    ["A", "B"][turn]
                ));
                side.reports.push(report);
            }
        }
        let rows = FIGURES.iter().filter_map(|(key, more)| {
            let a = median(&sides[0].reports, key)?;
            let b = median(&sides[1].reports, key)?;
            Some((key.trim_start_matches('/').replace('/', "."), a, b, *more))
        });
        let rows: Vec<(String, f64, f64, bool)> = rows.collect();
        let medians: serde_json::Map<String, Value> = rows
            .iter()
            .map(|(name, a, b, _)| (name.clone(), json!({"a": a, "b": b, "ratio": b / a})))
            .collect();
        let [a, b] = sides.map(|side| side.reports);
        let all = json!({"rounds": self.rounds, "medians": medians, "a": a, "b": b});
        self.output.report(&all, || {
            let mut table = output::table(&["", "A", "B", "B / A", ""]);
            for (name, a, b, more) in rows {
                let ratio = b / a;
                let better = if (ratio > 1.0) == more { "better" } else { "worse" };
                let verdict = if (ratio - 1.0).abs() < 0.03 { "same" } else { better };
                table.add_row([
                    name,
                    short(a),
                    short(b),
                    format!("{ratio:.3}"),
                    verdict.to_owned(),
                ]);
            }
            format!("medians of {} runs each, in turns\n{}", self.rounds, output::text(&table))
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The options are looked at before anything runs.
fn checked(words: &[String]) -> Result<(), Fault> {
    #[derive(clap::Parser)]
    #[command(no_binary_name = true)]
    struct Told {
        #[command(flatten)]
        run: Run,
    }
    let told: Told = clap::Parser::try_parse_from(words)
        .map_err(|error| Fault::usage(error.render().to_string().trim_end().to_owned()))?;
    match told.run.own.executable {
        Some(program) if !program.is_file() => {
            Err(Fault::usage(format!("there is no program {}", program.display())))
        }
        _ => Ok(()),
    }
}

async fn run_once(words: &[String]) -> Result<Value, Fault> {
    let program: PathBuf = std::env::current_exe()?;
    let ran = tokio::process::Command::new(program)
        .arg("bench")
        .args(words)
        .args(["--output", "json"])
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
        return Err(Fault::new(format!("a run failed: bench {}", words.join(" "))).because(said));
    }
    serde_json::from_slice(&ran.stdout).map_err(|error| Fault::new(error.to_string()))
}

fn figure(report: &Value, key: &str) -> Option<f64> {
    report.pointer(key)?.as_f64()
}

fn median(reports: &[Value], key: &str) -> Option<f64> {
    let mut figures: Vec<f64> = reports.iter().filter_map(|r| figure(r, key)).collect();
    figures.sort_unstable_by(f64::total_cmp);
    let (low, high) =
        (figures.get(figures.len().checked_sub(1)? / 2)?, figures.get(figures.len() / 2)?);
    Some((low + high) / 2.0)
}

fn short(figure: f64) -> String {
    if figure >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        let reports = |figures: &[f64]| -> Vec<Value> {
            figures.iter().map(|f| serde_json::json!({"p50_ms": f})).collect()
        };
        assert_eq!(median(&reports(&[3.0, 1.0, 2.0]), "/p50_ms"), Some(2.0));
        assert_eq!(median(&reports(&[4.0, 1.0]), "/p50_ms"), Some(2.5));
        assert_eq!(median(&reports(&[]), "/p50_ms"), None);
    }

    #[test]
    fn wrong_options_of_a_side_are_refused_before_anything_runs() {
        let words = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        assert!(checked(&words(&["--in-flight", "8", "--set", "A=b"])).is_ok());
        for wrong in [&["--in-flight", "0"][..], &["--set", "A"], &["--executable", "/not/there"]] {
            assert!(checked(&words(wrong)).is_err(), "{wrong:?}");
        }
    }
}
