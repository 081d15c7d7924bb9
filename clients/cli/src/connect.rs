//! Where the services are, as every client command is told.

use clap::Args;
use stepwell_client::{Addresses, Client};

use crate::{fault::Fault, output};

/// Addresses of the services; those of `stepwell dev` unless given.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connect {
    /// Address of the task-service; several with commas.
    #[arg(
        long,
        env = "STEPWELL_TASK_ADDRESS",
        default_value = "http://127.0.0.1:7101",
        value_delimiter = ',',
        global = true
    )]
    task_address: Vec<String>,
    /// Address of the step-service; several with commas.
    #[arg(
        long,
        env = "STEPWELL_STEP_ADDRESS",
        default_value = "http://127.0.0.1:7102",
        value_delimiter = ',',
        global = true
    )]
    step_address: Vec<String>,
    /// Address of the event-service; several with commas.
    #[arg(
        long,
        env = "STEPWELL_EVENT_ADDRESS",
        default_value = "http://127.0.0.1:7103",
        value_delimiter = ',',
        global = true
    )]
    event_address: Vec<String>,
}

/// Where services are, and how what they answer is shown.
#[derive(Args)]
pub(crate) struct Show {
    /// How it is shown.
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: output::Format,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

impl Connect {
    pub(crate) fn client(&self) -> Result<Client, Fault> {
        Ok(Client::connect(Addresses {
            task: self.task_address.clone(),
            step: self.step_address.clone(),
            event: self.event_address.clone(),
        })?)
    }
}

/// The client of a suite.
pub(crate) fn client_of(suite: &stepwell_suite::Suite) -> Result<Client, Fault> {
    let stepwell_suite::Addresses { task, step, event } = suite.addresses();
    Ok(Client::connect(Addresses { task, step, event })?)
}
