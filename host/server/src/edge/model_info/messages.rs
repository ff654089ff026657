//! The messages with information about the server and its models. REST serializes them as JSON, gRPC converts
//! them to protobuf.

use std::collections::BTreeMap;

use serde::Serialize;

use guesthouse_model::{Datatype, Field};
use guesthouse_runtime::inference::{DEFAULT_PRIORITY, PRIORITY_LEVELS};
use guesthouse_runtime::version::ServableVersion;
use guesthouse_runtime::version::statistics::{DurationCount, StatisticsSnapshot};

/// The platform of every model.
const PLATFORM: &str = "guesthouse_wasm";

/// The backend of every model, in configurations.
const BACKEND: &str = "guesthouse";

/// The metadata of the server.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct ServerMetadata {
    pub(in crate::edge) name: String,
    pub(in crate::edge) version: &'static str,
    pub(in crate::edge) extensions: Vec<&'static str>,
}

/// The inputs and outputs of a version.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct ModelMetadata {
    pub(in crate::edge) name: String,
    /// Ascending; only the requested one, if the request names a version.
    pub(in crate::edge) versions: Vec<String>,
    pub(in crate::edge) platform: &'static str,
    pub(in crate::edge) inputs: Vec<TensorMetadata>,
    pub(in crate::edge) outputs: Vec<TensorMetadata>,
    pub(in crate::edge) properties: BTreeMap<&'static str, String>,
}

/// An input or an output.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct TensorMetadata {
    pub(in crate::edge) name: String,
    pub(in crate::edge) datatype: &'static str,
    /// The batch dimension comes first; -1 stands for any size.
    pub(in crate::edge) shape: Vec<i64>,
}

/// The configuration of a version, in Triton's form.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct ModelConfig {
    pub(in crate::edge) name: String,
    pub(in crate::edge) platform: &'static str,
    pub(in crate::edge) backend: &'static str,
    /// In rows.
    pub(in crate::edge) max_batch_size: u32,
    pub(in crate::edge) input: Vec<ConfigInput>,
    pub(in crate::edge) output: Vec<ConfigOutput>,
    /// None if requests are not batched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::edge) dynamic_batching: Option<DynamicBatching>,
}

/// An input.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct ConfigInput {
    pub(in crate::edge) name: String,
    /// `TYPE_FP32`; byte strings are `TYPE_STRING`.
    pub(in crate::edge) data_type: &'static str,
    /// Without the batch dimension; -1 stands for any size.
    pub(in crate::edge) dims: Vec<i64>,
    /// Whether it has a default.
    pub(in crate::edge) optional: bool,
}

/// An output.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct ConfigOutput {
    pub(in crate::edge) name: String,
    pub(in crate::edge) data_type: &'static str,
    pub(in crate::edge) dims: Vec<i64>,
}

/// How requests are batched.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct DynamicBatching {
    pub(in crate::edge) max_queue_delay_microseconds: u64,
    /// 1 is the most urgent.
    pub(in crate::edge) priority_levels: u64,
    /// The priority of requests that do not set one.
    pub(in crate::edge) default_priority_level: u64,
}

/// The statistics of a version since it was loaded.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct ModelStatistics {
    pub(in crate::edge) name: String,
    pub(in crate::edge) version: String,
    /// Milliseconds since 1970; 0 if there was none.
    pub(in crate::edge) last_inference: u64,
    /// Rows.
    pub(in crate::edge) inference_count: u64,
    /// Batches.
    pub(in crate::edge) execution_count: u64,
    pub(in crate::edge) inference_stats: InferStatistics,
    pub(in crate::edge) batch_stats: Vec<BatchStatistics>,
}

#[derive(Debug, Serialize)]
pub(in crate::edge) struct InferStatistics {
    pub(in crate::edge) success: Duration,
    pub(in crate::edge) fail: Duration,
    pub(in crate::edge) queue: Duration,
    pub(in crate::edge) compute_input: Duration,
    pub(in crate::edge) compute_infer: Duration,
    pub(in crate::edge) compute_output: Duration,
}

/// The statistics of batches of one size.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct BatchStatistics {
    pub(in crate::edge) batch_size: u64,
    pub(in crate::edge) compute_input: Duration,
    pub(in crate::edge) compute_infer: Duration,
    pub(in crate::edge) compute_output: Duration,
}

/// How often something happened, and how long it took in total.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct Duration {
    pub(in crate::edge) count: u64,
    pub(in crate::edge) ns: u64,
}

/// A version in the index of the model repository.
#[derive(Debug, Serialize)]
pub(in crate::edge) struct IndexEntry {
    pub(in crate::edge) name: String,
    /// Empty for a model without any version.
    pub(in crate::edge) version: String,
    pub(in crate::edge) state: &'static str,
    /// Why it is not ready; empty if it is.
    pub(in crate::edge) reason: String,
}

