//! Text and patterns of scripts: escapes, repetition, captured words.

use std::collections::BTreeMap;

/// Words captured so far in one run of a script.
pub type Bindings = BTreeMap<String, String>;

/// A piece of a text or a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Bytes(Vec<u8>),
    /// `{name}`
    Word(String),
    /// `{#}` and `{a..b}`
    Number {
        min: u64,
        max: u64,
    },
    /// `{_}`
    Anything,
}

/// A parsed text or pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    pieces: Vec<Piece>,
}

impl Pattern {
    /// Parses escapes and braces; an error says what is not understood.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let mut pieces = Vec::new();
        let mut bytes = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '\\' => bytes.push(unescape(&mut rest)?),
                '{' => {
                    let end = rest.find('}').ok_or("a { without its }")?;
                    match parse_brace(&rest[..end])? {
                        Piece::Bytes(more) => bytes.extend(more),
                        other @ (Piece::Word(_) | Piece::Number { .. } | Piece::Anything) => {
                            pieces.push(Piece::Bytes(std::mem::take(&mut bytes)));
                            pieces.push(other);
                        }
                    }
                    rest = &rest[end + 1..];
                }
                _ => bytes.extend(c.to_string().as_bytes()),
            }
        }
        pieces.push(Piece::Bytes(bytes));
        pieces.retain(|piece| *piece != Piece::Bytes(Vec::new()));
        Ok(Pattern { pieces })
    }

    /// The bytes to send; an error names what is not bound.
    pub fn fill(&self, bindings: &Bindings) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(bytes) => out.extend(bytes),
                Piece::Word(name) => {
                    let value = bindings.get(name).ok_or(format!("{{{name}}} is not known yet"))?;
                    out.extend(value.as_bytes());
                }
                Piece::Number { .. } | Piece::Anything => return Err("a pattern cannot be sent".into()),
            }
        }
        Ok(out)
    }

    /// Matches a whole line, and binds the new words in it when it does.
    pub fn matches(&self, line: &[u8], bindings: &mut Bindings) -> bool {
        match_pieces(&self.pieces, line, bindings)
    }

    /// The same pattern without double quotes: beanstalkd 1.12 does not quote strings, 1.13 does.
    pub fn without_quotes(&self) -> Pattern {
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Bytes(bytes) => Piece::Bytes(bytes.iter().copied().filter(|b| *b != b'"').collect()),
            Piece::Word(_) | Piece::Number { .. } | Piece::Anything => piece.clone(),
        });
        Pattern { pieces: pieces.filter(|piece| *piece != Piece::Bytes(Vec::new())).collect() }
    }
}

fn match_pieces(pieces: &[Piece], text: &[u8], bindings: &mut Bindings) -> bool {
    let Some((first, rest)) = pieces.split_first() else { return text.is_empty() };
    let known = match first {
        Piece::Bytes(bytes) => Some(bytes.clone()),
        Piece::Word(name) => bindings.get(name).map(|value| value.clone().into_bytes()),
        Piece::Number { .. } | Piece::Anything => None,
    };
    if let Some(known) = known {
        return text.strip_prefix(known.as_slice()).is_some_and(|text| match_pieces(rest, text, bindings));
    }
    // Longest first, so that a number is not cut in the middle.
    let allowed = text.iter().take_while(|byte| fits(first, **byte)).count();
    (1..=allowed).rev().any(|len| {
        let (taken, behind) = text.split_at(len);
        if !is_in_range(first, taken) {
            return false;
        }
        let mut trial = bindings.clone();
        if let Piece::Word(name) = first {
            trial.insert(name.clone(), String::from_utf8_lossy(taken).into_owned());
        }
        let matched = match_pieces(rest, behind, &mut trial);
        if matched {
            *bindings = trial;
        }
        matched
    })
}

fn fits(piece: &Piece, byte: u8) -> bool {
    match piece {
        Piece::Word(_) => byte != b' ',
        Piece::Number { .. } => byte.is_ascii_digit(),
        Piece::Anything => true,
        Piece::Bytes(_) => false,
    }
}

