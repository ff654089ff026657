//! Scopes: what a key permits.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use guesthouse_model::ModelName;

/// The most scopes of a key. A caller that needs more models uses `predict:*`.
const MAX_SCOPES: usize = 64;

/// One permission of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// `admin`: the admin API, which shows and changes what is served.
    Admin,
    /// `predict:*`: predictions and metadata of every model, also of future ones.
    PredictAll,
    /// `predict:toxicity`: predictions and metadata of one model.
    Predict(ModelName),
}

/// A text is not a [`Scope`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a scope is `admin`, `predict:*` or `predict:` and the name of a model")]
pub struct ScopeError;

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        match text.strip_prefix("predict:") {
            None if text == "admin" => Ok(Self::Admin),
            None => Err(ScopeError),
            Some("*") => Ok(Self::PredictAll),
            Some(model) => model.parse().map(Self::Predict).map_err(|_error| ScopeError),
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = ScopeError;

    fn try_from(text: String) -> Result<Self, ScopeError> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => formatter.write_str("admin"),
            Self::PredictAll => formatter.write_str("predict:*"),
            Self::Predict(model) => write!(formatter, "predict:{model}"),
        }
    }
}

/// The permissions of a key: at least one, and a bounded number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeSet<Scope>", into = "BTreeSet<Scope>")]
pub struct Scopes(BTreeSet<Scope>);

/// The number of scopes is out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key has 1 to {MAX_SCOPES} scopes")]
pub struct ScopesError;

impl TryFrom<BTreeSet<Scope>> for Scopes {
    type Error = ScopesError;

    fn try_from(scopes: BTreeSet<Scope>) -> Result<Self, ScopesError> {
        if (1..=MAX_SCOPES).contains(&scopes.len()) { Ok(Self(scopes)) } else { Err(ScopesError) }
    }
}

impl From<Scopes> for BTreeSet<Scope> {
    fn from(scopes: Scopes) -> Self {
        scopes.0
    }
}

impl Scopes {
    /// A single scope.
    pub fn only(scope: Scope) -> Self {
        Self(BTreeSet::from([scope]))
    }

    /// Whether the key opens the admin API.
    pub fn administers(&self) -> bool {
        self.0.contains(&Scope::Admin)
    }

    /// Whether the key permits predictions of any model.
    pub fn predicts_something(&self) -> bool {
        self.0.iter().any(|scope| *scope != Scope::Admin)
    }

    /// Whether the key permits predictions of every model.
    pub fn predicts_all(&self) -> bool {
        self.0.contains(&Scope::PredictAll)
    }

    /// Whether the key permits predictions of this model.
    pub fn predicts(&self, model: &ModelName) -> bool {
        let named = |scope: &Scope| matches!(scope, Scope::Predict(name) if name == model);
        self.predicts_all() || self.0.iter().any(named)
    }
}

impl Scopes {
    /// The models whose predictions the key permits; none if it permits those of every model.
    pub fn models(&self) -> Option<BTreeSet<ModelName>> {
        let named = self.0.iter().filter_map(|scope| match scope {
            Scope::Predict(name) => Some(name.clone()),
            Scope::Admin | Scope::PredictAll => None,
        });
        (!self.predicts_all()).then(|| named.collect())
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        formatter.write_str(&scopes.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(texts: &[&str]) -> Scopes {
        let scopes: BTreeSet<Scope> = texts.iter().map(|text| text.parse().unwrap()).collect();
        scopes.try_into().unwrap()
    }

    #[test]
    fn a_scope_grants_only_what_it_names() {
        let (one, other): (ModelName, ModelName) =
            ("toxicity".parse().unwrap(), "toxicity-2".parse().unwrap());
        let named = scopes(&["predict:toxicity"]);
        assert!(named.predicts(&one) && !named.predicts(&other) && !named.administers());
        let all = scopes(&["predict:*"]);
        assert!(all.predicts(&one) && all.predicts(&other) && !all.administers());
        let admin = scopes(&["admin"]);
        assert!(admin.administers() && !admin.predicts(&one) && !admin.predicts_something());
        let both = scopes(&["admin", "predict:toxicity"]);
        assert!(both.administers() && both.predicts(&one) && !both.predicts(&other));
    }

    #[test]
    fn scopes_round_trip_as_text() {
        let written = serde_json::to_string(&scopes(&["predict:b", "admin", "predict:*"])).unwrap();
        assert_eq!(written, r#"["admin","predict:*","predict:b"]"#);
        assert_eq!(
            serde_json::from_str::<Scopes>(&written).unwrap(),
            scopes(&["admin", "predict:*", "predict:b"])
        );
        for bad in ["", "predict", "predict:", "predict:A", "predict:**", "Admin", "admin:*", "*"] {
            assert_eq!(bad.parse::<Scope>(), Err(ScopeError), "{bad}");
        }
        assert!(serde_json::from_str::<Scopes>("[]").is_err());
        let many: BTreeSet<_> = (0..=MAX_SCOPES)
            .map(|number| Scope::Predict(format!("m{number}").parse().unwrap()))
            .collect();
        assert_eq!(Scopes::try_from(many), Err(ScopesError));
    }
}
