//! `grpc.reflection.v1.ServerReflection` and its older version: the services and their types.
//!
//! The services of models come and go with them. A caller sees those of the models that its key is good for.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use prost::Message as _;
use prost::bytes::Bytes;
use prost_reflect::{DescriptorPool, FileDescriptor};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::{v1, v1alpha};

use super::call::Call;
use super::model_methods;
use super::oip_stream::MessageStream;
use super::serving::Serving;
use crate::edge::error::ApiError;
use crate::edge::pages::{GrpcTypes, ModelScope};
use crate::edge::pb::POOL;
use crate::edge::state::Edge;

/// The types of the services that do not depend on what is served.
static OWN: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = POOL.clone();
    for files in [
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        v1::FILE_DESCRIPTOR_SET,
        v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        pool.decode_file_descriptor_set(files).expect("libraries describe themselves well");
    }
    pool
});

/// The memory that a type takes, in multiples of its encoded description.
const MEMORY_FACTOR: usize = 8;

/// A request of any version of the protocol.
enum ReflectionRequest {
    File(String),
    Symbol(String),
    Extension,
    Extensions(String),
    Services,
    Nothing,
}

/// A response of any version of the protocol.
enum ReflectionResponse {
    File(Bytes),
    Extensions(String),
    Services(Vec<String>),
    Error(Code, &'static str),
}

fn file(file: Option<FileDescriptor>) -> ReflectionResponse {
    match file {
        Some(file) => ReflectionResponse::File(file.file_descriptor_proto().encode_to_vec().into()),
        None => ReflectionResponse::Error(Code::NotFound, "there is no such name"),
    }
}

/// The file that describes a service, a method, a message, an enumeration or a field of a message.
fn symbol(pool: &DescriptorPool, name: &str) -> Option<FileDescriptor> {
    let whole = |name: &str| {
        let service = pool.get_service_by_name(name).map(|service| service.parent_file());
        let message = || pool.get_message_by_name(name).map(|message| message.parent_file());
        let of_enum = || pool.get_enum_by_name(name).map(|of_enum| of_enum.parent_file());
        service.or_else(message).or_else(of_enum)
    };
    let part = || {
        let (outer, inner) = name.rsplit_once('.')?;
        let service = pool.get_service_by_name(outer);
        let has_method = service.is_some_and(|it| it.methods().any(|it| it.name() == inner));
        let message = pool.get_message_by_name(outer);
        let has_field = message.is_some_and(|it| it.get_field_by_name(inner).is_some());
        (has_method || has_field).then(|| whole(outer)).flatten()
    };
    whole(name).or_else(part)
}

/// The types of the services of the models in the scope.
fn types(edge: &Edge, scope: &ModelScope) -> GrpcTypes {
    let (mut pool, mut bytes) = (OWN.clone(), 0);
    for file in model_methods::file_descriptors(edge, scope) {
        bytes += file.encoded_len() * MEMORY_FACTOR;
        // Not expected: no two models have the same service.
        if let Err(error) = pool.add_file_descriptor_proto(file) {
            tracing::error!(%error, "a model's service cannot be described");
        }
    }
    GrpcTypes { pool, bytes }
}

async fn answer(
    serving: &Serving,
    call: &Arc<Call>,
    request: ReflectionRequest,
) -> Result<ReflectionResponse, ApiError> {
    let edge = &serving.edge;
    // For each request, because a key can be revoked while the stream is open.
    let caller = edge.admit_reader_of_all(&call.headers, &mut call.log_guard())?;
    let types = edge.types(ModelScope::from_caller(&caller), types).await?;
    let pool = &types.pool;
    Ok(match request {
        ReflectionRequest::File(name) => file(pool.get_file_by_name(&name)),
        ReflectionRequest::Symbol(name) => file(symbol(pool, name.trim_start_matches('.'))),
        ReflectionRequest::Extension => {
            ReflectionResponse::Error(Code::NotFound, "there are no extensions")
        }
        ReflectionRequest::Extensions(name) => match pool.get_message_by_name(&name) {
            Some(_) => ReflectionResponse::Extensions(name),
            None => ReflectionResponse::Error(Code::NotFound, "there is no such type"),
        },
        ReflectionRequest::Services => ReflectionResponse::Services(
            pool.services().map(|it| it.full_name().to_owned()).collect(),
        ),
        ReflectionRequest::Nothing => {
            ReflectionResponse::Error(Code::InvalidArgument, "the request is empty")
        }
    })
}

macro_rules! reflection {
    ($version:ident) => {
        impl From<$version::ServerReflectionRequest> for ReflectionRequest {
            fn from(request: $version::ServerReflectionRequest) -> Self {
                use $version::server_reflection_request::MessageRequest;
                match request.message_request {
                    Some(MessageRequest::FileByFilename(name)) => Self::File(name),
                    Some(MessageRequest::FileContainingSymbol(name)) => Self::Symbol(name),
                    Some(MessageRequest::FileContainingExtension(_)) => Self::Extension,
                    Some(MessageRequest::AllExtensionNumbersOfType(name)) => Self::Extensions(name),
                    Some(MessageRequest::ListServices(_)) => Self::Services,
                    None => Self::Nothing,
                }
            }
        }

        impl From<ReflectionResponse> for $version::server_reflection_response::MessageResponse {
            fn from(answer: ReflectionResponse) -> Self {
                match answer {
                    ReflectionResponse::File(file) => {
                        let file_descriptor_proto = vec![file.into()];
                        let file = $version::FileDescriptorResponse { file_descriptor_proto };
                        Self::FileDescriptorResponse(file)
                    }
                    ReflectionResponse::Extensions(base_type_name) => {
                        let extension_number = Vec::new();
                        Self::AllExtensionNumbersResponse($version::ExtensionNumberResponse {
                            base_type_name,
                            extension_number,
                        })
                    }
                    ReflectionResponse::Services(names) => {
                        let service =
                            names.into_iter().map(|name| $version::ServiceResponse { name });
                        let service = service.collect();
                        Self::ListServicesResponse($version::ListServiceResponse { service })
                    }
                    ReflectionResponse::Error(code, message) => {
                        Self::ErrorResponse($version::ErrorResponse {
                            error_code: code.into(),
                            error_message: message.to_owned(),
                        })
                    }
                }
            }
        }

        #[tonic::async_trait]
        impl $version::server_reflection_server::ServerReflection for Serving {
            type ServerReflectionInfoStream = Pin<
                Box<dyn Stream<Item = Result<$version::ServerReflectionResponse, Status>> + Send>,
            >;

            async fn server_reflection_info(
                &self,
                request: Request<Streaming<$version::ServerReflectionRequest>>,
            ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                let call = Call::from_extensions(request.extensions())?;
                let serving = self.clone();
                let messages = MessageStream::new(self, &call, request.into_inner());
                let answers = messages.then(move |asked| {
                    let (serving, call) = (serving.clone(), Arc::clone(&call));
                    async move {
                        let asked = asked?;
                        let answered = async {
                            let _permit = call.take_permit(asked.encoded_len())?;
                            answer(&serving, &call, asked.clone().into()).await
                        };
                        let answered = answered.await.map_err(|error| call.fail(&error))?;
                        Ok($version::ServerReflectionResponse {
                            valid_host: asked.host.clone(),
                            original_request: Some(asked),
                            message_response: Some(answered.into()),
                        })
                    }
                });
                Ok(Response::new(Box::pin(answers)))
            }
        }
    };
}

reflection!(v1);
reflection!(v1alpha);
