//! The task-service binary; all of it is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    stepwell_task::main(stepwell_task::Options::parse())
}
