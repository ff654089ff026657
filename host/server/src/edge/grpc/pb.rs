//! The messages and the service of `proto/inference.proto`.

#![expect(
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated; the file says what is what"
)]

tonic::include_proto!("inference");
