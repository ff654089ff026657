//! From the fields that callers send to the graph's inputs.

mod image;
mod pass;
mod table;
mod text;

use guesthouse_guest::tract_onnx::prelude::Tensor as Array;
use guesthouse_guest::{
    Assets, Batch, Error, Field, GraphValue, OnnxFile, PredictError, Rejections,
};
use guesthouse_onnx_manifest::{Input, OnnxManifest};

use self::pass::Pass;
use crate::fields::{self, Wanted};
use crate::names::field_names;

/// What makes inputs of the graph from fields.
pub(crate) trait Preprocess: Send + Sync {
    /// The fields that it takes, by name.
    fn takes(&self) -> Vec<(String, Wanted)>;

    /// The inputs of the graph that it makes, by index.
    fn makes(&self) -> Vec<usize>;

    /// The dimensions of the largest row of each of them; `None` if that is not known.
    fn largest(&self) -> Option<Vec<usize>>;

    /// Make them for a batch, or reject rows.
    fn run(
        &self,
        batch: &Batch,
        rejections: &mut Rejections,
        feed: &mut Feed,
    ) -> Result<(), PredictError>;
}

/// The inputs of the graph for a call.
pub(crate) struct Feed(Vec<Option<Array>>);

impl Feed {
    fn set(&mut self, index: usize, array: Array) {
        self.0[index] = Some(array);
    }
}

/// All preprocessing of a model.
pub(crate) struct Inputs {
    stages: Vec<Box<dyn Preprocess>>,
    /// How many tokens there are, by the input of the graph for them.
    vocabularies: Vec<(usize, usize)>,
    /// The number of the graph's inputs.
    count: usize,
    /// The tokens of the longest text, if there are texts.
    pub(crate) most_tokens: Option<usize>,
}

impl Inputs {
    /// Prepare what the manifest says, and return the fields as well.
    pub(crate) fn new(
        manifest: &OnnxManifest,
        assets: &Assets,
        values: &[GraphValue],
    ) -> Result<(Self, Vec<Field>), Error> {
        let mut stages: Vec<Box<dyn Preprocess>> = Vec::new();
        let mut vocabularies = Vec::new();
        for tokenize in &manifest.tokenize {
            let file = assets.read(&tokenize.tokenizer)?;
            let texts = text::Texts::new(tokenize, &file, values)?;
            vocabularies.push(texts.vocabulary());
            stages.push(Box::new(texts));
        }
        for image in &manifest.image {
            stages.push(Box::new(image::Images::new(image, values)?));
        }
        for table in &manifest.table {
            stages.push(Box::new(table::Columns::new(table, &manifest.inputs, values)?));
        }
        let fields = declare(&manifest.inputs, values, &mut stages)?;
        check_each_is_made_once(&stages, values)?;
        let most_tokens = manifest.tokenize.iter().map(|tokenize| tokenize.max_length).max();
        Ok((Self { stages, vocabularies, count: values.len(), most_tokens }, fields))
    }

    /// Check that the graph has an embedding for each token.
    pub(crate) fn check_vocabularies(
        &self,
        file: &OnnxFile,
        values: &[GraphValue],
    ) -> Result<(), Error> {
        for (index, tokens) in &self.vocabularies {
            let embeddings = file.embeddings(&values[*index].name);
            if let Some(embeddings) = embeddings.filter(|embeddings| embeddings < tokens) {
                return Err(Error::new(format!(
                    "the tokenizer has {tokens} tokens, but the graph embeddings for {embeddings}: \
                     give the tokenizer of this model"
                )));
            }
        }
        Ok(())
    }

    /// The dimensions of the largest row of an input of the graph, if preprocessing makes it.
    pub(crate) fn largest(&self, index: usize) -> Option<Vec<usize>> {
        let stage = self.stages.iter().find(|stage| stage.makes().contains(&index));
        stage.and_then(|stage| stage.largest())
    }

    /// The graph's inputs for a batch.
    pub(crate) fn run(&self, batch: &Batch) -> Result<Vec<Array>, PredictError> {
        let mut rejections = Rejections::default();
        let mut feed = Feed(vec![None; self.count]);
        for stage in &self.stages {
            stage.run(batch, &mut rejections, &mut feed)?;
        }
        rejections.check()?;
        let inputs = feed.0.into_iter().map(|input| {
            input.ok_or_else(|| PredictError::failed("an input of the graph has not been made"))
        });
        inputs.collect()
    }
}

/// The fields of the signature. What nothing else makes passes as it is.
fn declare(
    inputs: &[Input],
    values: &[GraphValue],
    stages: &mut Vec<Box<dyn Preprocess>>,
) -> Result<Vec<Field>, Error> {
    let taken: Vec<(String, Wanted)> = stages.iter().flat_map(|stage| stage.takes()).collect();
    let mut fields = Vec::new();
    for input in inputs {
        let wrong = |what: &str| Error::new(format!("input {:?}: {what}", input.name));
        if let Some((_, wanted)) = taken.iter().find(|(name, _)| *name == input.name) {
            if input.graph.is_some() || input.scalar {
                return Err(wrong(
                    "preprocessing takes it: remove `graph` and `scalar`, which are for fields that \
                     the graph takes",
                ));
            }
            fields.push(fields::field(input, wanted)?);
            continue;
        }
        if input.datatype.is_some() {
            return Err(wrong("`type` is for columns of a table: remove it"));
        }
        let pass = Pass::new(input, values)?;
        fields.push(fields::field(input, pass.wanted())?);
        stages.push(Box::new(pass));
    }
    for (index, (name, wanted)) in taken.iter().enumerate() {
        let is_known = inputs.iter().any(|input| input.name == *name)
            || taken[..index].iter().any(|(other, _)| other == name);
        if !is_known {
            let input = Input { name: name.clone(), ..Input::default() };
            fields.push(fields::field(&input, wanted)?);
        }
    }
    let made: Vec<usize> = stages.iter().flat_map(|stage| stage.makes()).collect();
    let rest: Vec<usize> = (0..values.len()).filter(|index| !made.contains(index)).collect();
    let names = field_names(rest.iter().map(|index| values[*index].name.as_str()))?;
    for (index, name) in rest.into_iter().zip(names) {
        let graph = Some(values[index].name.clone());
        let input = Input { name, graph, ..Input::default() };
        let pass = Pass::new(&input, values)?;
        fields.push(fields::field(&input, pass.wanted())?);
        stages.push(Box::new(pass));
    }
    Ok(fields)
}

fn check_each_is_made_once(
    stages: &[Box<dyn Preprocess>],
    values: &[GraphValue],
) -> Result<(), Error> {
    for (index, value) in values.iter().enumerate() {
        let makers = stages.iter().filter(|stage| stage.makes().contains(&index)).count();
        if makers != 1 {
            return Err(Error::new(format!(
                "the graph's input {:?} is made by {makers} fields or steps: leave one",
                value.name
            )));
        }
    }
    Ok(())
}

/// The graph's input of this name.
fn position(values: &[GraphValue], name: &str) -> Result<usize, String> {
    values.iter().position(|value| value.name == name).ok_or_else(|| {
        let names: Vec<&str> = values.iter().map(|value| &*value.name).collect();
        format!("the graph has no input {name:?}, but {}", names.join(", "))
    })
}
