//! The step-service binary; all of it is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    stepwell_step::main(stepwell_step::Options::parse())
}
