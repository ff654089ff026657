//! Tests at the process boundary. This is their table of contents: each module is one promise.
#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected fails")]

/// What fails by accident is tried again, and what is wrong with an artifact is not.
mod accidents;
/// Whatever a file holds, it is refused with a reason and stops nothing else.
mod bad_artifacts;
/// Whatever a caller sends, it gets an answer that says what is wrong.
mod bad_requests;
/// Requests that meet in a batch get what they would get alone.
mod batching;
/// Compressed bodies, forms and plain bytes are what they stand for, within the same limits.
mod bodies;
/// Whatever one caller sends, others keep the model.
mod callers;
/// What callers send is kept where an operator wants it, and nowhere else.
mod captures;
/// Answers about many models are made once, shown to nobody else and never older than the last change.
mod catalogues;
/// The configuration is checked before it holds, and can be read again.
mod configuration;
/// Callers that connect and say nothing take nothing from others, nor from the stop.
mod connections;
/// What can be asked is described, as schemas and as OpenAPI.
mod description;
/// The book has no broken link, and its commands do what it shows.
mod documentation;
/// What is replaced ends with its last request, and can be had back.
mod draining;
/// An acknowledged change is there after any crash, and a full disk changes nothing.
mod durability;
/// What clients are promised: endpoints, forms, headers, the split.
mod endpoints;
/// Every entry into a guest ends at a deadline or with its caller, and means the same wherever it runs.
mod entries;
/// A guest that misbehaves costs its own request and nothing else.
mod faults;
/// What is put into the repository folder is deployed, and nothing else of it changes anything.
mod folder;
/// gRPC asks the same models, with the same keys, and is told the same errors.
mod grpc;
/// Messages of gRPC take no more memory or time than they may, however they come.
mod grpc_limits;
/// Streams of gRPC keep their order, go on after errors, and end when they must.
mod grpc_streams;
/// Tensors of gRPC are what they were, and what is none is refused.
mod grpc_tensors;
/// Clients of HTTP/1.1 are answered however they end, wait, or hold their bodies back.
mod http1;
/// HTTP/2 is served like HTTP/1.1, and costs no more to refuse.
mod http2;
/// A prediction that is asked for again is answered once.
mod idempotency;
/// Modules do not import each other in a circle, and libraries belong to one crate.
mod imports;
/// Requests are kept apart as strictly as the operator asks, and end when they must.
mod isolation;
/// Who has a key may do what it is good for, until it is taken back.
mod keys;
/// A large artifact takes no memory of the server.
mod large_artifacts;
/// What can be loaded is loaded at once, whatever is compiled meanwhile, and nothing else is routed to.
mod loading;
/// One line a request, and nothing of what callers sent.
mod logs;
/// What the state folder lost is noticed, and nothing that was taken back comes back.
mod losses;
/// What is measured is what has happened, and ends with the version it is about.
mod meeting;
mod metrics;
/// A server without its repository folder serves what was deployed, and finds it again.
mod missing_folder;
/// Clients of the Open Inference Protocol are answered as it says, and refused what it has no sense for.
mod oip;
/// Operators deploy, split, promote and go back, and what is wrong is refused.
mod operations;
/// The commands that operate a server say what went wrong, to people and by their exit code.
mod operations_cli;
/// Scores are scikit-learn's, on texts that nobody here scored.
mod oracle;
/// Too many requests are told so at once, the least urgent first.
mod overload;
/// What the examples for operators say of the server is so.
mod packaging;
/// Web pages may ask where the operator says so, and are told nothing elsewhere.
mod pages;
/// A batch that asks for it gets what there is, row by row.
mod partial;
/// Pictures are judged as RapidOCR judges them, and what is none is refused.
mod pictures;
/// Predictions keep the same promises over each of the four protocols.
mod protocols;
/// Nobody asks more often than the operator lets them.
mod rates;
/// What is compiled once is found again, and only what this host wrote is loaded.
mod restart;
/// A server that is told to stop loses no request, and waits for none for ever.
mod shutdown;
/// What is asked of models that do next to nothing is what they answer, whatever its type.
mod small_guests;
/// What cannot be snapshot after `init` is said to be so, and works all the same.
mod snapshots;
/// The architecture holds: who may know what, and every module says what it is for.
mod tidy;
/// Clients are served over TLS, and certificates are renewed without a stop.
mod tls;
/// Requests can be followed from caller to collector, and a collector that is not there harms nobody.
mod traces;
/// Each model is a gRPC service of its own, whose fields stay where they are while versions come and go.
mod typed;
