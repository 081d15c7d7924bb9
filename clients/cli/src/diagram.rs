//! `stepwell task diagram`: a task as a picture, for programs that draw.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use stepwell_proto::v1::{DiagramDirection, DiagramFormat, GetTaskDiagramRequest};

use crate::{completion, connect::Connect, fault::Fault, output};

#[derive(Args)]
pub(crate) struct Diagram {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// How it is written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Where the children of a step are drawn.
    #[arg(long, value_enum, default_value_t)]
    direction: Direction,
    /// Where tasks are shown: an http or https URL that the links of nodes begin with.
    #[arg(long, default_value = "", value_name = "URL")]
    base_url: String,
    /// Say of steps in error also what their last error was.
    #[arg(long)]
    with_errors: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Format {
    /// A Mermaid flowchart.
    #[default]
    Mermaid,
    /// A graph for Graphviz.
    Dot,
    /// Nodes and edges as a JSON object.
    Json,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Direction {
    /// Below it.
    #[default]
    TopDown,
    /// Above it.
    BottomUp,
    /// To its right.
    LeftRight,
    /// To its left.
    RightLeft,
}

impl Diagram {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let format = match self.format {
            Format::Mermaid => DiagramFormat::Mermaid,
            Format::Dot => DiagramFormat::Dot,
            Format::Json => DiagramFormat::Json,
        };
        let direction = match self.direction {
            Direction::TopDown => DiagramDirection::TopDown,
            Direction::BottomUp => DiagramDirection::BottomUp,
            Direction::LeftRight => DiagramDirection::LeftRight,
            Direction::RightLeft => DiagramDirection::RightLeft,
        };
        let request = GetTaskDiagramRequest {
            task_id: self.task_id,
            format: format.into(),
            direction: direction.into(),
            base_url: self.base_url,
            with_errors: self.with_errors,
        };
        let answer = self.connect.client()?.get_task_diagram(request).await?;
        output::line(output::plain_lines(answer.diagram.trim_end()))?;
        Ok(ExitCode::SUCCESS)
    }
}
