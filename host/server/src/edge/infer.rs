//! Inference as the Open Inference Protocol has it, whether it comes by REST or by gRPC: tensors with
//! names in, those that are asked for out.
//!
//! What the two do not share is how tensors are written, and how errors are told. Facts of the protocol:
//! <https://github.com/kserve/open-inference-protocol> and the documentation of Triton's extensions.

pub(super) mod about;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::call::{Call, Called};
use super::error::{ApiError, ErrorCode};
use super::observe::Account;
use super::passage::Passage;
use super::predict::{Target, target};
use super::{Edge, Policy};
use guesthouse_control::router::Route;
use guesthouse_control::shadow::Comparison;
use guesthouse_model::record::{TensorInputError, validate_tensors};
use guesthouse_model::{Datatype, Signature, Tensor, VersionId};
use guesthouse_runtime::inference::QueueOptions;

/// The most parameters of a request, of a tensor and of an output: each is a few dozen bytes, and no
/// client sends more than ten.
pub(super) const MAX_PARAMETERS: usize = 64;

/// The most elements that a classification takes of a row.
const MAX_CLASSES: u64 = 1000;

/// A parameter of a request, of a tensor or of an output.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Parameter {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
}

pub(super) type Parameters = BTreeMap<String, Parameter>;

/// An output that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RequestedOutput {
    pub(super) name: String,
    pub(super) parameters: Parameters,
}

/// A request, out of its envelope: tensors in their raw form.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct InferRequest {
    /// Comes back in the answer.
    pub(super) id: Option<String>,
    pub(super) parameters: Parameters,
    pub(super) inputs: Vec<Tensor>,
    /// None stands for all.
    pub(super) outputs: Vec<RequestedOutput>,
}

/// An answer, without its envelope.
pub(super) struct Inferred {
    pub(super) id: Option<String>,
    pub(super) version: VersionId,
    /// Those that were asked for, in that order.
    pub(super) outputs: Vec<Tensor>,
    route: Route,
    called: Called,
}

/// What a request names: an empty version stands for none, a bare number for a major.
pub(super) fn named(model: &str, version: &str) -> Target {
    target(model, Some(version).filter(|version| !version.is_empty()))
}

/// The error in the words that the protocol's clients look for.
pub(super) fn in_protocol_words(mut error: ApiError, edge: &Edge, model: &str) -> ApiError {
    let is_known = || {
        let snapshot = edge.registry.snapshot();
        snapshot.models.keys().any(|name| name.as_str() == model)
    };
    if error.code == ErrorCode::NotFound && !is_known() {
        let model: String = model.chars().take(64).collect();
        error.message = format!("Request for unknown model: '{model}' is not found");
    }
    error
}

/// Run what has been read of a request, which was complete at that time.
pub(super) async fn infer(
    passage: &mut Passage<'_>,
    request: InferRequest,
    complete: Instant,
    account: &mut Account,
) -> Result<Inferred, ApiError> {
    infer_with(passage, request, complete, account, |_, _| Ok(())).await
}

/// The same for a request that can only be made whole, or be refused, with the version's signature.
pub(super) async fn infer_with(
    passage: &mut Passage<'_>,
    mut request: InferRequest,
    complete: Instant,
    account: &mut Account,
    prepare: impl FnOnce(&Signature, &mut InferRequest) -> Result<(), ApiError>,
) -> Result<Inferred, ApiError> {
    let urgency = urgency(&request.parameters)?;
    if let (true, Some(field)) = (passage.is_told_by_body(), passage.field()) {
        passage.tell(sticky_key(field, &request.parameters)?.as_deref());
    }
    let entered = passage.enter(complete, account)?;
    let signature = entered.route.version.signature();
    prepare(signature, &mut request)?;
    let InferRequest { id, parameters: _, inputs, outputs: wanted } = request;
    let wanted = Wanted::of(signature, wanted)?;
    let inputs = validate_tensors(signature, inputs)?;
    let rows = rows_of(&inputs, passage.policy.limits.batch_rows)?;
    account.rows = rows;
    entered.route.version.statistics().record_input_conversion(complete.elapsed());
    passage.count(&entered.route);
    let mut call = Call::new(passage, &entered, account.timer());
    call.urgency = urgency;
    let outputs = call.run_tensors(inputs, rows).await?;
    let called = call.over();
    let outputs = wanted.take(outputs);
    let route = entered.route.clone();
    Ok(Inferred { id, version: route.version.id().clone(), outputs, route, called })
}

