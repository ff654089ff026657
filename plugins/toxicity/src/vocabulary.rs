//! Converts texts to weighted terms like scikit-learn's `TfidfVectorizer` with
//! `token_pattern=r"(?u)\b\w\w+\b"`, lower-casing, smooth idf and the l2 norm.
//!
//! Stop words need no list, because they are not in the vocabulary.

use std::collections::BTreeMap;

use guesthouse_guest::Error;
use unicode_general_category::{GeneralCategory, get_general_category};

/// Terms in ascending order with their inverse document frequency; a term's place is its index.
pub(crate) struct Vocabulary(Vec<(Box<str>, f64)>);

impl Vocabulary {
    /// Parse lines of `term<TAB>idf`, sorted by term.
    pub(crate) fn parse(lines: &str) -> Result<Self, Error> {
        let terms: Option<Vec<_>> = lines.lines().map(parse_line).collect();
        match terms {
            Some(terms) if terms.is_sorted_by(|a, b| a.0 < b.0) => Ok(Self(terms)),
            Some(_) => Err(Error::new("the vocabulary is not sorted")),
            None => Err(Error::new("a line of the vocabulary is not a term, a tab and a number")),
        }
    }

    /// The known terms of a text with their weights, ascending by index; empty if it has none.
    pub(crate) fn weigh(&self, text: &str) -> Vec<(i64, f32)> {
        let mut weights = BTreeMap::new();
        for token in text.to_lowercase().split(|character| !is_word(character)) {
            let find = self.0.binary_search_by(|(term, _idf)| term.as_ref().cmp(token));
            if let Ok(index) = find {
                *weights.entry(index).or_insert(0.0) += self.0[index].1;
            }
        }
        let norm = weights.values().map(|weight: &f64| weight * weight).sum::<f64>().sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "the graph computes in f32")]
        let scaled = |(index, weight)| (index as i64, (weight / norm) as f32);
        weights.into_iter().map(scaled).collect()
    }
}

fn parse_line(line: &str) -> Option<(Box<str>, f64)> {
    let (term, idf) = line.split_once('\t')?;
    Some((term.into(), idf.parse().ok()?))
}

/// Python's `\w`: letters and numbers by general category, and the underscore. Rust's own
/// `char::is_alphanumeric` would add marks.
fn is_word(character: char) -> bool {
    use GeneralCategory as Category;
    if character.is_ascii() {
        return character.is_ascii_alphanumeric() || character == '_';
    }
    matches!(
        get_general_category(character),
        Category::UppercaseLetter
            | Category::LowercaseLetter
            | Category::TitlecaseLetter
            | Category::ModifierLetter
            | Category::OtherLetter
            | Category::DecimalNumber
            | Category::LetterNumber
            | Category::OtherNumber
    )
}
