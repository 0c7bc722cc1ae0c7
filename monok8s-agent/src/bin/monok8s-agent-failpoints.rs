//! `monok8s-agent-failpoints`: the same agent, for tests, that ends itself at the point that
//! `MONOK8S_FAILPOINT` names.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = monok8s_agent::failpoints::read_environment() {
        eprintln!("monok8s-agent-failpoints: {error}");
        return ExitCode::FAILURE;
    }
    monok8s_agent::program::main()
}
