//! One line to one command: matched by prefix and case-sensitively, as beanstalkd's `which_cmd` does.
//!
//! Words with arguments include the space in their prefix, so `delete\r\n` is unknown but `delete \r\n` is
//! badly formed. Words without arguments must be the whole line: `statsx` is badly formed, not unknown.
//! `tests/scripts/lines.txt` tells the whole story, line by line, as it was probed on beanstalkd.

use crate::command::{BadRequest, Command, PutHeader};
use crate::decimal::take_decimal;
use crate::values::{JobId, Priority, PutKey, Tube};

/// Largest timeout of `reserve-with-timeout`, in seconds (`INT_MAX`, since 1.13).
const TIMEOUT_MAX: u32 = i32::MAX as u32;

/// What one line holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A command that is complete.
    Command(Command<'a>),
    /// A `put`, whose body follows. The size may be above any limit.
    Put(PutHeader),
    /// A `put` with something behind its numbers: badly formed, and its body is not swallowed, *unless* the
    /// size is above the limit. beanstalkd looks at the size first, and then swallows the body and answers
    /// `JOB_TOO_BIG`.
    PutTrailing(PutHeader),
}

type Parsed<'a> = Result<Line<'a>, BadRequest>;

/// Parses one line, given without its CRLF.
///
/// # Errors
/// [`BadRequest::UnknownCommand`] when no word matches, [`BadRequest::BadFormat`] when the rest of the line
/// does not fit the word.
pub fn parse_line(line: &[u8]) -> Parsed<'_> {
    // An inner CR hangs a connection of beanstalkd; that is not copied.
    if memchr::memchr2(0, b'\r', line).is_some() {
        return Err(BadRequest::BadFormat);
    }
    // The first byte decides between few words, which keeps the common commands cheap.
    match line.first() {
        Some(b'p') => parse_p(line),
        Some(b'r') => parse_r(line),
        Some(b'd') => with(line, b"delete ", |rest| id_only(rest, Command::Delete)),
        Some(b's') => parse_s(line),
        Some(b'l') => parse_l(line),
        Some(b'k') => parse_k(line),
        Some(b'u') => with(line, b"use ", |rest| tube_only(rest, Command::Use)),
        Some(b'w') => with(line, b"watch ", |rest| tube_only(rest, Command::Watch)),
        Some(b'i') => with(line, b"ignore ", |rest| tube_only(rest, Command::Ignore)),
        Some(b'b') => with(line, b"bury ", bury),
        Some(b't') => with(line, b"touch ", |rest| id_only(rest, Command::Touch)),
        // beanstalkd closes on `quit` whatever follows it.
        Some(b'q') if line.starts_with(b"quit") => Ok(Line::Command(Command::Quit)),
        Some(_) | None => Err(BadRequest::UnknownCommand),
    }
}

/// Parses the rest of a line that starts with `word`; any other line is unknown.
fn with<'a>(line: &'a [u8], word: &[u8], parse: impl FnOnce(&'a [u8]) -> Parsed<'a>) -> Parsed<'a> {
    line.strip_prefix(word).map_or(Err(BadRequest::UnknownCommand), parse)
}

/// A word without arguments: nothing may follow it.
fn alone<'a>(rest: &[u8], command: Command<'a>) -> Parsed<'a> {
    if rest.is_empty() { Ok(Line::Command(command)) } else { Err(BadRequest::BadFormat) }
}

fn parse_p(line: &[u8]) -> Parsed<'_> {
    if let Some(rest) = line.strip_prefix(b"put ") {
        return put(rest, None);
    }
    if let Some(rest) = line.strip_prefix(b"put-once ") {
        return put_once(rest);
    }
    if let Some(rest) = line.strip_prefix(b"peek ") {
        return id_only(rest, Command::Peek);
    }
    if let Some(rest) = line.strip_prefix(b"peek-ready") {
        return alone(rest, Command::PeekReady);
    }
    if let Some(rest) = line.strip_prefix(b"peek-delayed") {
        return alone(rest, Command::PeekDelayed);
    }
    if let Some(rest) = line.strip_prefix(b"peek-buried") {
        return alone(rest, Command::PeekBuried);
    }
    // Without its space, unlike the other words with arguments: `pause-tube` alone is badly formed,
    // `pause-tubea 1` is good.
    with(line, b"pause-tube", pause_tube)
}

fn parse_r(line: &[u8]) -> Parsed<'_> {
    if let Some(rest) = line.strip_prefix(b"reserve-with-timeout ") {
        return reserve_with_timeout(rest);
    }
    if let Some(rest) = line.strip_prefix(b"reserve-job ") {
        return id_only(rest, Command::ReserveJob);
    }
    if let Some(rest) = line.strip_prefix(b"release ") {
        return release(rest);
    }
    with(line, b"reserve", |rest| alone(rest, Command::Reserve))
}

fn parse_s(line: &[u8]) -> Parsed<'_> {
    if let Some(rest) = line.strip_prefix(b"stats-job ") {
        return id_only(rest, Command::StatsJob);
    }
    if let Some(rest) = line.strip_prefix(b"stats-tube ") {
        return tube_only(rest, Command::StatsTube);
    }
    with(line, b"stats", |rest| alone(rest, Command::Stats))
}

