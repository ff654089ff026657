//! Escapes untrusted text before it is shown in a terminal or a log.
//!
//! Texts of artifacts, messages of guests and file names may contain control sequences that move
//! the cursor, retitle the terminal or change the direction of writing, and line breaks that forge
//! log lines. All such text that is printed for people is escaped here; other characters stay as
//! they are.

/// The longest message that is printed or logged, in characters: some lines of a terminal.
const MAX_REASON_CHARS: usize = 1000;

/// Escape everything that a terminal would interpret, including line breaks.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_interpreted(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Like [`printable`], but truncated: for messages that quote invalid input.
pub fn reason(text: &str) -> String {
    match text.char_indices().nth(MAX_REASON_CHARS) {
        None => printable(text),
        Some((end, _)) => format!("{}…", printable(&text[..end])),
    }
}

/// Escape everything in a JSON text that a terminal would interpret. The JSON keeps its meaning,
/// because such characters can only be in strings. Line breaks, which separate values, are kept.
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for letter in json.chars() {
        if is_interpreted(letter) && letter != '\n' {
            shown.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Whether a terminal interprets the character: control characters, line and paragraph separators,
/// and characters that change the direction of writing. All of them are below U+10000.
fn is_interpreted(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
        || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b]0;b\x07\r\nerror: c\u{9b}1m\u{202e}d\u{2066}\u{7f}";

    #[test]
    fn escapes_everything_that_a_terminal_interprets() {
        let shown = r"a\u{1b}]0;b\u{7}\r\nerror: c\u{9b}1m\u{202e}d\u{2066}\u{7f}";
        assert_eq!(printable(HOSTILE), shown);
        // Escaping is idempotent, because several layers may do it.
        assert_eq!(printable(shown), shown);
        let harmless = "naïve \"日本\" \\ 👩‍💻 שלום";
        assert_eq!(printable(harmless), harmless);
    }

    #[test]
    fn escaped_json_keeps_its_meaning() {
        let json = serde_json::to_string_pretty(&serde_json::json!({ "a": [HOSTILE] })).unwrap();
        let shown = printable_json(&json);
        assert!(shown.chars().all(|letter| letter == '\n' || !is_interpreted(letter)), "{shown}");
        let same: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(same["a"][0], HOSTILE);
    }

    #[test]
    fn messages_are_truncated() {
        assert_eq!(reason("é"), "é");
        assert_eq!(reason(&"é".repeat(MAX_REASON_CHARS + 1)).chars().count(), MAX_REASON_CHARS + 1);
    }
}
