//! Strangers' text made fit for people's eyes.
//!
//! An artifact's texts, a guest's reasons and the names of files may hold anything: sequences that
//! move the cursor, retitle a terminal or write backwards, and line ends that forge a line of the
//! log. Everything printed for people goes through here; nothing else is changed.

/// The longest reason that is printed or logged, in characters: some lines of a terminal.
const MAX_REASON_CHARS: usize = 1000;

/// The text in one line, without anything that a terminal would obey.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if obeyed(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Like [`printable`], and no longer than anybody reads: for reasons that quote what is wrong.
pub fn reason(text: &str) -> String {
    match text.char_indices().nth(MAX_REASON_CHARS) {
        None => printable(text),
        Some((end, _)) => format!("{}…", printable(&text[..end])),
    }
}

/// The same JSON without anything that a terminal would obey: escapes are part of the format, and
/// what is replaced can only stand in texts. Line ends stay, they are between values.
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for letter in json.chars() {
        if obeyed(letter) && letter != '\n' {
            shown.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Control characters, line and paragraph separators, and what changes the direction of writing.
/// All of them lie below U+10000.
fn obeyed(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
        || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b]0;b\x07\r\nerror: c\u{9b}1m\u{202e}d\u{2066}\u{7f}";

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let shown = r"a\u{1b}]0;b\u{7}\r\nerror: c\u{9b}1m\u{202e}d\u{2066}\u{7f}";
        assert_eq!(printable(HOSTILE), shown);
        // Done twice, it is the same, because several edges may do it.
        assert_eq!(printable(shown), shown);
        let harmless = "naïve \"日本\" \\ 👩‍💻 שלום";
        assert_eq!(printable(harmless), harmless);
    }

    #[test]
    fn json_means_the_same() {
        let json = serde_json::to_string_pretty(&serde_json::json!({ "a": [HOSTILE] })).unwrap();
        let shown = printable_json(&json);
        assert!(shown.chars().all(|letter| letter == '\n' || !obeyed(letter)), "{shown}");
        let same: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(same["a"][0], HOSTILE);
    }

    #[test]
    fn reasons_end_somewhere() {
        assert_eq!(reason("é"), "é");
        assert_eq!(reason(&"é".repeat(MAX_REASON_CHARS + 1)).chars().count(), MAX_REASON_CHARS + 1);
    }
}