impl ModelMetadata {
    /// Of a version; `versions` are those of its model.
    pub(super) fn new(version: &ServableVersion, versions: Vec<String>) -> Self {
        let (id, signature) = (version.id(), version.signature());
        let mut properties = BTreeMap::from([
            ("model_version", id.version.to_string()),
            ("digest", version.digest().to_string()),
        ]);
        if let Some(description) = &version.metadata().description {
            properties.insert("description", description.clone());
        }
        Self {
            name: id.name.to_string(),
            versions,
            platform: PLATFORM,
            inputs: signature.inputs.iter().map(TensorMetadata::from_field).collect(),
            outputs: signature.outputs.iter().map(TensorMetadata::from_field).collect(),
            properties,
        }
    }
}

impl TensorMetadata {
    fn from_field(field: &Field) -> Self {
        let shape = std::iter::once(-1).chain(dims(field)).collect();
        Self { name: field.name.clone(), datatype: field.datatype.as_str(), shape }
    }
}

fn dims(field: &Field) -> impl Iterator<Item = i64> + '_ {
    field.row_shape.iter().map(|size| size.map_or(-1, i64::from))
}

impl ModelConfig {
    pub(super) fn new(version: &ServableVersion) -> Self {
        let (id, signature) = (version.id(), version.signature());
        let input = |field: &Field| ConfigInput {
            name: field.name.clone(),
            data_type: config_type(field.datatype),
            dims: dims(field).collect(),
            optional: field.default.is_some(),
        };
        let output = |field: &Field| ConfigOutput {
            name: field.name.clone(),
            data_type: config_type(field.datatype),
            dims: dims(field).collect(),
        };
        Self {
            name: id.name.to_string(),
            platform: PLATFORM,
            backend: BACKEND,
            max_batch_size: u32::try_from(version.max_batch_size()).unwrap_or(u32::MAX),
            input: signature.inputs.iter().map(input).collect(),
            output: signature.outputs.iter().map(output).collect(),
            dynamic_batching: version.is_batched().then(|| DynamicBatching::new(version)),
        }
    }
}

impl DynamicBatching {
    fn new(version: &ServableVersion) -> Self {
        let delay = version.limits().batching.max_queue_delay.as_micros();
        Self {
            max_queue_delay_microseconds: u64::try_from(delay).unwrap_or(u64::MAX),
            priority_levels: PRIORITY_LEVELS,
            default_priority_level: DEFAULT_PRIORITY.into(),
        }
    }
}

/// The name of a datatype in configurations.
fn config_type(datatype: Datatype) -> &'static str {
    match datatype {
        Datatype::Bool => "TYPE_BOOL",
        Datatype::Uint8 => "TYPE_UINT8",
        Datatype::Uint16 => "TYPE_UINT16",
        Datatype::Uint32 => "TYPE_UINT32",
        Datatype::Uint64 => "TYPE_UINT64",
        Datatype::Int8 => "TYPE_INT8",
        Datatype::Int16 => "TYPE_INT16",
        Datatype::Int32 => "TYPE_INT32",
        Datatype::Int64 => "TYPE_INT64",
        Datatype::Fp16 => "TYPE_FP16",
        Datatype::Fp32 => "TYPE_FP32",
        Datatype::Fp64 => "TYPE_FP64",
        Datatype::Bytes => "TYPE_STRING",
        Datatype::Bf16 => "TYPE_BF16",
    }
}

impl Duration {
    fn from_count(count: DurationCount) -> Self {
        Self { count: count.count, ns: count.nanoseconds }
    }
}

impl ModelStatistics {
    pub(super) fn new(version: &ServableVersion) -> Self {
        let StatisticsSnapshot {
            last_inference_ms,
            inference_count,
            execution_count,
            success,
            fail,
            queue,
            compute_input,
            compute_infer,
            compute_output,
            batches,
        } = version.statistics().snapshot();
        let batches = batches.into_iter().map(|batch| BatchStatistics {
            batch_size: batch.batch_size,
            compute_input: Duration::from_count(batch.compute_input),
            compute_infer: Duration::from_count(batch.compute_infer),
            compute_output: Duration::from_count(batch.compute_output),
        });
        let id = version.id();
        Self {
            name: id.name.to_string(),
            version: id.version.to_string(),
            last_inference: last_inference_ms,
            inference_count,
            execution_count,
            inference_stats: InferStatistics {
                success: Duration::from_count(success),
                fail: Duration::from_count(fail),
                queue: Duration::from_count(queue),
                compute_input: Duration::from_count(compute_input),
                compute_infer: Duration::from_count(compute_infer),
                compute_output: Duration::from_count(compute_output),
            },
            batch_stats: batches.collect(),
        }
    }
}
