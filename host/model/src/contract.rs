//! Compares signatures: which part of the semantic version a change of the signature requires to
//! increment.
//!
//! | change | least bump |
//! |---|---|
//! | none but in descriptions | patch |
//! | a new input with a default, a default where there was none or another one, a new output | minor |
//! | an input accepts more, an output promises more | minor |
//! | another number of rows for one call, which the host sees to | minor |
//! | an input or an output removed, renamed or retyped; class labels in another order | major |
//! | a new input without a default, a default taken away | major |
//! | an old field in another place, or a new one before it | major |
//! | the number of elements no longer determines the shape of a row, or newly does | major |
//! | an input accepts less, an output promises less | major |
//!
//! Positions matter because they are the field numbers in gRPC, and the way a row's shape is
//! determined matters because it decides the encoding there. A position is therefore never reused
//! within a major version: removing a field requires a new one.
//!
//! Callers do not see padding, so a change of it is no change of the contract.

mod snapshot;

use std::cmp::Ordering;
use std::fmt;

pub use snapshot::{SignatureSnapshot, SnapshotError};

use semver::{Prerelease, Version};
use serde::Serialize;

use crate::{Constraint, Field, Signature};

/// The part of a semantic version that is incremented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bump {
    /// No change that concerns callers.
    Patch,
    /// Callers of the old version can use the new one.
    Minor,
    /// Callers of the old version may not be able to use the new one.
    Major,
}

impl fmt::Display for Bump {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Patch => "patch",
            Self::Minor => "minor",
            Self::Major => "major",
        })
    }
}

impl Bump {
    /// The compatibility that the version numbers promise, as Cargo interprets them: in `0.y.z` the
    /// minor version acts as the major version, and in `0.0.z` the patch version does. Pre-releases
    /// of the same version promise nothing.
    ///
    /// Returns `None` if `new` is not later than `old`.
    pub fn between(old: &Version, new: &Version) -> Option<Self> {
        if new.cmp_precedence(old) != Ordering::Greater {
            return None;
        }
        let core = |version: &Version| (version.major, version.minor, version.patch);
        let same_core = core(old) == core(new);
        if same_core && old.pre != Prerelease::EMPTY {
            return Some(Self::Major);
        }
        Some(match () {
            () if old.major != new.major => Self::Major,
            () if old.minor != new.minor && new.major == 0 => Self::Major,
            () if old.minor != new.minor => Self::Minor,
            () if new.major == 0 && new.minor == 0 => Self::Major,
            () if new.major == 0 => Self::Minor,
            () => Self::Patch,
        })
    }
}

/// A change of the signature that concerns callers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignatureChange {
    /// The increment that it requires.
    pub bump: Bump,
    /// A description for people.
    pub what: String,
}

/// All changes that concern callers, in the order of the old signature; empty if a patch version
/// suffices.
pub fn changes(old: &Signature, new: &Signature) -> Vec<SignatureChange> {
    let mut changes = Changes(Vec::new());
    for (side, old, new) in
        [(Side::Input, &old.inputs, &new.inputs), (Side::Output, &old.outputs, &new.outputs)]
    {
        let find =
            |fields: &'_ [Field], name: &str| fields.iter().position(|field| field.name == name);
        for field in old {
            match find(new, &field.name) {
                Some(index) => changes.compare_field(side, field, &new[index]),
                None => changes.add(Bump::Major, format!("{side} `{}` is gone", field.name)),
            }
        }
        for field in new.iter().filter(|field| find(old, &field.name).is_none()) {
            changes.compare_new_field(side, field);
        }
        changes.compare_positions(side, old, new);
    }
    if old.max_batch_size != new.max_batch_size {
        let (was, is) = (old.max_batch_size, new.max_batch_size);
        changes.add(Bump::Minor, format!("one call takes {is} rows, not {was}"));
    }
    changes.0
}

/// The increment that all changes require.
pub fn required_bump(changes: &[SignatureChange]) -> Bump {
    changes.iter().map(|change| change.bump).max().unwrap_or(Bump::Patch)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
        })
    }
}

