//! `ctl`: what people do by hand on a node, and what installs the rest.

use std::process::ExitCode;

fn main() -> ExitCode {
    monok8s_agent::ctl::main()
}
