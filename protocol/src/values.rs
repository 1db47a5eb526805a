//! The values of the protocol, validated once where they enter.

use std::fmt;

/// Longest command line in bytes, CRLF included (`LINE_BUF_SIZE` of beanstalkd).
pub const MAX_LINE: usize = 224;
/// Longest tube name in bytes.
pub const MAX_TUBE_NAME: usize = 200;
/// Largest job body in bytes, unless configured otherwise; itself allowed.
pub const DEFAULT_MAX_JOB_SIZE: u32 = 65_535;
/// The most that the largest job body may be configured to.
pub const MAX_JOB_SIZE_LIMIT: u32 = 1 << 30;
/// Ready jobs with a priority below this count as urgent.
pub const URGENT_BELOW: u32 = 1024;

/// A job's number: from 1, unique, below 2^53 so that JavaScript can hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// A job's priority: smaller is handed out first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u32);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A valid tube name: 1 to 200 bytes of `A-Za-z0-9-+/;.$_()`, not starting with `-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tube<'a>(&'a str);

/// Longest key of a `put-once`, in bytes.
pub const MAX_PUT_KEY: usize = 64;

impl<'a> Tube<'a> {
    /// The tube that every connection uses and watches at first.
    pub const DEFAULT: Tube<'static> = Tube("default");

    /// Checks a name; none when it is not valid.
    #[must_use]
    pub fn new(name: &'a [u8]) -> Option<Self> {
        let valid = !name.is_empty()
            && name.len() <= MAX_TUBE_NAME
            && name[0] != b'-'
            && name.iter().all(|byte| NAME_BYTES[usize::from(*byte)]);
        if !valid {
            return None;
        }
        std::str::from_utf8(name).ok().map(Tube)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Tube<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The key of a `put-once`: 1 to [`MAX_PUT_KEY`] printable bytes of ASCII without a space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PutKey {
    len: u8,
    bytes: [u8; MAX_PUT_KEY],
}

impl PutKey {
    /// Checks a key; none when it is not valid.
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Self> {
        if key.is_empty() || key.len() > MAX_PUT_KEY || !key.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let mut bytes = [0; MAX_PUT_KEY];
        bytes[..key.len()].copy_from_slice(key);
        Some(PutKey { len: key.len() as u8, bytes })
    }

    /// The key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for PutKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PutKey({})", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Whether each byte may stand in a tube's name: a table, because every `use` and `watch` looks at up to 200
/// of them.
const NAME_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric()
            || matches!(byte as u8, b'-' | b'+' | b'/' | b';' | b'.' | b'$' | b'_' | b'(' | b')');
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_printable_and_short() {
        let key = |bytes: &[u8]| PutKey::new(bytes).map(|key| key.as_bytes().to_vec());
        assert_eq!(key(b"order:4711/a=1"), Some(b"order:4711/a=1".to_vec()));
        assert_eq!(key(&[b'k'; 64]), Some(vec![b'k'; 64]));
        for bad in [&b""[..], b"a b", b"a\tb", b"\xc3\xa4", b"a\x7f", &[b'k'; 65]] {
            assert_eq!(key(bad), None);
        }
    }

    #[test]
    fn tube_names_follow_the_protocol() {
        assert_eq!(Tube::new(b"a-Z0+/;.$_()").map(|t| t.as_str()), Some("a-Z0+/;.$_()"));
        assert!(Tube::new(&[b'a'; 200]).is_some());
        for bad in [&b""[..], b"-a", b"a b", b"a\0", b"\xff", &[b'a'; 201], b"a,b", b"a@b"] {
            assert!(Tube::new(bad).is_none(), "{bad:?}");
        }
    }
}
