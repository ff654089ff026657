//! `inference.GRPCInferenceService` except for predictions, which are in [`super::oip_predict`] and
//! [`super::oip_stream`].

use tonic::{Request, Response, Status};

use super::call::Call;
use super::model_messages;
use super::serving::Serving;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::model_info::{self, InfoRequest};
use crate::edge::pages::{ModelScope, Page, PageContent, PageKey, PageKind};
use crate::edge::pb;
use crate::edge::pb::grpc_inference_service_server::GrpcInferenceService;
use crate::edge::state::Edge;

impl Serving {
    /// Answer a request for information about models.
    fn inform<Q, A>(
        &self,
        request: Request<Q>,
        answer: impl FnOnce(&mut InfoRequest<'_>, Q) -> Result<A, ApiError>,
    ) -> Result<Response<A>, Status> {
        let call = Call::from_extensions(request.extensions())?;
        let mut log = call.log_guard();
        let (edge, headers) = (&*self.edge, &call.headers);
        let mut info = InfoRequest { edge, headers, log: &mut log };
        let outcome = answer(&mut info, request.into_inner());
        log.respond(outcome)
    }
}

/// A message as a page.
fn content(message: &impl prost::Message) -> PageContent {
    PageContent { content_type: "application/grpc", bytes: message.encode_to_vec() }
}

fn decoded<M: prost::Message + Default>(page: &Page) -> Result<M, ApiError> {
    M::decode(page.bytes().clone()).map_err(|_error| ApiError::internal())
}

#[tonic::async_trait]
impl GrpcInferenceService for Serving {
    async fn server_live(
        &self,
        _request: Request<pb::ServerLiveRequest>,
    ) -> Result<Response<pb::ServerLiveResponse>, Status> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _request: Request<pb::ServerReadyRequest>,
    ) -> Result<Response<pb::ServerReadyResponse>, Status> {
        Ok(Response::new(pb::ServerReadyResponse { ready: model_info::is_ready(&self.edge) }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Result<Response<pb::ModelReadyResponse>, Status> {
        self.inform(request, |info, message| {
            let ready = match info.model_is_ready(&message.name, &message.version) {
                // As in other servers of the protocol: clients wait for models that do not exist yet.
                Err(error) if error.code == ErrorCode::NotFound => false,
                outcome => outcome?,
            };
            Ok(pb::ModelReadyResponse { ready })
        })
    }

    async fn server_metadata(
        &self,
        _request: Request<pb::ServerMetadataRequest>,
    ) -> Result<Response<pb::ServerMetadataResponse>, Status> {
        let model_info::ServerMetadata { name, version, extensions } =
            model_info::server(&self.edge);
        let extensions = extensions.into_iter().map(str::to_owned).collect();
        let version = version.to_owned();
        Ok(Response::new(pb::ServerMetadataResponse { name, version, extensions }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Result<Response<pb::ModelMetadataResponse>, Status> {
        self.inform(request, |info, message| {
            info.metadata(&message.name, &message.version).map(Into::into)
        })
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Result<Response<pb::ModelConfigResponse>, Status> {
        self.inform(request, |info, message| {
            let config = info.config(&message.name, &message.version)?;
            Ok(pb::ModelConfigResponse { config: Some(config.into()) })
        })
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Result<Response<pb::ModelStatisticsResponse>, Status> {
        let call = Call::from_extensions(request.extensions())?;
        let (mut log, message) = (call.log_guard(), request.into_inner());
        let outcome = async {
            let (edge, headers) = (&self.edge, &call.headers);
            let mut info = InfoRequest { edge, headers, log: &mut log };
            if !message.version.is_empty() {
                let statistics = info.version_statistics(&message.name, &message.version)?;
                return Ok(pb::ModelStatisticsResponse { model_stats: vec![statistics.into()] });
            }
            let (model, scope) = if message.name.is_empty() {
                (None, ModelScope::from_caller(&*edge.admit_reader_of_all(headers, &mut log)?))
            } else {
                let name = info.reader_of(&message.name)?;
                (Some(name.clone()), ModelScope::only(&name))
            };
            let key = PageKey::plain(PageKind::StatisticsMessage(model), scope);
            let make = |edge: &Edge, key: &PageKey| {
                let model_stats = model_info::statistics(edge, &key.scope);
                let model_stats = model_stats.into_iter().map(Into::into).collect();
                Ok(content(&pb::ModelStatisticsResponse { model_stats }))
            };
            decoded(&*edge.page(key, make).await?)
        };
        let outcome = outcome.await;
        log.respond(outcome)
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Result<Response<pb::RepositoryIndexResponse>, Status> {
        let call = Call::from_extensions(request.extensions())?;
        let (mut log, only_ready) = (call.log_guard(), request.into_inner().ready);
        let outcome = async {
            let (edge, headers) = (&self.edge, &call.headers);
            InfoRequest { edge, headers, log: &mut log }.reader_of_index()?;
            let make = move |edge: &Edge, _: &PageKey| {
                let models =
                    model_info::index(edge, only_ready).into_iter().map(Into::into).collect();
                Ok(content(&pb::RepositoryIndexResponse { models }))
            };
            let key = PageKey::plain(PageKind::IndexMessage { only_ready }, ModelScope::All);
            decoded(&*edge.page(key, make).await?)
        };
        let outcome = outcome.await;
        log.respond(outcome)
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Result<Response<pb::RepositoryModelLoadResponse>, Status> {
        let call = Call::from_extensions(request.extensions())?;
        let (mut log, message) = (call.log_guard(), request.into_inner());
        let outcome = async {
            let parameters = model_messages::repository_parameters(message.parameters)?;
            let (edge, headers) = (&*self.edge, &call.headers);
            let mut info = InfoRequest { edge, headers, log: &mut log };
            info.load(&message.model_name, &parameters).await
        };
        let outcome = outcome.await;
        log.respond(outcome.map(|()| pb::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Result<Response<pb::RepositoryModelUnloadResponse>, Status> {
        let call = Call::from_extensions(request.extensions())?;
        let (mut log, message) = (call.log_guard(), request.into_inner());
        let outcome = async {
            let parameters = model_messages::repository_parameters(message.parameters)?;
            let (edge, headers) = (&*self.edge, &call.headers);
            let mut info = InfoRequest { edge, headers, log: &mut log };
            info.unload(&message.model_name, &parameters).await
        };
        let outcome = outcome.await;
        log.respond(outcome.map(|()| pb::RepositoryModelUnloadResponse {}))
    }
}
