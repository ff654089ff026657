//! `inference.GRPCInferenceService`, but for its predictions, which are in `oip`.

use tonic::{Request, Response, Status};

use super::call::Call;
use super::pb::grpc_inference_service_server::GrpcInferenceService;
use super::serving::Serving;
use super::{describe, pb};
use crate::edge::Edge;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::model_info::{self as about, Asker};
use crate::edge::pages::{Content, Key, Kind, Page, Scope};

impl Serving {
    /// Answer a question about models.
    fn about<Q, A>(
        &self,
        request: Request<Q>,
        answer: impl FnOnce(&mut Asker<'_>, Q) -> Result<A, ApiError>,
    ) -> Result<Response<A>, Status> {
        let call = Call::of(request.extensions())?;
        let mut work = call.work();
        let (edge, headers) = (&*self.edge, &call.headers);
        let mut asker = Asker { edge, headers, account: &mut work };
        let outcome = answer(&mut asker, request.into_inner());
        work.end(outcome)
    }
}

/// A message as a page.
fn message(message: &impl prost::Message) -> Content {
    Content { content_type: "application/grpc", bytes: message.encode_to_vec() }
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
        Ok(Response::new(pb::ServerReadyResponse { ready: about::is_ready(&self.edge) }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Result<Response<pb::ModelReadyResponse>, Status> {
        self.about(request, |asker, asked| {
            let ready = match asker.model_is_ready(&asked.name, &asked.version) {
                // As other servers of the protocol do: clients wait for models that are not there yet.
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
        let about::ServerMetadata { name, version, extensions } = about::server(&self.edge);
        let extensions = extensions.into_iter().map(str::to_owned).collect();
        let version = version.to_owned();
        Ok(Response::new(pb::ServerMetadataResponse { name, version, extensions }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Result<Response<pb::ModelMetadataResponse>, Status> {
        self.about(request, |asker, asked| {
            asker.metadata(&asked.name, &asked.version).map(Into::into)
        })
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Result<Response<pb::ModelConfigResponse>, Status> {
        self.about(request, |asker, asked| {
            let config = asker.config(&asked.name, &asked.version)?;
            Ok(pb::ModelConfigResponse { config: Some(config.into()) })
        })
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Result<Response<pb::ModelStatisticsResponse>, Status> {
        let call = Call::of(request.extensions())?;
        let (mut work, asked) = (call.work(), request.into_inner());
        let outcome = async {
            let (edge, headers) = (&self.edge, &call.headers);
            let mut asker = Asker { edge, headers, account: &mut work };
            if !asked.version.is_empty() {
                let statistics = asker.version_statistics(&asked.name, &asked.version)?;
                return Ok(pb::ModelStatisticsResponse { model_stats: vec![statistics.into()] });
            }
            let (model, scope) = if asked.name.is_empty() {
                (None, Scope::of(&*edge.admit_reader_of_all(headers, &mut work)?))
            } else {
                let name = asker.reader_of(&asked.name)?;
                (Some(name.clone()), Scope::only(&name))
            };
            let key = Key::plain(Kind::StatisticsMessage(model), scope);
            let make = |edge: &Edge, key: &Key| {
                let model_stats = about::statistics(edge, &key.scope);
                let model_stats = model_stats.into_iter().map(Into::into).collect();
                Ok(message(&pb::ModelStatisticsResponse { model_stats }))
            };
            decoded(&*edge.page(key, make).await?)
        };
        let outcome = outcome.await;
        work.end(outcome)
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Result<Response<pb::RepositoryIndexResponse>, Status> {
        let call = Call::of(request.extensions())?;
        let (mut work, only_ready) = (call.work(), request.into_inner().ready);
        let outcome = async {
            let (edge, headers) = (&self.edge, &call.headers);
            Asker { edge, headers, account: &mut work }.reader_of_index()?;
            let make = move |edge: &Edge, _: &Key| {
                let models = about::index(edge, only_ready).into_iter().map(Into::into).collect();
                Ok(message(&pb::RepositoryIndexResponse { models }))
            };
            let key = Key::plain(Kind::IndexMessage { only_ready }, Scope::All);
            decoded(&*edge.page(key, make).await?)
        };
        let outcome = outcome.await;
        work.end(outcome)
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Result<Response<pb::RepositoryModelLoadResponse>, Status> {
        let call = Call::of(request.extensions())?;
        let (mut work, asked) = (call.work(), request.into_inner());
        let outcome = async {
            let parameters = describe::repository_parameters(asked.parameters)?;
            let (edge, headers) = (&*self.edge, &call.headers);
            let mut asker = Asker { edge, headers, account: &mut work };
            asker.load(&asked.model_name, &parameters).await
        };
        let outcome = outcome.await;
        work.end(outcome.map(|()| pb::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Result<Response<pb::RepositoryModelUnloadResponse>, Status> {
        let call = Call::of(request.extensions())?;
        let (mut work, asked) = (call.work(), request.into_inner());
        let outcome = async {
            let parameters = describe::repository_parameters(asked.parameters)?;
            let (edge, headers) = (&*self.edge, &call.headers);
            let mut asker = Asker { edge, headers, account: &mut work };
            asker.unload(&asked.model_name, &parameters).await
        };
        let outcome = outcome.await;
        work.end(outcome.map(|()| pb::RepositoryModelUnloadResponse {}))
    }
}
