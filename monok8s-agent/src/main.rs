//! `monok8s-agent`: carries out OS upgrades on the node it runs on.

use std::process::ExitCode;

fn main() -> ExitCode {
    monok8s_agent::program::main()
}
