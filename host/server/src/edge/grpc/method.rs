//! The methods that there are.

use std::sync::Arc;

/// What a caller needs for a method. Each model is looked at again, where a message names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: what balancers ask.
    Nothing,
    /// A key that is good for some model.
    Key,
    /// A key that is good for changing what is served.
    Admin,
}

/// A method.
#[derive(Debug, Clone)]
pub(crate) struct Method {
    /// As callers write it.
    pub(crate) path: Arc<str>,
    pub(crate) needs: Needs,
    /// Whether messages come or go for as long as somebody likes.
    pub(crate) is_stream: bool,
}

impl Method {
    /// The method of that path, among those that do not depend on what is served.
    pub(super) fn find(path: &str) -> Option<Self> {
        let found = METHODS.iter().find(|(known, ..)| *known == path);
        found.map(|(path, needs, is_stream)| Self {
            path: Arc::from(*path),
            needs: *needs,
            is_stream: *is_stream,
        })
    }
}

/// Their paths, what they need, and whether they are streams. What names models needs a key, because
/// names say something too.
const METHODS: [(&str, Needs, bool); 16] = [
    ("/inference.GRPCInferenceService/ModelInfer", Needs::Key, false),
    ("/inference.GRPCInferenceService/ModelStreamInfer", Needs::Key, true),
    ("/inference.GRPCInferenceService/ServerLive", Needs::Nothing, false),
    ("/inference.GRPCInferenceService/ServerReady", Needs::Nothing, false),
    ("/inference.GRPCInferenceService/ServerMetadata", Needs::Nothing, false),
    ("/inference.GRPCInferenceService/ModelReady", Needs::Key, false),
    ("/inference.GRPCInferenceService/ModelMetadata", Needs::Key, false),
    ("/inference.GRPCInferenceService/ModelConfig", Needs::Key, false),
    ("/inference.GRPCInferenceService/ModelStatistics", Needs::Key, false),
    ("/inference.GRPCInferenceService/RepositoryIndex", Needs::Admin, false),
    ("/inference.GRPCInferenceService/RepositoryModelLoad", Needs::Admin, false),
    ("/inference.GRPCInferenceService/RepositoryModelUnload", Needs::Admin, false),
    ("/grpc.health.v1.Health/Check", Needs::Nothing, false),
    ("/grpc.health.v1.Health/Watch", Needs::Nothing, true),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Needs::Key, true),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Needs::Key, true),
];
