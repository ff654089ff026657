//! `grpc.reflection.v1.ServerReflection` and its older name: which services there are, and their types.
//!
//! Answered from what is there when it is asked: services that are made from models come and go with
//! them. Who may not ask a model is not told of it.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use prost::Message as _;
use prost::bytes::Bytes;
use prost_reflect::{DescriptorPool, FileDescriptor};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::{v1, v1alpha};

use super::call::Call;
use super::codec::POOL;
use super::serving::Serving;
use super::signature;
use super::stream::Messages;
use crate::edge::Edge;
use crate::edge::error::ApiError;
use crate::edge::pages::{Scope, Types};

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

/// How much memory a type takes, for each byte of its description.
const MEMORY_FACTOR: usize = 8;

/// What is asked.
enum Question {
    File(String),
    Symbol(String),
    Extension,
    Extensions(String),
    Services,
    Nothing,
}

/// What is answered.
enum Answer {
    File(Bytes),
    Extensions(String),
    Services(Vec<String>),
    Error(Code, &'static str),
}

fn file(file: Option<FileDescriptor>) -> Answer {
    match file {
        Some(file) => Answer::File(file.file_descriptor_proto().encode_to_vec().into()),
        None => Answer::Error(Code::NotFound, "there is no such name"),
    }
}

/// Where a service, a method, a message, an enumeration or a field of a message is described.
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
fn types(edge: &Edge, scope: &Scope) -> Types {
    let (mut pool, mut bytes) = (OWN.clone(), 0);
    for file in signature::files(edge, scope) {
        bytes += file.encoded_len() * MEMORY_FACTOR;
        // Two models cannot have the same service, so what does not fit is not there.
        if let Err(error) = pool.add_file_descriptor_proto(file) {
            tracing::error!(%error, "a model's service cannot be described");
        }
    }
    Types { pool, bytes }
}

async fn answer(
    serving: &Serving,
    call: &Arc<Call>,
    question: Question,
) -> Result<Answer, ApiError> {
    let edge = &serving.edge;
    let mut work = call.work();
    // A key can be taken back while the stream is open.
    let caller = edge.admit_reader_of_all(&call.headers, &mut work)?;
    drop(work);
    let types = edge.types(Scope::of(&caller), types).await?;
    let pool = &types.pool;
    Ok(match question {
        Question::File(name) => file(pool.get_file_by_name(&name)),
        Question::Symbol(name) => file(symbol(pool, name.trim_start_matches('.'))),
        Question::Extension => Answer::Error(Code::NotFound, "there are no extensions"),
        Question::Extensions(name) => match pool.get_message_by_name(&name) {
            Some(_) => Answer::Extensions(name),
            None => Answer::Error(Code::NotFound, "there is no such type"),
        },
        Question::Services => {
            Answer::Services(pool.services().map(|it| it.full_name().to_owned()).collect())
        }
        Question::Nothing => Answer::Error(Code::InvalidArgument, "nothing is asked"),
    })
}

macro_rules! reflection {
    ($version:ident) => {
        impl From<$version::ServerReflectionRequest> for Question {
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

        impl From<Answer> for $version::server_reflection_response::MessageResponse {
            fn from(answer: Answer) -> Self {
                match answer {
                    Answer::File(file) => {
                        let file_descriptor_proto = vec![file.into()];
                        let file = $version::FileDescriptorResponse { file_descriptor_proto };
                        Self::FileDescriptorResponse(file)
                    }
                    Answer::Extensions(base_type_name) => {
                        let extension_number = Vec::new();
                        Self::AllExtensionNumbersResponse($version::ExtensionNumberResponse {
                            base_type_name,
                            extension_number,
                        })
                    }
                    Answer::Services(names) => {
                        let service =
                            names.into_iter().map(|name| $version::ServiceResponse { name });
                        let service = service.collect();
                        Self::ListServicesResponse($version::ListServiceResponse { service })
                    }
                    Answer::Error(code, message) => Self::ErrorResponse($version::ErrorResponse {
                        error_code: code.into(),
                        error_message: message.to_owned(),
                    }),
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
                let call = Call::of(request.extensions())?;
                let serving = self.clone();
                let messages = Messages::new(self, &call, request.into_inner());
                let answers = messages.then(move |asked| {
                    let (serving, call) = (serving.clone(), Arc::clone(&call));
                    async move {
                        let asked = asked?;
                        let answered = async {
                            let _held = call.take_message(asked.encoded_len())?;
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
