//! A client of the host's gRPC services, made from the file that the host makes its own from.

#![allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the file says what is what"
)]

tonic::include_proto!("inference");