impl Inferred {
    /// What is to be compared with another version's answer, once this one is on its way.
    pub(super) fn comparison(&mut self, policy: &Policy, request_id: &str) -> Option<Comparison> {
        self.called.comparison(&self.route, policy, request_id)
    }

    /// The answer has been written, which began then.
    pub(super) fn encoded(&self, begin: Instant) {
        self.called.encoded(&self.route, begin);
    }
}

fn rows_of(inputs: &[Tensor], most: usize) -> Result<usize, ApiError> {
    let rows = inputs.first().map_or(0, Tensor::rows);
    let rows = usize::try_from(rows).ok().filter(|rows| *rows <= most);
    let too_many = || format!("the batch has over {most} rows");
    rows.ok_or_else(|| ApiError::new(ErrorCode::UnacceptableInput, too_many()))
}

/// What tells the caller from others, if a parameter of the request does.
fn sticky_key(name: &str, parameters: &Parameters) -> Result<Option<Vec<u8>>, ApiError> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Text(text)) if text.is_empty() => Ok(None),
        Some(Parameter::Text(text)) => Ok(Some(text.clone().into_bytes())),
        Some(Parameter::Int(number)) => Ok(Some(number.to_string().into_bytes())),
        Some(Parameter::Uint(number)) => Ok(Some(number.to_string().into_bytes())),
        Some(Parameter::Bool(_) | Parameter::Double(_)) => {
            let message = format!("parameter `{name}` must be a string or an integer");
            Err(ApiError::malformed(message))
        }
    }
}

/// Triton's schedule policy, as far as a request may have one.
fn urgency(parameters: &Parameters) -> Result<QueueOptions, ApiError> {
    let number = |name: &str| {
        let number = match parameters.get(name) {
            None => return Ok(None),
            Some(Parameter::Uint(number)) => Some(*number),
            Some(Parameter::Int(number)) => u64::try_from(*number).ok(),
            // Clients without an unsigned type send it so.
            Some(Parameter::Text(text)) => text.parse().ok(),
            Some(Parameter::Bool(_) | Parameter::Double(_)) => None,
        };
        let message = || format!("parameter `{name}` must be a whole number from 0 on");
        number.map(Some).ok_or_else(|| ApiError::malformed(message()))
    };
    for name in ["sequence_id", "sequence_start", "sequence_end"] {
        match parameters.get(name) {
            None | Some(Parameter::Bool(false) | Parameter::Int(0) | Parameter::Uint(0)) => {}
            Some(Parameter::Text(text)) if text.is_empty() => {}
            Some(_) => return Err(ApiError::malformed("sequences are not supported")),
        }
    }
    let priority = number("priority")?.unwrap_or(0);
    let queue_timeout = number("timeout")?.filter(|time| *time > 0).map(Duration::from_micros);
    Ok(QueueOptions { priority, queue_timeout })
}

/// Which outputs go back, and as what.
struct Wanted(Vec<(usize, Option<u64>)>);

impl Wanted {
    fn of(signature: &Signature, requested: Vec<RequestedOutput>) -> Result<Self, ApiError> {
        if requested.is_empty() {
            return Ok(Self((0..signature.outputs.len()).map(|index| (index, None)).collect()));
        }
        let mut wanted: Vec<(usize, Option<u64>)> = Vec::with_capacity(requested.len());
        for RequestedOutput { name, parameters } in requested {
            let place = signature.outputs.iter().position(|output| output.name == name);
            let name: String = name.chars().take(64).collect();
            let Some(place) = place else {
                let message = format!("output `{name}` is not an output of this model");
                return Err(ApiError::malformed(message));
            };
            if parameters.keys().any(|key| key.starts_with("shared_memory_")) {
                let message = format!("output `{name}`: there is no shared memory here");
                return Err(ApiError::malformed(message));
            }
            if wanted.iter().any(|(other, _)| *other == place) {
                return Err(ApiError::malformed(format!("output `{name}` is asked for twice")));
            }
            wanted.push((place, classes(signature, place, &parameters)?));
        }
        Ok(Self(wanted))
    }

