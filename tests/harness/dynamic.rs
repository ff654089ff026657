//! A gRPC client that knows nothing about a server except what server reflection returns.

use std::net::SocketAddr;

use prost::Message as _;
use prost::bytes::{Buf, BufMut};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, Value};
use tokio_stream::StreamExt as _;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ErrorResponse, ServerReflectionRequest};

/// A connection to a server, with an API key.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    key: String,
}

/// A service as server reflection describes it.
#[derive(Clone, Debug)]
pub struct Service {
    /// The descriptors of the service and of all its messages.
    pub pool: DescriptorPool,
    name: String,
}

impl Client {
    /// Connects to a server. An empty key means that requests carry none.
    ///
    /// # Panics
    /// Nothing listens at the address.
    pub async fn connect(address: SocketAddr, key: &str) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).expect("an address");
        let channel = channel.connect().await.expect("the server listens");
        Self { channel, key: key.to_owned() }
    }

    /// The names of all services that the key may see.
    ///
    /// # Panics
    /// Reflection fails.
    pub async fn services(&self) -> Vec<String> {
        let answer = self.reflect(MessageRequest::ListServices(String::new())).await;
        match answer.expect("reflection is served") {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|service| service.name).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Looks up a service by its full name.
    ///
    /// # Errors
    /// The error that reflection returns.
    ///
    /// # Panics
    /// The response of reflection is of another kind, or its descriptors are inconsistent.
    pub async fn service(&self, name: &str) -> Result<Service, ErrorResponse> {
        let query = MessageRequest::FileContainingSymbol(name.to_owned());
        let files = match self.reflect(query).await.expect("reflection is served") {
            MessageResponse::FileDescriptorResponse(files) => files.file_descriptor_proto,
            MessageResponse::ErrorResponse(error) => return Err(error),
            other => panic!("{other:?}"),
        };
        let mut pool = DescriptorPool::new();
        for file in files {
            pool.decode_file_descriptor_proto(&file[..]).expect("the descriptor is valid");
        }
        Ok(Service { pool, name: name.to_owned() })
    }

    async fn reflect(&self, query: MessageRequest) -> Result<MessageResponse, Status> {
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(query) };
        let request = self.with_key(Request::new(tokio_stream::once(request)));
        let mut answers = client.server_reflection_info(request).await?.into_inner();
        let answer = answers.message().await?.expect("reflection responds");
        Ok(answer.message_response.expect("a response has a message"))
    }

    /// Makes a unary call.
    ///
    /// # Errors
    /// The status of a failed call.
    pub async fn unary(
        &self,
        method: &MethodDescriptor,
        message: DynamicMessage,
    ) -> Result<Response<DynamicMessage>, Status> {
        let path = path(method);
        self.raw(&path, Request::new(message.encode_to_vec()), method.output()).await
    }

    /// Sends raw bytes to a path and decodes the response as a message of type `output`.
    ///
    /// # Errors
    /// The status of a failed call.
    ///
    /// # Panics
    /// `path` is not a valid path.
    pub async fn raw(
        &self,
        path: &str,
        request: Request<Vec<u8>>,
        output: MessageDescriptor,
    ) -> Result<Response<DynamicMessage>, Status> {
        let mut grpc = self.ready().await;
        let path = PathAndQuery::try_from(path).expect("a path");
        grpc.unary(self.with_key(request), path, Dynamic(output)).await
    }

    /// Makes a bidirectional streaming call.
    ///
    /// # Errors
    /// The status of a call that fails before the first response.
    pub async fn streaming(
        &self,
        method: &MethodDescriptor,
        messages: impl tokio_stream::Stream<Item = DynamicMessage> + Send + 'static,
    ) -> Result<Streaming<DynamicMessage>, Status> {
        let mut grpc = self.ready().await;
        let request = Request::new(messages.map(|message| message.encode_to_vec()));
        let path = PathAndQuery::try_from(path(method)).expect("a path");
        let answers =
            grpc.streaming(self.with_key(request), path, Dynamic(method.output())).await?;
        Ok(answers.into_inner())
    }

    async fn ready(&self) -> Grpc<Channel> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.expect("the connection is open");
        grpc
    }

    fn with_key<T>(&self, mut request: Request<T>) -> Request<T> {
        if !self.key.is_empty() {
            let key = MetadataValue::try_from(&self.key).expect("a key is ASCII");
            request.metadata_mut().insert("x-api-key", key);
        }
        request
    }
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

impl Service {
    /// The descriptor of a method.
    ///
    /// # Panics
    /// The service has no method of that name.
    pub fn method(&self, name: &str) -> MethodDescriptor {
        let service =
            self.pool.get_service_by_name(&self.name).expect("the descriptors contain the service");
        service.methods().find(|method| method.name() == name).expect("the service has this method")
    }

    /// Builds the request message of a method with these fields set.
    ///
    /// # Panics
    /// The message has no such field, or the value has the wrong type.
    pub fn request(&self, method: &str, fields: &[(&str, Value)]) -> DynamicMessage {
        let mut message = DynamicMessage::new(self.method(method).input());
        for (name, value) in fields {
            message.try_set_field_by_name(name, value.clone()).expect("the message has this field");
        }
        message
    }
}

/// Encodes requests as raw bytes and decodes responses as messages of the given type.
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = Vec<u8>;
    type Decode = DynamicMessage;
    type Encoder = Plain;
    type Decoder = Self;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

/// Encodes bytes unchanged.
struct Plain;

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let message = DynamicMessage::decode(self.0.clone(), bytes);
        message.map(Some).map_err(|error| Status::data_loss(error.to_string()))
    }
}
