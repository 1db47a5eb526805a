//! The words of commands, for messages.

use beanpole_protocol::Command;

/// The command's word, for errors.
pub(crate) fn verb(command: &Command<'_>) -> &'static str {
    match command {
        Command::Use(_) => "use",
        Command::Reserve => "reserve",
        Command::ReserveWithTimeout(_) => "reserve-with-timeout",
        Command::ReserveJob(_) => "reserve-job",
        Command::Delete(_) => "delete",
        Command::Release { .. } => "release",
        Command::Bury { .. } => "bury",
        Command::Touch(_) => "touch",
        Command::Watch(_) => "watch",
        Command::Ignore(_) => "ignore",
        Command::Peek(_) => "peek",
        Command::PeekReady => "peek-ready",
        Command::PeekDelayed => "peek-delayed",
        Command::PeekBuried => "peek-buried",
        Command::Kick(_) => "kick",
        Command::KickJob(_) => "kick-job",
        Command::Stats => "stats",
        Command::StatsTube(_) => "stats-tube",
        Command::StatsJob(_) => "stats-job",
        Command::ListTubes => "list-tubes",
        Command::ListTubeUsed => "list-tube-used",
        Command::ListTubesWatched => "list-tubes-watched",
        Command::PauseTube { .. } => "pause-tube",
        Command::Quit => "quit",
    }
}