/// How the set of valid values has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Same,
    More,
    Fewer,
    Other,
}

impl Relation {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Same, other) => other,
            (one, Self::Same) => one,
            (one, other) if one == other => one,
            _ => Self::Other,
        }
    }
}

struct Changes(Vec<SignatureChange>);

impl Changes {
    fn add(&mut self, bump: Bump, what: String) {
        self.0.push(SignatureChange { bump, what });
    }

    fn compare_new_field(&mut self, side: Side, field: &Field) {
        let required = side == Side::Input && field.default.is_none();
        let (bump, how) =
            if required { (Bump::Major, ", without a default") } else { (Bump::Minor, "") };
        self.add(bump, format!("{side} `{}` is new{how}", field.name));
    }

    /// Compare the positions of fields. Removed fields are reported separately.
    fn compare_positions(&mut self, side: Side, old: &[Field], new: &[Field]) {
        let is_there = |field: &Field| new.iter().any(|other| other.name == field.name);
        let mut pairs = old.iter().zip(new);
        if !old.iter().all(is_there) {
            return;
        }
        if let Some((old, _)) = pairs.find(|(old, new)| old.name != new.name) {
            let what = format!("{side} `{}` is in another place, which is its number", old.name);
            self.add(Bump::Major, what);
        }
    }

    fn compare_field(&mut self, side: Side, old: &Field, new: &Field) {
        let name = &old.name;
        if old.datatype != new.datatype {
            let (was, is) = (old.datatype, new.datatype);
            return self.add(Bump::Major, format!("{side} `{name}` is {is:?}, not {was:?}"));
        }
        for (what, flag) in
            [("a text", Constraint::Text), ("stripped of white space", Constraint::Stripped)]
        {
            let (was, is) = (old.constraints.contains(&flag), new.constraints.contains(&flag));
            if was != is {
                let not = if is { "" } else { "not " };
                self.add(Bump::Major, format!("{side} `{name}` is {not}{what} now"));
            }
        }
        self.add_relation(side, name, "shapes", shapes(old, new));
        if old.row_shape.len() == new.row_shape.len()
            && old.shape_follows_from_count() != new.shape_follows_from_count()
        {
            let not = if new.shape_follows_from_count() { "" } else { "not " };
            let what = format!("the shape of {side} `{name}` does {not}follow from its length now");
            self.add(Bump::Major, what);
        }
        self.add_relation(side, name, "lengths", lengths(old, new));
        self.add_relation(side, name, "numbers", numbers(old, new));
        self.add_relation(side, name, "labels", labels(old, new));
        match (&old.default, &new.default) {
            (Some(_), None) => self.add(Bump::Major, format!("{side} `{name}` has no default now")),
            (None, Some(_)) => self.add(Bump::Minor, format!("{side} `{name}` has a default now")),
            (was, is) if was != is => {
                self.add(Bump::Minor, format!("{side} `{name}` has another default"));
            }
            _ => {}
        }
    }

    fn add_relation(&mut self, side: Side, name: &str, of_what: &str, relation: Relation) {
        let how = match relation {
            Relation::Same => return,
            Relation::More => "more",
            Relation::Fewer => "fewer",
            Relation::Other => "other",
        };
        let harmless = if side == Side::Input { Relation::More } else { Relation::Fewer };
        let bump = if relation == harmless { Bump::Minor } else { Bump::Major };
        self.add(bump, format!("{side} `{name}` has {how} {of_what} than before"));
    }
}

fn shapes(old: &Field, new: &Field) -> Relation {
    if old.row_shape.len() != new.row_shape.len() {
        return Relation::Other;
    }
    let dimensions = old.row_shape.iter().zip(&new.row_shape);
    let relations = dimensions.map(|(was, is)| match (was, is) {
        _ if was == is => Relation::Same,
        (Some(_), None) => Relation::More,
        (None, Some(_)) => Relation::Fewer,
        _ => Relation::Other,
    });
    relations.fold(Relation::Same, Relation::and)
}

