//! The parts that every example has beside the checkout: what it is made of, its processes, and the check of
//! all of it.

use clap::{Args, Subcommand};
use stepwell_examples::example::{Example, Input};

use super::{Servers, told_to_stop};
use crate::{connect::Connect, fault::Fault, output};

#[derive(Subcommand)]
pub(crate) enum Part {
    /// Print the definition, to be registered by `stepwell definition apply -`.
    Definition(Definition),
    /// Print the context of one task.
    Context(Context),
    /// Print the shipped inputs: contexts, each with what must become of it.
    Inputs,
    /// Run the servers that the handlers call.
    Servers(Servers),
    /// Run the executors.
    Executor(Executor),
    /// Run all inputs over executors that are there, and compare what becomes of them with what must.
    Check(Connect),
}

#[derive(Args)]
pub(crate) struct Definition {
    /// The namespace of the definition, where the example has several; the first unless given.
    namespace: Option<String>,
}

#[derive(Args)]
pub(crate) struct Context {
    /// Which of the inputs it is of, from 1.
    #[arg(default_value_t = 1)]
    input: usize,
}

#[derive(Args)]
pub(crate) struct Executor {
    /// Address of the example's servers.
    #[arg(long, env = "STEPWELL_EXAMPLE_SERVERS", default_value = "http://127.0.0.1:7110")]
    servers: String,
    #[command(flatten)]
    connect: Connect,
}

/// The inputs as they are shipped; an error would be a fault of the program.
fn inputs(example: &Example) -> Result<Vec<Input>, Fault> {
    example.inputs().map_err(Fault::new)
}

impl Part {
    pub(crate) async fn run(self, example: &Example) -> Result<(), Fault> {
        match self {
            Self::Definition(definition) => definition.print(example),
            Self::Context(context) => context.print(example),
            Self::Inputs => output::line(example.inputs.trim_end()),
            Self::Servers(servers) => {
                let (listener, address) = servers.listen().await?;
                output::note(format!("the servers of {} listen on {address}", example.name));
                Ok(example.serve(listener).await?)
            }
            Self::Executor(executor) => executor.run(example).await,
            Self::Check(connect) => check(example, &connect).await,
        }
    }
}

impl Definition {
    fn print(&self, example: &Example) -> Result<(), Fault> {
        let namespaces = example.definitions.iter().map(|(namespace, _)| *namespace);
        let namespaces: Vec<&str> = namespaces.collect();
        let wanted = self.namespace.as_deref().or(namespaces.first().copied()).unwrap_or_default();
        let found = example.definitions.iter().find(|(namespace, _)| *namespace == wanted);
        let Some((_, text)) = found else {
            return Err(Fault::usage(format!("{} has no definition of {wanted}", example.name))
                .because(format!("it has definitions of {}", namespaces.join(", "))));
        };
        output::line(text.trim_end())
    }
}

impl Context {
    fn print(&self, example: &Example) -> Result<(), Fault> {
        let inputs = inputs(example)?;
        let input = self.input.checked_sub(1).and_then(|place| inputs.get(place));
        let Some(input) = input else {
            let what = format!("{} has inputs 1 to {}", example.name, inputs.len());
            return Err(Fault::usage(what));
        };
        output::note(&input.about);
        output::line(input.context.to_string())
    }
}

impl Executor {
    async fn run(self, example: &Example) -> Result<(), Fault> {
        let client = self.connect.client()?;
        let executors = example.executors(&client, &self.servers).map_err(Fault::usage)?;
        output::note(format!("the executors of {} run", example.name));
        let running = executors.into_iter().map(|executor| executor.run(told_to_stop()));
        let reports = futures::future::try_join_all(running).await?;
        let completed: u64 = reports.iter().map(|report| report.completed).sum();
        let failed: u64 = reports.iter().map(|report| report.failed).sum();
        output::note(format!("{}: {completed} completed, {failed} failed", example.name));
        Ok(())
    }
}

async fn check(example: &Example, connect: &Connect) -> Result<(), Fault> {
    let inputs = inputs(example)?.len();
    let differences = example.check(&connect.client()?).await?;
    if differences.is_empty() {
        return output::line(format!("all {inputs} inputs ended as they must"));
    }
    for difference in &differences {
        output::note(format!("  {difference}"));
    }
    Err(Fault::new(format!(
        "{} differences from what must become of the inputs",
        differences.len()
    )))
}

/// The examples beside the checkout, a line each.
pub(crate) fn others() -> Vec<String> {
    stepwell_examples::EXAMPLES
        .iter()
        .map(|example| format!("{}: {}", example.name, example.about))
        .collect()
}
