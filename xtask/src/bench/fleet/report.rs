//! The figures as JSON, and as a table for people.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::measure::Figures;
use crate::bench::host_facts::HostFacts;

pub(super) fn write(figures: &[Figures], output: &Path) -> Result<()> {
    let host = HostFacts::look();
    fs::create_dir_all(output)?;
    let json = json!({ "host": host, "fleets": figures });
    fs::write(output.join("fleet.json"), format!("{}\n", serde_json::to_string_pretty(&json)?))?;
    let text = text(&host, figures);
    print!("{text}");
    fs::write(output.join("fleet.md"), text)?;
    Ok(())
}

type Figure = (&'static str, fn(&Figures) -> String);

const ROWS: [Figure; 13] = [
    ("seconds from the apply to a progress object for each node", |it| format!("{:.1}", it.objects_seconds)),
    ("seconds that the API server takes for the same objects alone", |it| {
        format!("{:.1}", it.server_alone_seconds)
    }),
    ("seconds from the apply to the end", |it| format!("{:.1}", it.rollout_seconds)),
    ("operator: peak RSS, MiB", |it| format!("{:.0}", it.peak_rss_mib)),
    ("operator: CPU seconds", |it| format!("{:.1}", it.cpu_seconds)),
    ("operator: passes", |it| it.passes.to_string()),
    ("operator: mean pass, ms", |it| format!("{:.1}", it.pass_mean_ms)),
    ("planner: mean decision, ms", |it| format!("{:.2}", it.plan_mean_ms)),
    ("planner: mean decision, ms of a processor", |it| format!("{:.2}", it.plan_mean_cpu_ms)),
    ("writes of the operator per node", |it| format!("{:.1}", it.operator_writes_per_node)),
    ("writes of agents per node, as driven", |it| format!("{:.1}", it.agent_writes_per_node)),
    ("writes that lost a race", |it| it.conflicts.to_string()),
    ("writes of the operator in 20 s at rest", |it| it.writes_at_rest.to_string()),
];

fn text(host: &HostFacts, figures: &[Figures]) -> String {
    let cells = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = format!(
        "# A rollout over a whole fleet\n\nWritten by `cargo xtask bench fleet`; every figure is from one run of it.\n\n- \
         Machine: {}, {} cores, Linux {}; the API server, etcd, the operator and what stands in for agents and \
         kubelets share it\n- `maxUnavailable` and `maxParallelStaging` are 10 %; no node has a pod that has to leave\n\n",
        host.cpu, host.cores, host.kernel
    );
    let nodes = figures.iter().map(|it| it.nodes.to_string());
    text.push_str(&cells(std::iter::once("nodes".to_owned()).chain(nodes).collect()));
    text.push_str(&cells(
        std::iter::once("---".to_owned()).chain(figures.iter().map(|_| "---:".to_owned())).collect(),
    ));
    for (name, value) in ROWS {
        text.push_str(&cells(std::iter::once(name.to_owned()).chain(figures.iter().map(value)).collect()));
    }
    text
}