fn lengths(old: &Field, new: &Field) -> Relation {
    let bounds = |field: &Field| {
        let all = field.constraints.iter().filter_map(|constraint| match constraint {
            Constraint::Length { minimum, maximum } => Some((*minimum, *maximum)),
            _ => None,
        });
        all.fold((0, u32::MAX), |(low, high), (minimum, maximum)| {
            (low.max(minimum), high.min(maximum))
        })
    };
    let (was, is) = (bounds(old), bounds(new));
    bound(is.0.cmp(&was.0).reverse()).and(bound(is.1.cmp(&was.1)))
}

fn numbers(old: &Field, new: &Field) -> Relation {
    let bounds = |field: &Field| {
        let all = field.constraints.iter().filter_map(|constraint| match constraint {
            Constraint::Range { minimum, maximum } => Some((*minimum, *maximum)),
            _ => None,
        });
        all.fold(None, |bounds, (minimum, maximum)| {
            let (low, high) = bounds.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
            let minimum = minimum.unwrap_or(f64::NEG_INFINITY);
            Some((low.max(minimum), high.min(maximum.unwrap_or(f64::INFINITY))))
        })
    };
    match (bounds(old), bounds(new)) {
        (None, None) => Relation::Same,
        // A field without a range may have values that are not finite.
        (None, Some(_)) => Relation::Fewer,
        (Some(_), None) => Relation::More,
        (Some(was), Some(is)) => {
            bound(is.0.total_cmp(&was.0).reverse()).and(bound(is.1.total_cmp(&was.1)))
        }
    }
}

/// The relation of a bound that has moved outwards (`Greater`), inwards or not at all.
fn bound(outwards: Ordering) -> Relation {
    match outwards {
        Ordering::Less => Relation::Fewer,
        Ordering::Equal => Relation::Same,
        Ordering::Greater => Relation::More,
    }
}

