//! promtool, which checks and tests the alert rules in `deploy/monitoring/`.
//!
//! From the Go module in `xtask/promtool`, whose `go.sum` pins every source: built once and kept in
//! `target/promtool/`.

use std::path::PathBuf;

use anyhow::Result;

use crate::go::{Executable, Module};

const MODULE: Module = Module {
    name: "promtool",
    title: "promtool",
    go_mod: include_str!("../promtool/go.mod"),
    go_sum: include_str!("../promtool/go.sum"),
    versioned_by: "github.com/prometheus/prometheus",
    // Without the clients of all the clouds in which a Prometheus can look for what it scrapes.
    flags: &["-tags", "remove_all_sd"],
    recipe: "-s -w",
    without_go: "",
};

/// The program.
///
/// # Errors
/// Go is missing or the build failed.
pub async fn promtool() -> Result<PathBuf> {
    let name = "promtool";
    let package = "github.com/prometheus/prometheus/cmd/promtool";
    let path = MODULE.directory()?.join(name);
    if !path.is_file() {
        MODULE.build(&[Executable { package, built_name: name, name: name.to_owned() }], "-s -w").await?;
    }
    Ok(path)
}
