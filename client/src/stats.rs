//! Reading the small YAML of the `stats` and `list` commands.

/// The body of `stats`, `stats-tube` or `stats-job`: keys and values in the server's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats(Vec<(String, String)>);

impl Stats {
    /// Reads a dictionary; lines that are none of it (as `---`) are passed over. Quotes around values are
    /// taken off.
    pub fn parse(body: &str) -> Stats {
        let pairs = body.lines().filter_map(|line| line.split_once(':'));
        Stats(pairs.map(|(key, value)| (key.trim().to_owned(), unquote(value.trim()))).collect())
    }

    /// The value of `key` as text.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key` as a whole number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// All pairs in the server's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// Reads the body of a `list-...` command.
pub fn parse_list(body: &str) -> Vec<String> {
    body.lines().filter_map(|line| line.strip_prefix("- ")).map(|name| unquote(name.trim())).collect()
}

fn unquote(value: &str) -> String {
    match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_quoted_or_not() {
        let stats = Stats::parse(
            "---\nname: \"a:b\"\ncurrent-jobs-ready: 12\nversion: 1.12\nrusage-utime: 0.000154\n",
        );
        assert_eq!(stats.get("name"), Some("a:b"));
        assert_eq!(stats.number("current-jobs-ready"), Some(12));
        assert_eq!(stats.number("version"), None);
        assert_eq!(stats.get("none"), None);
        assert_eq!(stats.iter().count(), 4);
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list("---\n- default\n- \"a-b\"\n"), ["default", "a-b"]);
        assert_eq!(parse_list("---\n"), Vec::<String>::new());
    }
}
