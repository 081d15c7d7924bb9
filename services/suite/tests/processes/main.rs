//! Real processes, killed. This program is its own guard and its own parent, so it has its own small
//! `main`: without arguments it runs all tests, with one those whose names contain it.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod guarding;
mod parent;
mod postgres;
mod traces;

use std::process::ExitCode;

/// A story, and what tells it.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("__guard") => return stepwell_suite::guard_main(),
        Some("__parent") => return parent::main(args),
        _ => {}
    }
    if !cfg!(target_os = "linux") {
        println!("not tested: what is left behind is looked for in /proc");
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tests = [guarding::TESTS, postgres::TESTS].concat();
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let wanted = args.iter().find(|arg| !arg.starts_with('-'));
    let mut failed = 0;
    for (name, test) in tests {
        if wanted.is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs what waits.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(future)
}