fn is_in_range(piece: &Piece, taken: &[u8]) -> bool {
    match piece {
        Piece::Number { min, max } => std::str::from_utf8(taken)
            .ok()
            .and_then(|digits| digits.parse::<u64>().ok())
            .is_some_and(|number| (*min..=*max).contains(&number)),
        Piece::Word(_) | Piece::Anything | Piece::Bytes(_) => true,
    }
}

fn parse_brace(inside: &str) -> Result<Piece, String> {
    if inside == "#" {
        return Ok(Piece::Number { min: 0, max: u64::MAX });
    }
    if inside == "_" {
        return Ok(Piece::Anything);
    }
    if let Some((unit, count)) = inside.split_once('*') {
        let count: usize = count.parse().map_err(|_| format!("{{{inside}}}: not a count"))?;
        let mut rest = unit;
        let mut bytes = Vec::new();
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c == '\\' { bytes.push(unescape(&mut rest)?) } else { bytes.extend(c.to_string().as_bytes()) }
        }
        return Ok(Piece::Bytes(bytes.repeat(count)));
    }
    if let Some((min, max)) = inside.split_once("..") {
        let number = |text: &str| text.parse().map_err(|_| format!("{{{inside}}}: not a range"));
        return Ok(Piece::Number { min: number(min)?, max: number(max)? });
    }
    if !inside.is_empty() && inside.chars().all(|c| c.is_alphanumeric()) {
        return Ok(Piece::Word(inside.to_string()));
    }
    Err(format!("{{{inside}}} is not understood"))
}

/// The byte that an escape names; `rest` begins behind the backslash and loses what was used.
fn unescape(rest: &mut &str) -> Result<u8, String> {
    let c = rest.chars().next().ok_or("a backslash at the end")?;
    *rest = &rest[c.len_utf8()..];
    match c {
        'r' => Ok(b'\r'),
        'n' => Ok(b'\n'),
        't' => Ok(b'\t'),
        '0' => Ok(0),
        '\\' => Ok(b'\\'),
        '{' => Ok(b'{'),
        '}' => Ok(b'}'),
        'x' => {
            let digits = rest.get(..2).ok_or("\\x needs two digits")?;
            *rest = &rest[2..];
            u8::from_str_radix(digits, 16).map_err(|_| format!("\\x{digits} is not a byte"))
        }
        other => Err(format!("\\{other} is not an escape")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, line: &str, bindings: &mut Bindings) -> bool {
        Pattern::parse(pattern).unwrap().matches(line.as_bytes(), bindings)
    }

    #[test]
    fn a_word_is_captured_once_and_compared_afterwards() {
        let mut bindings = Bindings::new();
        assert!(matches("INSERTED {id}", "INSERTED 42", &mut bindings));
        assert!(matches("RESERVED {id} 5", "RESERVED 42 5", &mut bindings));
        assert!(!matches("RESERVED {id} 5", "RESERVED 43 5", &mut bindings));
        assert!(!matches("INSERTED {new}", "INSERTED 1 2", &mut bindings));
    }

    #[test]
    fn numbers_have_ranges_and_are_not_cut() {
        let mut bindings = Bindings::new();
        assert!(matches("time-left: {58..60}", "time-left: 59", &mut bindings));
        assert!(!matches("time-left: {58..60}", "time-left: 5", &mut bindings));
        assert!(!matches("age: {#}", "age: -1", &mut bindings));
        assert!(matches("a {#} b", "a 12 b", &mut bindings));
    }

    #[test]
    fn text_is_unescaped_repeated_and_filled() {
        let bindings = Bindings::from([("id".to_string(), "7".to_string())]);
        let text = Pattern::parse(r"delete {id}\r\n\x00{ab*2}\{").unwrap();
        assert_eq!(text.fill(&bindings).unwrap(), b"delete 7\r\n\0abab{");
        assert!(Pattern::parse("{nobody}").unwrap().fill(&bindings).is_err());
    }
}