    fn take(&self, outputs: Vec<Tensor>) -> Vec<Tensor> {
        let mut outputs: Vec<_> = outputs.into_iter().map(Some).collect();
        let taken = self.0.iter().filter_map(|(place, classes)| {
            let output = outputs.get_mut(*place)?.take()?;
            Some(match classes {
                None => output,
                Some(count) => classify(&output, *count),
            })
        });
        taken.collect()
    }
}

/// How many classes of an output are asked for, if they are instead of its elements.
fn classes(
    signature: &Signature,
    place: usize,
    parameters: &Parameters,
) -> Result<Option<u64>, ApiError> {
    let count = match parameters.get("classification") {
        None => return Ok(None),
        Some(Parameter::Int(count)) => u64::try_from(*count).ok(),
        Some(Parameter::Uint(count)) => Some(*count),
        Some(_) => None,
    };
    let output = &signature.outputs[place];
    match count {
        // What clients send that do not ask for it.
        Some(0) => Ok(None),
        Some(_) if matches!(output.datatype, Datatype::Bytes | Datatype::Bool) => {
            let message = format!("output `{}` has no numbers to be classified by", output.name);
            Err(ApiError::malformed(message))
        }
        Some(count) => Ok(Some(count.min(MAX_CLASSES))),
        None => Err(ApiError::malformed("`classification` must be a whole number from 0 on")),
    }
}

/// For each row its so many greatest elements, greatest first, each as `value:index`.
fn classify(output: &Tensor, count: u64) -> Tensor {
    let rows = usize::try_from(output.rows()).unwrap_or(usize::MAX).max(1);
    let values: Vec<f64> = output.numbers().collect();
    let per_row = values.len() / rows;
    let count = per_row.min(usize::try_from(count).unwrap_or(usize::MAX));
    let mut data = Vec::new();
    for row in values.chunks(per_row.max(1)).take(rows) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // Of equals the first comes first; what is no number comes last.
        let rank =
            |index: &usize| if row[*index].is_nan() { f64::NEG_INFINITY } else { row[*index] };
        order.sort_by(|one, other| rank(other).total_cmp(&rank(one)));
        for index in order.into_iter().take(count) {
            let class = format!("{:.6}:{index}", row[index]);
            // A few dozen bytes.
            data.extend_from_slice(&u32::try_from(class.len()).unwrap_or_default().to_le_bytes());
            data.extend_from_slice(class.as_bytes());
        }
    }
    let (name, shape) = (output.name.clone(), vec![output.rows(), count as u64]);
    Tensor { name, datatype: Datatype::Bytes, shape, data }
}

impl From<TensorInputError> for ApiError {
    fn from(error: TensorInputError) -> Self {
        match error {
            TensorInputError::Malformed(message) => Self::malformed(message),
            TensorInputError::Values(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guesthouse_model::bytes_elements;

    #[test]
    fn the_greatest_come_first() {
        let values = [0.5_f32, f32::NAN, 2.0, 2.0, -1.0, -1.0, -1.0, 7.25];
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (name, shape) = ("y".to_owned(), vec![2, 4]);
        let output = Tensor { name, datatype: Datatype::Fp32, shape, data };
        let classes = classify(&output, 3);
        assert_eq!((classes.check(), &classes.shape[..]), (Ok(()), &[2, 3][..]));
        let texts: Vec<_> = bytes_elements(&classes.data).map(String::from_utf8_lossy).collect();
        let first = ["2.000000:2", "2.000000:3", "0.500000:0"];
        assert_eq!(texts, [first, ["7.250000:3", "-1.000000:0", "-1.000000:1"]].concat());
        assert_eq!(classify(&output, 100).shape, [2, 4]);
    }

    #[test]
    fn a_schedule_is_of_whole_numbers() {
        let of = |name: &str, value| urgency(&Parameters::from([(name.to_owned(), value)]));
        let two = of("timeout", Parameter::Int(2000)).unwrap();
        assert_eq!(two.queue_timeout, Some(Duration::from_millis(2)));
        assert_eq!(of("timeout", Parameter::Uint(0)).unwrap(), QueueOptions::default());
        assert_eq!(of("priority", Parameter::Text("3".to_owned())).unwrap().priority, 3);
        assert!(of("priority", Parameter::Int(-1)).is_err());
        assert!(of("timeout", Parameter::Double(1.5)).is_err());
        assert!(of("sequence_id", Parameter::Int(5)).is_err());
        assert!(of("sequence_id", Parameter::Int(0)).is_ok());
    }
}
