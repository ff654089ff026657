//! The messages and the service of `proto/inference.proto`.

#![expect(unreachable_pub, clippy::all, reason = "generated; the file says what is what")]

tonic::include_proto!("inference");
