//! `cargo xtask bench fleet`: what a rollout over thousands of nodes costs the operator and the API server.
//!
//! The API server, etcd and the operator are real, the latter as it is released. Nodes are objects, and one
//! driver writes what their agents and kubelets would.

mod agents;
mod alone;
mod measure;
mod report;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::host::workspace_root;
use crate::programs::Program;

/// Which fleets are wanted.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Numbers of nodes, each measured on a cluster of its own.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [100, 1000, 5000])]
    nodes: Vec<usize>,

    /// Directory for fleet.json and fleet.md.
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// Measures, and writes the results.
///
/// # Errors
/// The operator cannot be built, or a rollout did not end.
pub async fn run(options: Options) -> Result<()> {
    println!("building the operator as it is released");
    let operator = Program::Operator.locate_release()?;
    let mut figures = Vec::new();
    for nodes in options.nodes {
        let figure = measure::measure(&operator, nodes).await.with_context(|| format!("{nodes} nodes"))?;
        println!("{figure:#?}");
        figures.push(figure);
    }
    let output = options.output.unwrap_or_else(|| workspace_root().join("bench"));
    report::write(&figures, &output)
}
