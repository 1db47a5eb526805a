//! Log lines on standard error: text for people or JSON for machines.

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogLevel};

/// Installs the process's log. The consensus library's own lines are of use to its developers only, so they are shown from
/// `trace` on.
pub fn init(level: LogLevel, format: LogFormat) {
    let directives = match level {
        LogLevel::Trace => "trace".to_owned(),
        LogLevel::Error | LogLevel::Warn | LogLevel::Info | LogLevel::Debug => {
            format!("{},openraft=error,hyper=warn,mio=warn", level.as_str())
        }
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    // A second call in one process (tests) keeps the first log.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
