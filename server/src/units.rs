//! Sizes and durations as people write them: `512MiB`, `64kb`, `65535`; `5s`, `90m`, `7d`.
//!
//! Flags, environment variables and the configuration file share these rules: a plain number is bytes or seconds, unit names
//! ignore case, and there are no fractions.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Why a size could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    /// The text does not start with digits.
    #[error("{0:?} does not start with a whole number")]
    NoNumber(String),
    /// The unit is not known.
    #[error("{unit:?} is not a unit; use one of {known}")]
    UnknownUnit {
        /// What was written.
        unit: String,
        /// What could have been.
        known: &'static str,
    },
    /// The value does not fit.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

const SIZE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
];

/// A length of time, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

const SPAN_UNITS: &[(&str, u64)] = &[
    ("", 1000),
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
];

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, SPAN_UNITS, "ms, s, m, h, d, w").map(Span)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["w", "d", "h", "m", "s", "ms"];
        let factor = |name: &str| SPAN_UNITS.iter().find(|(unit, _)| *unit == name).map_or(1, |unit| unit.1);
        let exact =
            names.into_iter().find(|name| self.0 >= factor(name) && self.0.is_multiple_of(factor(name)));
        let name = exact.unwrap_or("ms");
        write!(f, "{}{name}", self.0 / factor(name))
    }
}

/// In files: a number of seconds, or text with a unit.
impl<'de> serde::Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Seconds(u32),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::Seconds(seconds) => Ok(Span(u64::from(seconds) * 1000)),
            Raw::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Splits `512MiB` into a number and a unit and multiplies.
fn scaled(text: &str, units: &[(&str, u64)], known: &'static str) -> Result<u64, UnitError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(UnitError::NoNumber(text.to_owned()));
    }
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let number: u64 = number.parse().map_err(|_| UnitError::TooLarge(text.to_owned()))?;
    let factor = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .ok_or_else(|| UnitError::UnknownUnit { unit: unit.to_owned(), known })?
        .1;
    number.checked_mul(factor).ok_or_else(|| UnitError::TooLarge(text.to_owned()))
}

/// A number of bytes for a line that people read: whole MiB.
pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, SIZE_UNITS, "B, KiB, KB, MiB, MB, GiB, GB, TiB, TB").map(Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SIZE_UNITS
            .iter()
            .rev()
            .filter(|(name, _)| name.ends_with("ib"))
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match exact {
            Some((name, factor)) => {
                write!(f, "{}{}iB", self.0 / factor, name[..1].to_ascii_uppercase())
            }
            None => write!(f, "{}B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [
            ("65535", 65_535),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("1g", 1 << 30),
            ("2KB", 2000),
            ("7b", 7),
        ] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn bad_sizes_say_what_is_wrong() {
        assert_eq!("MiB".parse::<Size>(), Err(UnitError::NoNumber("MiB".into())));
        assert!("5 parsecs".parse::<Size>().unwrap_err().to_string().contains("parsecs"));
        assert_eq!("99999999T".parse::<Size>(), Err(UnitError::TooLarge("99999999T".into())));
        assert_eq!("-1".parse::<Size>(), Err(UnitError::NoNumber("-1".into())));
    }

    #[test]
    fn durations_read_as_people_write_them() {
        let long = [("30", 30_000), ("250ms", 250), ("5 s", 5000), ("15M", 900_000), ("2h", 7_200_000)];
        for (text, ms) in long.into_iter().chain([("1d", 86_400_000)]) {
            assert_eq!(text.parse::<Span>(), Ok(Span(ms)), "{text}");
        }
        assert!("5 fortnights".parse::<Span>().unwrap_err().to_string().contains("ms, s, m"));
        for ms in [1, 250, 1000, 1500, 60_000, 5_400_000, 86_400_000] {
            assert_eq!(Span(ms).to_string().parse(), Ok(Span(ms)));
        }
        assert_eq!((Span(90_000).to_string(), Span(0).to_string()), ("90s".into(), "0ms".into()));
    }

    #[test]
    fn what_is_printed_reads_back() {
        for size in [1, 1000, 1024, 64 << 20, (64 << 20) + 1, 3 << 30] {
            assert_eq!(Size(size).to_string().parse(), Ok(Size(size)));
        }
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
    }
}
