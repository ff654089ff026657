//! Names of fields for the names of a graph.

use guesthouse_guest::Error;

/// The longest name of a field.
const MAX_LENGTH: usize = 64;

/// A name of a field for each name of the graph, in the same order.
pub(crate) fn field_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<String>, Error> {
    let mut fields: Vec<String> = Vec::new();
    for name in names {
        let field = field_name(name);
        // Names may not differ in case alone.
        if fields.iter().any(|other| other.eq_ignore_ascii_case(&field)) {
            return Err(Error::new(format!(
                "the graph's input or output {name:?} would have the name {field:?}, which another \
                 one has: rename it"
            )));
        }
        fields.push(field);
    }
    Ok(fields)
}

fn field_name(name: &str) -> String {
    let allowed = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    let mut field: String = name.chars().map(allowed).collect();
    if !field.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
        field.insert_str(0, "x_");
    }
    field.truncate(MAX_LENGTH);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_characters_become_underscores() {
        let names = ["input.1", "/layer/out:0", "7", "größe"];
        let fields = field_names(names.into_iter()).unwrap();
        assert_eq!(fields, ["input_1", "x__layer_out_0", "x_7", "gr__e"]);
    }

    #[test]
    fn names_that_would_be_the_same_are_rejected() {
        for names in [["a.b", "a:b"], ["x", "X"]] {
            let error = field_names(names.into_iter()).unwrap_err().to_string();
            assert!(error.contains("rename it"), "{error}");
        }
    }
}
