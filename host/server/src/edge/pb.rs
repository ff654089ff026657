//! The messages and the service of `proto/inference.proto`.

mod codec;

pub(crate) use self::codec::{Codec, POOL, RequestMessage, count};
pub(crate) use self::generated::*;

/// The code that the build script generates.
mod generated {
    #![expect(
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; the file has the documentation"
    )]

    tonic::include_proto!("inference");
}

macro_rules! request_messages {
    ($($name:ident)*) => {
        $(impl RequestMessage for generated::$name {
            const NAME: &'static str = concat!("inference.", stringify!($name));
        })*
    };
}

request_messages! {
    ServerLiveRequest ServerReadyRequest ModelReadyRequest ServerMetadataRequest ModelMetadataRequest
    ModelInferRequest ModelConfigRequest ModelStatisticsRequest RepositoryIndexRequest
    RepositoryModelLoadRequest RepositoryModelUnloadRequest
}
