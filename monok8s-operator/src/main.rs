//! The operator's program: arguments in, one line of error out.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use monok8s_operator::args::{Cli, Command};
use monok8s_operator::{logging, run};
use monok8s_sdk::api::crds_yaml;
use monok8s_sdk::causes::chain;

fn main() -> ExitCode {
    // Before anything that may speak TLS; the SDK and kube choose no provider themselves.
    let provider = rustls::crypto::ring::default_provider().install_default();
    let done = match (provider, Cli::parse().command) {
        (Err(_), _) => Err("another TLS provider is installed already".to_owned()),
        (Ok(()), Command::Crds) => print_crds().map_err(|error| format!("cannot print the CRDs: {error}")),
        (Ok(()), Command::Run(args)) => logging::init(args.log_format, &args.log)
            .map_err(|error| format!("--log: {error}"))
            .and_then(|()| run::blocking(&args).map_err(|error| chain(&error))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("monok8s-operator: {why}");
            ExitCode::FAILURE
        }
    }
}

fn print_crds() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for (_, yaml) in crds_yaml() {
        write!(out, "---\n{yaml}")?;
    }
    out.flush()
}
