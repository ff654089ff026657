//! Runs the cases with tract in this process. The variant `declared` loads a graph with the dimensions
//! that a guest declares, named ones included, and `fixed` with those of the case alone.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use cases::{Caller, Case, Cases, Dimension};
use tract_onnx::prelude::*;

use crate::model::{self, Plan};
use crate::toxicity::Toxicity;

pub(crate) fn answer(models: &Path, toxicity: &Path) -> Result<()> {
    let cases = Cases::open(models)?;
    let open = |case: &Case, variant: &str| {
        if case.model == "toxicity" {
            let text = cases.bytes(case.inputs.first().context("no input")?)?;
            let text = text.get(size_of::<u32>()..).context("no text")?;
            let text = str::from_utf8(text)?.to_owned();
            let toxicity = Toxicity::load(toxicity)?;
            return Ok(Box::new(Judge { toxicity, text, score: 0.0 }) as Box<dyn Caller>);
        }
        let mut case = case.clone();
        match variant {
            "declared" => {}
            "fixed" => {
                for input in &mut case.inputs {
                    input.declared = input.shape.iter().copied().map(Dimension::Fixed).collect();
                }
            }
            _ => bail!("there is no variant {variant:?}"),
        }
        let plan = model::load_case(&cases, &case)?;
        let inputs = case
            .inputs
            .iter()
            .map(|input| Ok(model::tensor(input, &cases.bytes(input)?)?.into_tvalue()))
            .collect::<Result<TVec<_>>>()?;
        Ok(Box::new(Native { plan, inputs, outputs: TVec::new() }) as Box<dyn Caller>)
    };
    cases::answer(&cases, io::stdin().lock(), io::stdout().lock(), open)
}

struct Native {
    plan: Plan,
    inputs: TVec<TValue>,
    outputs: TVec<TValue>,
}

impl Caller for Native {
    fn call(&mut self) -> Result<()> {
        self.outputs = self.plan.run(self.inputs.clone())?;
        Ok(())
    }

    fn outputs(&self) -> Result<Vec<Vec<f32>>> {
        let elements = |output: &TValue| {
            Ok(output.to_plain_array_view::<f32>()?.iter().copied().collect::<Vec<_>>())
        };
        self.outputs.iter().map(elements).collect()
    }
}

/// The toxicity of one text.
struct Judge {
    toxicity: Toxicity,
    text: String,
    score: f32,
}

impl Caller for Judge {
    fn call(&mut self) -> Result<()> {
        self.score = self.toxicity.score(&self.text)?;
        Ok(())
    }

    fn outputs(&self) -> Result<Vec<Vec<f32>>> {
        Ok(vec![vec![self.score]])
    }
}
