//! The bindings that wit-bindgen generates from `wit/model.wit`. Guests do not use them directly.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    clippy::too_many_arguments,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

wit_bindgen::generate!({
    path: "../../wit",
    world: "model",
    pub_export_macro: true,
    export_macro_name: "export_component",
    generate_unused_types: true,
});
