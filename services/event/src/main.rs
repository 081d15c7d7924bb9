//! The event-service binary; all of it is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    stepwell_event::main(stepwell_event::Options::parse())
}
