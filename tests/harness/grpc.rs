//! A client of the Open Inference Protocol over gRPC, generated from the host's `.proto` file.

#![allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the file says what is what"
)]

tonic::include_proto!("inference");
