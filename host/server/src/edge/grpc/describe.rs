//! What is told of models, as messages.

use std::collections::BTreeMap;

use super::pb;
use crate::edge::codec::tensors::{MAX_PARAMETERS, Parameter, Parameters};
use crate::edge::error::ApiError;
use crate::edge::model_info as about;
use pb::model_metadata_response::TensorMetadata;
use pb::model_repository_parameter::ParameterChoice;
use pb::repository_index_response::ModelIndex;

/// What a model is to be loaded or unloaded with.
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
                    "files are not taken here: a version is an artifact",
                ));
            }
            None => return Err(ApiError::malformed("a parameter has no value")),
        };
        Ok((name, value))
    };
    given.into_iter().map(parameter).collect()
}

impl From<about::ModelMetadata> for pb::ModelMetadataResponse {
    fn from(about: about::ModelMetadata) -> Self {
        let about::ModelMetadata { name, versions, platform, inputs, outputs, properties } = about;
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

impl From<about::TensorMetadata> for TensorMetadata {
    fn from(about: about::TensorMetadata) -> Self {
        let about::TensorMetadata { name, datatype, shape } = about;
        Self { name, datatype: datatype.to_owned(), shape }
    }
}

impl From<about::ModelConfig> for pb::ModelConfig {
    fn from(about: about::ModelConfig) -> Self {
        let batching = about.dynamic_batching.map(|about| {
            pb::model_config::SchedulingChoice::DynamicBatching(pb::ModelDynamicBatching {
                max_queue_delay_microseconds: about.max_queue_delay_microseconds,
                priority_levels: about.priority_levels,
                default_priority_level: about.default_priority_level,
                ..Default::default()
            })
        });
        Self {
            name: about.name,
            platform: about.platform.to_owned(),
            max_batch_size: i32::try_from(about.max_batch_size).unwrap_or(i32::MAX),
            input: about.input.into_iter().map(Into::into).collect(),
            output: about.output.into_iter().map(Into::into).collect(),
            scheduling_choice: batching,
            backend: about.backend.to_owned(),
        }
    }
}

fn data_type(name: &str) -> i32 {
    pb::DataType::from_str_name(name).unwrap_or(pb::DataType::TypeInvalid).into()
}

impl From<about::ConfigInput> for pb::ModelInput {
    fn from(about: about::ConfigInput) -> Self {
        let about::ConfigInput { name, data_type, dims, optional } = about;
        Self { name, data_type: self::data_type(data_type), dims, optional }
    }
}

impl From<about::ConfigOutput> for pb::ModelOutput {
    fn from(about: about::ConfigOutput) -> Self {
        let about::ConfigOutput { name, data_type, dims } = about;
        Self { name, data_type: self::data_type(data_type), dims }
    }
}

impl From<about::Duration> for pb::StatisticDuration {
    fn from(about::Duration { count, ns }: about::Duration) -> Self {
        Self { count, ns }
    }
}

impl From<about::ModelStatistics> for pb::ModelStatistics {
    fn from(about: about::ModelStatistics) -> Self {
        let stats = about.inference_stats;
        let inference_stats = pb::InferStatistics {
            success: Some(stats.success.into()),
            fail: Some(stats.fail.into()),
            queue: Some(stats.queue.into()),
            compute_input: Some(stats.compute_input.into()),
            compute_infer: Some(stats.compute_infer.into()),
            compute_output: Some(stats.compute_output.into()),
        };
        let batches = about.batch_stats.into_iter().map(|batch| pb::InferBatchStatistics {
            batch_size: batch.batch_size,
            compute_input: Some(batch.compute_input.into()),
            compute_infer: Some(batch.compute_infer.into()),
            compute_output: Some(batch.compute_output.into()),
        });
        Self {
            name: about.name,
            version: about.version,
            last_inference: about.last_inference,
            inference_count: about.inference_count,
            execution_count: about.execution_count,
            inference_stats: Some(inference_stats),
            batch_stats: batches.collect(),
        }
    }
}

impl From<about::IndexEntry> for ModelIndex {
    fn from(about: about::IndexEntry) -> Self {
        let about::IndexEntry { name, version, state, reason } = about;
        Self { name, version, state: state.to_owned(), reason }
    }
}
