//! The gRPC methods that do not depend on the models, and which key each of them requires.

use std::sync::Arc;

/// The key that a method requires. Methods that name a model check the key's scope for it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequiredKey {
    /// None: the method is for load balancers.
    None,
    /// A key with a scope for some model.
    AnyModel,
    /// A key with the scope `admin`.
    Admin,
}

/// A gRPC method.
#[derive(Debug, Clone)]
pub(super) struct Method {
    /// The path of the method, or its pattern: for logs and metrics.
    pub(super) path: Arc<str>,
    pub(super) required_key: RequiredKey,
    /// Whether requests or responses are streams.
    pub(super) is_stream: bool,
}

impl Method {
    /// The method at this path, if it is one of [`METHODS`].
    pub(super) fn find(path: &str) -> Option<Self> {
        let found = METHODS.iter().find(|(known, ..)| *known == path);
        found.map(|(path, required_key, is_stream)| Self {
            path: Arc::from(*path),
            required_key: *required_key,
            is_stream: *is_stream,
        })
    }
}

/// Paths, required keys, and whether the methods are streams. Whatever tells names of models requires a key.
const METHODS: [(&str, RequiredKey, bool); 16] = [
    ("/inference.GRPCInferenceService/ModelInfer", RequiredKey::AnyModel, false),
    ("/inference.GRPCInferenceService/ModelStreamInfer", RequiredKey::AnyModel, true),
    ("/inference.GRPCInferenceService/ServerLive", RequiredKey::None, false),
    ("/inference.GRPCInferenceService/ServerReady", RequiredKey::None, false),
    ("/inference.GRPCInferenceService/ServerMetadata", RequiredKey::None, false),
    ("/inference.GRPCInferenceService/ModelReady", RequiredKey::AnyModel, false),
    ("/inference.GRPCInferenceService/ModelMetadata", RequiredKey::AnyModel, false),
    ("/inference.GRPCInferenceService/ModelConfig", RequiredKey::AnyModel, false),
    ("/inference.GRPCInferenceService/ModelStatistics", RequiredKey::AnyModel, false),
    ("/inference.GRPCInferenceService/RepositoryIndex", RequiredKey::Admin, false),
    ("/inference.GRPCInferenceService/RepositoryModelLoad", RequiredKey::Admin, false),
    ("/inference.GRPCInferenceService/RepositoryModelUnload", RequiredKey::Admin, false),
    ("/grpc.health.v1.Health/Check", RequiredKey::None, false),
    ("/grpc.health.v1.Health/Watch", RequiredKey::None, true),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", RequiredKey::AnyModel, true),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", RequiredKey::AnyModel, true),
];
