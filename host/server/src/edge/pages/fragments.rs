//! Cached text fragments of the OpenAPI document, one for each model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::edge::policy::Policy;
use guesthouse_control::registry::Snapshot;
use guesthouse_model::ModelName;

/// The most bytes of cached fragments: those of a few thousand models. Further ones are rendered for each
/// document.
const MAX_BYTES: usize = 64 << 20;

/// The members of an OpenAPI document that describe models.
#[derive(Default)]
pub(in crate::edge) struct Document {
    pub(in crate::edge) paths: Map<String, Value>,
    pub(in crate::edge) schemas: Map<String, Value>,
    pub(in crate::edge) tags: Vec<Value>,
}

/// A fragment of the document: members of its objects and arrays, without the enclosing brackets.
pub(in crate::edge) struct Fragment {
    pub(in crate::edge) tags: String,
    pub(in crate::edge) paths: String,
    pub(in crate::edge) schemas: String,
}

impl Fragment {
    pub(in crate::edge) fn new(document: &Document) -> Self {
        let tags: Vec<_> = document.tags.iter().map(Value::to_string).collect();
        let (paths, schemas) = (members(&document.paths), members(&document.schemas));
        Self { tags: tags.join(","), paths, schemas }
    }

    /// Whether the fragment describes the path.
    pub(in crate::edge) fn has_path(&self, path: &str) -> bool {
        self.paths.contains(&format!("{}:{{\"get\"", Value::from(path)))
    }

    fn bytes(&self) -> usize {
        self.tags.len() + self.paths.len() + self.schemas.len()
    }
}

/// The members of a JSON object, without its braces.
pub(in crate::edge) fn members(object: &Map<String, Value>) -> String {
    let members = object.iter().map(|(name, value)| format!("{}:{value}", Value::from(&**name)));
    members.collect::<Vec<_>>().join(",")
}

/// Join lists of members with commas.
pub(in crate::edge) fn join<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut all = String::new();
    for part in parts.filter(|part| !part.is_empty()) {
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(part);
    }
    all
}

/// The cached fragments by model.
#[derive(Default)]
pub(in crate::edge) struct Fragments(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_model: BTreeMap<ModelName, (Source, Arc<Fragment>)>,
    bytes: usize,
}

/// The inputs of a fragment: the policy, and the keys of versions.
struct Source {
    policy: Arc<Policy>,
    made_of: Vec<u64>,
}

impl Fragments {
    /// The fragment of a model, rendered by `describe` unless it is cached.
    pub(in crate::edge) fn get(
        &self,
        model: &ModelName,
        policy: &Arc<Policy>,
        made_of: Vec<u64>,
        describe: impl FnOnce() -> Document,
    ) -> Arc<Fragment> {
        {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((source, fragment)) = kept.by_model.get(model)
                && source.made_of == made_of
                && Arc::ptr_eq(&source.policy, policy)
            {
                return Arc::clone(fragment);
            }
        }
        let fragment = Arc::new(Fragment::new(&describe()));
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(model);
        if kept.bytes + fragment.bytes() <= MAX_BYTES {
            kept.bytes += fragment.bytes();
            let source = Source { policy: Arc::clone(policy), made_of };
            kept.by_model.insert(model.clone(), (source, Arc::clone(&fragment)));
        }
        fragment
    }

    /// Drop the fragments of models that do not exist any more.
    pub(in crate::edge) fn forget_others(&self, snapshot: &Snapshot) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = kept.by_model.keys().filter(|model| !snapshot.models.contains_key(*model));
        let gone: Vec<_> = gone.cloned().collect();
        gone.iter().for_each(|model| kept.remove(model));
    }
}

impl Kept {
    fn remove(&mut self, model: &ModelName) {
        if let Some((_, fragment)) = self.by_model.remove(model) {
            self.bytes -= fragment.bytes();
        }
    }
}
