//! The bindings that wasmtime makes of `wit/model.wit`, except of the interface `arithmetic`, which
//! is linked by hand.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::too_many_arguments,
    clippy::too_many_lines,
    reason = "generated code"
)]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "basic",
    imports: { default: trappable },
    // Inputs are lowered from where they are.
    ownership: Borrowing { duplicate_if_necessary: true },
});

pub use {Basic as Model, BasicPre as ModelPre};
