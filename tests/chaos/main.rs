//! Faults, on purpose: processes killed, stopped and cut off while they work, and a checker that
//! reads what everybody saw. Seeds are printed; `CHAOS_SEED` repeats one. Without further words each
//! scenario runs once, short enough for every commit; `CHAOS_TASKS`, `CHAOS_SECONDS` and
//! `CHAOS_RUNS` make it longer (see CONTRIBUTING.md).
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod clocks;
mod database;
mod feeds;
mod kills;
mod load;
mod partitions;
mod points;
mod stage;
mod stops;
