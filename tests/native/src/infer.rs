//! Runs the cases with tract in this process.

use std::io;
use std::path::Path;

use anyhow::Result;
use cases::{Caller, Case, Cases};
use tract_onnx::prelude::*;

use crate::model::{self, Plan};

pub(crate) fn answer(models: &Path) -> Result<()> {
    let cases = Cases::open(models)?;
    let open = |case: &Case| {
        let plan = model::load_case(&cases, case)?;
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
