//! Tests at the process boundary: real servers, real guests, real sockets. This file is the table
//! of contents; each module states one promise.
#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected fails")]

/// The host computes for guests that ask for it and may, and is not harmed by what they ask.
mod arithmetic;
/// A file that is not a valid artifact is rejected with a reason and affects nothing else.
mod bad_artifacts;
/// Every malformed request gets a response that says what is wrong.
mod bad_requests;
/// Requests that share a batch get the same responses as alone.
mod batching;
/// Requests are captured where the operator asks for it, and nowhere else.
mod captures;
/// Cached pages about many models respect scopes and are never older than the last change.
mod catalogue;
/// The configuration is validated before it applies, and can be reloaded.
mod configuration;
/// Idle connections neither block other callers nor delay the shutdown.
mod connections;
/// Artifacts of every published contract load, predict and are compared by the same rules.
mod contract_versions;
/// Every way to deploy an artifact goes through the same steps.
mod deployments;
/// Every endpoint is described by schemas and by OpenAPI.
mod description;
/// The book has no broken link, and its commands do what it shows.
mod documentation;
/// A replaced version drains, and can be rolled back to.
mod draining;
/// An acknowledged change survives any crash, and a full disk changes nothing.
mod durability;
/// A program that embeds the runtime gets the same outputs as a client of the server.
mod embedding;
/// The public endpoints: versions, headers, request ids and the traffic split.
mod endpoints;
/// Every entry point into a guest is interrupted at the deadline or when the caller disconnects.
mod entry_points;
/// A failing caller does not take a model from other callers.
mod failing_callers;
/// A guest that faults fails its own request and nothing else.
mod faults;
/// The test models return exactly what was sent, in every datatype.
mod fixture_models;
/// gRPC serves the same models with the same keys and the same errors.
mod grpc;
/// gRPC messages stay within limits of memory and time.
mod grpc_limits;
/// gRPC streams keep their order, survive errors, and end when they must.
mod grpc_streams;
/// gRPC tensors round-trip, and malformed ones are rejected.
mod grpc_tensors;
/// Tests have short names, and wait for conditions instead of sleeping.
mod house_style;
/// HTTP/1.1 clients that half-close, wait or withhold bodies are handled.
mod http1;
/// HTTP/2 is served like HTTP/1.1, including rejections and limits.
mod http2;
/// A prediction that is retried with its idempotency key is computed once.
mod idempotency;
/// The image model agrees with RapidOCR and rejects invalid images.
mod image_model;
/// Modules do not import each other in a circle, and libraries belong to one crate.
mod imports;
/// Guests that cannot be snapshotted after `init` are reported and served.
mod init_snapshots;
/// Isolation between requests follows the configuration, and limits are enforced.
mod isolation;
/// API keys grant their scopes until they expire or are revoked.
mod keys;
/// Large artifacts are not loaded into the server's memory.
mod large_artifacts;
/// A damaged or lost ledger is detected, and nothing that was revoked returns.
mod ledger_loss;
/// Loading does not wait for unrelated compilations, and traffic goes only to loaded versions.
mod loading;
/// Each request is one log line, and the log contains nothing that callers sent.
mod logs;
/// Metrics count what happened, and disappear with their version.
mod metrics;
/// A server without its repository folder serves deployed versions and picks the folder up later.
mod missing_repository;
/// Random mixes of requests get the same responses in batches as alone.
mod mixed_batches;
/// Each model has its own gRPC service, whose fields stay compatible across versions.
mod model_grpc;
/// The Open Inference Protocol over REST.
mod oip;
/// Packing ONNX files without a manifest.
mod onnx_files;
/// Packing ONNX files with a manifest of fields, preprocessing and postprocessing.
mod onnx_manifests;
/// Operators deploy, split, promote and roll back; invalid changes are rejected.
mod operations;
/// The operators' commands report errors as text and by their exit codes.
mod operator_commands;
/// Overload is rejected at once, the least important requests first.
mod overload;
/// The examples for operators match the server.
mod packaging;
/// A batch with `partial=true` succeeds and fails row by row.
mod partial_batches;
/// `guesthouse predict` predicts with an artifact or a server, and retries while a server is busy.
mod predicting;
/// Predictions keep the same promises over each of the four protocols.
mod protocols;
/// Rate limits of keys and models.
mod rates;
/// The program prints its own reference, and the admin API describes itself.
mod reference;
/// Scores equal scikit-learn's on texts that were not used for training.
mod reference_scores;
/// Files in the repository folder are deployed, and nothing else in it has an effect.
mod repository_folder;
/// Compressed bodies, multipart forms and raw bytes are equivalent to JSON, within the same limits.
mod request_bodies;
/// Compiled code is reused after a restart, and only code that this host wrote is loaded.
mod restart;
/// The service manager learns when the server is ready, reloads, stops, and that it is alive.
mod service_manager;
/// Versions of one guest share its compiled code.
mod shared_code;
/// A stopping server completes its requests, and stops in bounded time.
mod shutdown;
/// The rules of the architecture and of the documentation.
mod tidy;
/// TLS, and certificates that are renewed without a restart.
mod tls;
/// Traces and their propagation; an unreachable collector has no effect on requests.
mod traces;
/// Transient failures are retried; a broken artifact is not.
mod transient_failures;
/// `guesthouse verify` finds what differs, under every policy.
mod verifying;
/// CORS and the documentation page.
mod web_pages;
