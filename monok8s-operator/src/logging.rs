//! Log lines on stderr.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::args::LogFormat;

/// Installs the subscriber of the process. `directives` as in `info,monok8s_operator=debug`.
///
/// # Errors
///
/// If the directives cannot be understood.
pub fn init(format: LogFormat, directives: &str) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(directives)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // It fails only if there is a subscriber already, as in a test; then that one stands.
    match format {
        LogFormat::Text => lines.with_ansi(false).try_init().ok(),
        LogFormat::Json => lines.json().try_init().ok(),
    };
    Ok(())
}
