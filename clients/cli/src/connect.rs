//! Where the services are, and which namespace is meant, as every client command is told: by a flag, by the
//! environment, by the profile ([`crate::config`]), or not at all.

use clap::Args;
use stepwell_client::{Addresses, Client};

use crate::{config::Profile, fault::Fault, output};

/// Addresses of the services.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Services")]
pub(crate) struct Connect {
    /// Address of the task-service; several with commas. Default: the profile's, or http://127.0.0.1:7101.
    #[arg(long, env = "STEPWELL_TASK_ADDRESS", value_delimiter = ',', value_name = "ADDRESS")]
    task_address: Vec<String>,
    /// Address of the step-service; several with commas. Default: the profile's, or http://127.0.0.1:7102.
    #[arg(long, env = "STEPWELL_STEP_ADDRESS", value_delimiter = ',', value_name = "ADDRESS")]
    step_address: Vec<String>,
    /// Address of the event-service; several with commas. Default: the profile's, or http://127.0.0.1:7103.
    #[arg(long, env = "STEPWELL_EVENT_ADDRESS", value_delimiter = ',', value_name = "ADDRESS")]
    event_address: Vec<String>,
}

/// The one namespace that a command is about.
#[derive(Args, Clone, Debug)]
pub(crate) struct Namespace {
    /// The namespace; the profile's, or `default`, unless given.
    #[arg(long, short, env = "STEPWELL_NAMESPACE")]
    namespace: Option<String>,
}

/// Where services are, and how what they answer is shown.
#[derive(Args, Clone, Debug)]
pub(crate) struct Show {
    /// How it is shown.
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: output::Format,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

impl Namespace {
    pub(crate) fn get(&self) -> Result<String, Fault> {
        match self.namespace.as_deref().map(str::trim) {
            None | Some("") => Ok(Profile::chosen()?.namespace()),
            Some(given) => Ok(given.to_owned()),
        }
    }
}

impl Connect {
    pub(crate) fn client(&self) -> Result<Client, Fault> {
        Ok(Client::connect(self.addresses()?)?)
    }

    pub(crate) fn addresses(&self) -> Result<Addresses, Fault> {
        let profile = Profile::chosen()?.addresses();
        let pick = |given: &[String], of_profile: Vec<String>| {
            let given = given.iter().map(|address| address.trim());
            let given: Vec<String> =
                given.filter(|address| !address.is_empty()).map(str::to_owned).collect();
            if given.is_empty() { of_profile } else { given }
        };
        Ok(Addresses {
            task: pick(&self.task_address, profile.task),
            step: pick(&self.step_address, profile.step),
            event: pick(&self.event_address, profile.event),
        })
    }
}

/// The client of a suite.
pub(crate) fn client_of(suite: &stepwell_suite::Suite) -> Result<Client, Fault> {
    let stepwell_suite::Addresses { task, step, event } = suite.addresses();
    Ok(Client::connect(Addresses { task, step, event })?)
}
