//! Information about models, as messages of `inference.GRPCInferenceService`.

use std::collections::BTreeMap;

use crate::edge::codec::tensors::{MAX_PARAMETERS, Parameter, Parameters};
use crate::edge::error::ApiError;
use crate::edge::{model_info, pb};
use pb::model_metadata_response::TensorMetadata;
use pb::model_repository_parameter::ParameterChoice;
use pb::repository_index_response::ModelIndex;

/// The parameters of a request to load or unload a model.
pub(super) fn repository_parameters(
    given: BTreeMap<String, pb::ModelRepositoryParameter>,
) -> Result<Parameters, ApiError> {
    if given.len() > MAX_PARAMETERS {
        return Err(ApiError::malformed(format!("there are over {MAX_PARAMETERS} parameters")));
    }
    let parameter = |(name, value): (String, pb::ModelRepositoryParameter)| {
        let value = match value.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Parameter::Bool(value),
            Some(ParameterChoice::Int64Param(value)) => Parameter::Int(value),
            Some(ParameterChoice::StringParam(value)) => Parameter::Text(value),
            Some(ParameterChoice::BytesParam(_)) => {
                return Err(ApiError::malformed(
                    "files are not supported: a version is an artifact",
                ));
            }
            None => return Err(ApiError::malformed("a parameter has no value")),
        };
        Ok((name, value))
    };
    given.into_iter().map(parameter).collect()
}

impl From<model_info::ModelMetadata> for pb::ModelMetadataResponse {
    fn from(info: model_info::ModelMetadata) -> Self {
        let model_info::ModelMetadata { name, versions, platform, inputs, outputs, properties } =
            info;
        let properties = properties.into_iter().map(|(name, value)| (name.to_owned(), value));
        Self {
            name,
            versions,
            platform: platform.to_owned(),
            inputs: inputs.into_iter().map(Into::into).collect(),
            outputs: outputs.into_iter().map(Into::into).collect(),
            properties: properties.collect(),
        }
    }
}

impl From<model_info::TensorMetadata> for TensorMetadata {
    fn from(info: model_info::TensorMetadata) -> Self {
        let model_info::TensorMetadata { name, datatype, shape } = info;
        Self { name, datatype: datatype.to_owned(), shape }
    }
}

impl From<model_info::ModelConfig> for pb::ModelConfig {
    fn from(info: model_info::ModelConfig) -> Self {
        let batching = info.dynamic_batching.map(|info| {
            pb::model_config::SchedulingChoice::DynamicBatching(pb::ModelDynamicBatching {
                max_queue_delay_microseconds: info.max_queue_delay_microseconds,
                priority_levels: info.priority_levels,
                default_priority_level: info.default_priority_level,
                ..Default::default()
            })
        });
        Self {
            name: info.name,
            platform: info.platform.to_owned(),
            max_batch_size: i32::try_from(info.max_batch_size).unwrap_or(i32::MAX),
            input: info.input.into_iter().map(Into::into).collect(),
            output: info.output.into_iter().map(Into::into).collect(),
            scheduling_choice: batching,
            backend: info.backend.to_owned(),
        }
    }
}

fn data_type(name: &str) -> i32 {
    pb::DataType::from_str_name(name).unwrap_or(pb::DataType::TypeInvalid).into()
}

impl From<model_info::ConfigInput> for pb::ModelInput {
    fn from(info: model_info::ConfigInput) -> Self {
        let model_info::ConfigInput { name, data_type, dims, optional } = info;
        Self { name, data_type: self::data_type(data_type), dims, optional }
    }
}

impl From<model_info::ConfigOutput> for pb::ModelOutput {
    fn from(info: model_info::ConfigOutput) -> Self {
        let model_info::ConfigOutput { name, data_type, dims } = info;
        Self { name, data_type: self::data_type(data_type), dims }
    }
}

impl From<model_info::Duration> for pb::StatisticDuration {
    fn from(model_info::Duration { count, ns }: model_info::Duration) -> Self {
        Self { count, ns }
    }
}

impl From<model_info::ModelStatistics> for pb::ModelStatistics {
    fn from(info: model_info::ModelStatistics) -> Self {
        let stats = info.inference_stats;
        let inference_stats = pb::InferStatistics {
            success: Some(stats.success.into()),
            fail: Some(stats.fail.into()),
            queue: Some(stats.queue.into()),
            compute_input: Some(stats.compute_input.into()),
            compute_infer: Some(stats.compute_infer.into()),
            compute_output: Some(stats.compute_output.into()),
        };
        let batches = info.batch_stats.into_iter().map(|batch| pb::InferBatchStatistics {
            batch_size: batch.batch_size,
            compute_input: Some(batch.compute_input.into()),
            compute_infer: Some(batch.compute_infer.into()),
            compute_output: Some(batch.compute_output.into()),
        });
        Self {
            name: info.name,
            version: info.version,
            last_inference: info.last_inference,
            inference_count: info.inference_count,
            execution_count: info.execution_count,
            inference_stats: Some(inference_stats),
            batch_stats: batches.collect(),
        }
    }
}

impl From<model_info::IndexEntry> for ModelIndex {
    fn from(info: model_info::IndexEntry) -> Self {
        let model_info::IndexEntry { name, version, state, reason } = info;
        Self { name, version, state: state.to_owned(), reason }
    }
}