/// Labels are identified by position as well as by name, so they can only be added or removed at
/// the end.
fn labels(old: &Field, new: &Field) -> Relation {
    let labels = |field: &Field| {
        field.constraints.iter().find_map(|constraint| match constraint {
            Constraint::OneOf(labels) => Some(labels.clone()),
            _ => None,
        })
    };
    match (labels(old), labels(new)) {
        (None, None) => Relation::Same,
        (None, Some(_)) => Relation::Fewer,
        (Some(_), None) => Relation::More,
        (Some(was), Some(is)) if was == is => Relation::Same,
        (Some(was), Some(is)) if is.starts_with(&was) => Relation::More,
        (Some(was), Some(is)) if was.starts_with(&is) => Relation::Fewer,
        _ => Relation::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Datatype;

    fn field(name: &str, datatype: Datatype, constraints: &[Constraint]) -> Field {
        Field {
            name: name.to_owned(),
            description: "before".to_owned(),
            datatype,
            row_shape: vec![Some(3), None],
            constraints: constraints.to_vec(),
            default: None,
        }
    }

    pub(super) fn signature() -> Signature {
        let label = Constraint::OneOf(vec!["clean".to_owned(), "toxic".to_owned()]);
        Signature {
            inputs: vec![
                field("text", Datatype::Bytes, &[Constraint::Text, length(1, 2000)]),
                field("age", Datatype::Fp32, &[range(0.0, 150.0)]),
                Field {
                    default: Some(vec![0; 4]),
                    row_shape: vec![],
                    ..field("lots", Datatype::Int32, &[])
                },
                Field { row_shape: vec![Some(3), Some(2)], ..field("grid", Datatype::Fp32, &[]) },
            ],
            outputs: vec![
                field("label", Datatype::Bytes, &[Constraint::Text, label]),
                field("score", Datatype::Fp32, &[range(0.0, 1.0)]),
            ],
            max_batch_size: 8,
        }
    }

    fn length(minimum: u32, maximum: u32) -> Constraint {
        Constraint::Length { minimum, maximum }
    }

    fn range(minimum: f64, maximum: f64) -> Constraint {
        Constraint::Range { minimum: Some(minimum), maximum: Some(maximum) }
    }

    fn labels(all: &[&str]) -> Constraint {
        Constraint::OneOf(all.iter().map(|label| (*label).to_owned()).collect())
    }

    /// The increment that a change of the signature requires.
    fn bump(change: impl Fn(&mut Signature)) -> Bump {
        let mut new = signature();
        change(&mut new);
        let changes = changes(&signature(), &new);
        assert!(changes.iter().all(|change| change.bump > Bump::Patch), "{changes:?}");
        required_bump(&changes)
    }

    #[test]
    fn changes_callers_do_not_notice_are_patches() {
        assert_eq!(bump(|_| {}), Bump::Patch);
        assert_eq!(bump(|new| new.inputs[0].description = "after".to_owned()), Bump::Patch);
        // An equivalent constraint.
        assert_eq!(bump(|new| new.inputs[1].constraints.push(range(0.0, 200.0))), Bump::Patch);
        let padded = Constraint::Padded(vec![0; 4]);
        assert_eq!(bump(|new| new.inputs[1].constraints.push(padded.clone())), Bump::Patch);
    }

    #[test]
    fn compatible_changes_are_minor() {
        let optional = Field { default: Some(vec![0; 4]), ..field("new", Datatype::Fp32, &[]) };
        assert_eq!(bump(|new| new.inputs.push(optional.clone())), Bump::Minor);
        assert_eq!(bump(|new| new.outputs.push(field("new", Datatype::Fp32, &[]))), Bump::Minor);
        assert_eq!(bump(|new| new.inputs[0].constraints[1] = length(0, 2000)), Bump::Minor);
        assert_eq!(bump(|new| new.inputs[0].constraints[1] = length(1, 2001)), Bump::Minor);
        assert_eq!(bump(|new| drop(new.inputs[0].constraints.pop())), Bump::Minor);
        assert_eq!(bump(|new| new.inputs[1].constraints[0] = range(-1.0, 151.0)), Bump::Minor);
        assert_eq!(bump(|new| drop(new.inputs[1].constraints.pop())), Bump::Minor);
        assert_eq!(bump(|new| new.inputs[3].row_shape = vec![None, Some(2)]), Bump::Minor);
        assert_eq!(bump(|new| new.inputs[1].default = Some(vec![0; 4])), Bump::Minor);
        assert_eq!(bump(|new| new.inputs[2].default = Some(vec![1; 4])), Bump::Minor);
        assert_eq!(bump(|new| new.outputs[1].constraints[0] = range(0.1, 0.9)), Bump::Minor);
        assert_eq!(bump(|new| new.outputs[1].row_shape = vec![Some(3), Some(1)]), Bump::Minor);
        assert_eq!(bump(|new| new.max_batch_size = 9), Bump::Minor);
    }

    #[test]
    fn breaking_changes_are_major() {
        assert_eq!(bump(|new| drop(new.inputs.pop())), Bump::Major);
        assert_eq!(bump(|new| drop(new.outputs.pop())), Bump::Major);
        assert_eq!(bump(|new| new.inputs[0].name = "txt".to_owned()), Bump::Major);
        assert_eq!(bump(|new| new.inputs[0].name = "TEXT".to_owned()), Bump::Major);
        assert_eq!(bump(|new| new.outputs[0].name = "class".to_owned()), Bump::Major);
        assert_eq!(bump(|new| new.inputs[1].datatype = Datatype::Fp64), Bump::Major);
        assert_eq!(bump(|new| new.outputs[1].datatype = Datatype::Fp64), Bump::Major);
        assert_eq!(bump(|new| new.inputs.push(field("new", Datatype::Fp32, &[]))), Bump::Major);
        assert_eq!(bump(|new| new.inputs[2].default = None), Bump::Major);
        // Field numbers are positions.
        assert_eq!(bump(|new| new.inputs.reverse()), Bump::Major);
        assert_eq!(bump(|new| new.outputs.swap(0, 1)), Bump::Major);
        let optional = || Field { default: Some(vec![0; 4]), ..field("new", Datatype::Fp32, &[]) };
        assert_eq!(bump(|new| new.inputs.insert(3, optional())), Bump::Major);
        assert_eq!(
            bump(|new| new.outputs.insert(0, field("new", Datatype::Fp32, &[]))),
            Bump::Major
        );
        // The field changes between a list and a message in gRPC.
        assert_eq!(bump(|new| new.inputs[1].row_shape = vec![None, None]), Bump::Major);
        assert_eq!(bump(|new| new.inputs[3].row_shape = vec![None, None]), Bump::Major);
        assert_eq!(bump(|new| new.inputs[0].constraints[1] = length(2, 2000)), Bump::Major);
        // A higher maximum, but also a higher minimum.
        assert_eq!(bump(|new| new.inputs[0].constraints[1] = length(2, 3000)), Bump::Major);
        assert_eq!(bump(|new| new.inputs[0].constraints.push(Constraint::Stripped)), Bump::Major);
        assert_eq!(bump(|new| drop(new.inputs[0].constraints.remove(0))), Bump::Major);
        assert_eq!(bump(|new| new.inputs[1].constraints[0] = range(1.0, 150.0)), Bump::Major);
        assert_eq!(bump(|new| new.inputs[2].constraints.push(range(0.0, 9.0))), Bump::Major);
        assert_eq!(bump(|new| new.inputs[1].row_shape = vec![Some(3), Some(1)]), Bump::Major);
        assert_eq!(bump(|new| new.inputs[1].row_shape = vec![Some(4), None]), Bump::Major);
        assert_eq!(bump(|new| new.inputs[1].row_shape = vec![Some(3)]), Bump::Major);
        assert_eq!(bump(|new| new.outputs[1].constraints[0] = range(0.0, 1.1)), Bump::Major);
        assert_eq!(bump(|new| drop(new.outputs[1].constraints.pop())), Bump::Major);
        assert_eq!(bump(|new| new.outputs[1].row_shape = vec![None, None]), Bump::Major);
        for other in [&["toxic", "clean"][..], &["clean", "rude", "toxic"], &["a", "b"]] {
            assert_eq!(bump(|new| new.outputs[0].constraints[1] = labels(other)), Bump::Major);
        }
        let more = labels(&["clean", "toxic", "rude"]);
        assert_eq!(bump(|new| new.outputs[0].constraints[1] = more.clone()), Bump::Major);
    }

    #[test]
    fn versions_promise_compatibility_as_in_cargo() {
        let between =
            |old: &str, new: &str| Bump::between(&old.parse().unwrap(), &new.parse().unwrap());
        for (old, new, promised) in [
            ("1.0.0", "1.0.1", Some(Bump::Patch)),
            ("1.0.0", "1.1.0", Some(Bump::Minor)),
            ("1.9.0", "1.10.0", Some(Bump::Minor)),
            ("1.9.0", "2.0.0", Some(Bump::Major)),
            ("1.0.0", "1.1.0-rc.1", Some(Bump::Minor)),
            ("1.1.0-rc.1", "1.1.0-rc.2", Some(Bump::Major)),
            ("1.1.0-rc.1", "1.1.0", Some(Bump::Major)),
            ("0.1.0", "0.1.1", Some(Bump::Minor)),
            ("0.1.0", "0.2.0", Some(Bump::Major)),
            ("0.0.1", "0.0.2", Some(Bump::Major)),
            ("1.0.0", "1.0.0", None),
            ("1.0.0", "1.0.0+build", None),
            ("1.0.0", "1.0.0-rc.1", None),
            ("2.0.0", "1.9.9", None),
        ] {
            assert_eq!(between(old, new), promised, "{old} to {new}");
        }
    }
}