fn parse_l(line: &[u8]) -> Parsed<'_> {
    if let Some(rest) = line.strip_prefix(b"list-tubes-watched") {
        return alone(rest, Command::ListTubesWatched);
    }
    if let Some(rest) = line.strip_prefix(b"list-tube-used") {
        return alone(rest, Command::ListTubeUsed);
    }
    with(line, b"list-tubes", |rest| alone(rest, Command::ListTubes))
}

fn parse_k(line: &[u8]) -> Parsed<'_> {
    if let Some(rest) = line.strip_prefix(b"kick-job ") {
        return id_only(rest, Command::KickJob);
    }
    with(line, b"kick ", |rest| kick_bound(rest).map(|bound| Line::Command(Command::Kick(bound))))
}

// ---- arguments ----

/// Takes one unsigned number of at most `max`, after any spaces; what follows is left in `rest`. Nothing
/// needs to separate two numbers: only digits are taken, so the next call fails at whatever else stands
/// between them.
fn number(rest: &mut &[u8], max: u64) -> Result<u64, BadRequest> {
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    let (value, digits) = take_decimal(&rest[spaces..]).ok_or(BadRequest::BadFormat)?;
    if value > max {
        return Err(BadRequest::BadFormat);
    }
    *rest = &rest[spaces + digits..];
    Ok(value)
}

fn number_u32(rest: &mut &[u8]) -> Result<u32, BadRequest> {
    number(rest, u64::from(u32::MAX)).map(|value| value as u32)
}

fn end(rest: &[u8]) -> Result<(), BadRequest> {
    if rest.is_empty() { Ok(()) } else { Err(BadRequest::BadFormat) }
}

fn id(rest: &mut &[u8]) -> Result<JobId, BadRequest> {
    number(rest, u64::MAX).map(JobId)
}

fn id_only<'a>(mut rest: &'a [u8], command: impl FnOnce(JobId) -> Command<'a>) -> Parsed<'a> {
    let id = id(&mut rest)?;
    end(rest)?;
    Ok(Line::Command(command(id)))
}

/// No space may stand before or behind the name: either would be part of it, and is no name byte.
fn tube_only<'a>(rest: &'a [u8], command: impl FnOnce(Tube<'a>) -> Command<'a>) -> Parsed<'a> {
    Tube::new(rest).map(|tube| Line::Command(command(tube))).ok_or(BadRequest::BadFormat)
}

/// Beanpole's own: `put-once KEY PRI DELAY TTR BYTES`.
fn put_once(rest: &[u8]) -> Parsed<'_> {
    let len = rest.iter().take_while(|byte| **byte != b' ').count();
    let key = PutKey::new(&rest[..len]).ok_or(BadRequest::BadFormat)?;
    put(&rest[len..], Some(key))
}

fn put(mut rest: &[u8], key: Option<PutKey>) -> Parsed<'_> {
    let pri = number_u32(&mut rest)?;
    let delay = number_u32(&mut rest)?;
    let ttr = number_u32(&mut rest)?.max(1);
    let bytes = number_u32(&mut rest)?;
    let header = PutHeader { pri, delay, ttr, bytes, key };
    Ok(if rest.is_empty() { Line::Put(header) } else { Line::PutTrailing(header) })
}

fn release(mut rest: &[u8]) -> Parsed<'_> {
    let id = id(&mut rest)?;
    let pri = Priority(number_u32(&mut rest)?);
    let delay = number_u32(&mut rest)?;
    end(rest)?;
    Ok(Line::Command(Command::Release { id, pri, delay }))
}

fn bury(mut rest: &[u8]) -> Parsed<'_> {
    let id = id(&mut rest)?;
    let pri = Priority(number_u32(&mut rest)?);
    end(rest)?;
    Ok(Line::Command(Command::Bury { id, pri }))
}

/// What follows the number is ignored: `reserve-with-timeout 0 zz` and `0zz` are accepted.
fn reserve_with_timeout(mut rest: &[u8]) -> Parsed<'_> {
    let timeout = number(&mut rest, u64::from(TIMEOUT_MAX))? as u32;
    Ok(Line::Command(Command::ReserveWithTimeout(timeout)))
}

/// beanstalkd reads this one with `strtoul`: white space and a sign before, anything after, cut to 32 bits.
fn kick_bound(rest: &[u8]) -> Result<u32, BadRequest> {
    let space = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t'..=b'\r')).count();
    let rest = &rest[space..];
    let (negative, rest) = match rest.first() {
        Some(b'-') => (true, &rest[1..]),
        Some(b'+') => (false, &rest[1..]),
        Some(_) | None => (false, rest),
    };
    let (value, _) = take_decimal(rest).ok_or(BadRequest::BadFormat)?;
    Ok(if negative { value.wrapping_neg() } else { value } as u32)
}

/// A space between word and name is as optional as beanstalkd has it; one between name and number is not.
fn pause_tube(rest: &[u8]) -> Parsed<'_> {
    let start = rest.iter().take_while(|byte| **byte == b' ').count();
    let rest = &rest[start..];
    let len = rest.iter().take_while(|byte| **byte != b' ').count();
    let tube = Tube::new(&rest[..len]).ok_or(BadRequest::BadFormat)?;
    let mut rest = &rest[len..];
    let delay = number_u32(&mut rest)?;
    end(rest)?;
    Ok(Line::Command(Command::PauseTube { tube, delay }))
}
