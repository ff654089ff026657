//! Builds the descriptor of a service: the complete content of its `.proto` file, including
//! comments.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::source_code_info::Location;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MethodDescriptorProto,
    OneofDescriptorProto, ServiceDescriptorProto, SourceCodeInfo,
};

use super::names::{
    self, BATCH_REQUEST, BATCH_RESPONSE, ERROR, REQUEST, RESPONSE, STREAM_RESPONSE,
};
use super::{CompatibleRange, FieldEncoding, MODEL_VERSION, MessageField, ModelService, Scalar};
use guesthouse_model::terminal;
use guesthouse_model::{Constraint, Field, ModelName, Signature};

pub(super) const MODEL_VERSION_NAME: &str = "model_version";

// Field numbers of descriptor messages, which form the paths of comments.
const SYNTAX: i32 = 12;
const MESSAGES: i32 = 4;
const SERVICES: i32 = 6;
const FIELDS: i32 = 2;
const METHODS: i32 = 2;

/// A message under construction, with the comments of its fields.
struct Message {
    descriptor: DescriptorProto,
    comment: String,
    field_comments: Vec<String>,
}

pub(super) fn file(
    service: &ModelService,
    model: &ModelName,
    class: CompatibleRange,
    signature: &Signature,
) -> FileDescriptorProto {
    let messages = messages(service, signature);
    let methods = methods(service);
    let segment = names::segment(model);
    let folder = service.package.replace('.', "/");
    let mut locations = vec![location(&[SYNTAX], &header(model, class))];
    for (index, message) in (0..).zip(&messages) {
        locations.push(location(&[MESSAGES, index], &message.comment));
        for (field, comment) in (0..).zip(&message.field_comments) {
            locations.push(location(&[MESSAGES, index, FIELDS, field], comment));
        }
    }
    locations.push(location(&[SERVICES, 0], &format!("Predictions of the model `{model}`.")));
    for (index, (_, comment)) in (0..).zip(&methods) {
        locations.push(location(&[SERVICES, 0, METHODS, index], comment));
    }
    locations.retain(|location| location.leading_comments.is_some());
    FileDescriptorProto {
        name: Some(format!("{folder}/{segment}.proto")),
        package: Some(service.package.clone()),
        message_type: messages.into_iter().map(|message| message.descriptor).collect(),
        service: vec![ServiceDescriptorProto {
            name: Some(service.name.clone()),
            method: methods.into_iter().map(|(method, _)| method).collect(),
            ..ServiceDescriptorProto::default()
        }],
        source_code_info: Some(SourceCodeInfo { location: locations }),
        syntax: Some("proto3".to_owned()),
        ..FileDescriptorProto::default()
    }
}

fn header(model: &ModelName, class: CompatibleRange) -> String {
    format!(
        "The model `{model}`, versions {class}. Made from its signature by the server.\n\n\
         Numbers are places in the signature. Within these versions they stay, and what is new\n\
         comes after what is old."
    )
}

fn messages(service: &ModelService, signature: &Signature) -> Vec<Message> {
    let of_members =
        |name: &str, comment: &str, members: &[MessageField], fields: &[Field]| Message {
            descriptor: DescriptorProto {
                name: Some(name.to_owned()),
                ..of_fields(
                    (1..)
                        .zip(members)
                        .map(|(number, member)| member_field(service, member, number)),
                )
            },
            comment: comment.to_owned(),
            field_comments: fields.iter().map(describe).collect(),
        };
    let mut response = of_members(
        RESPONSE,
        "The outputs of a row. What the version that answers does not have is absent.",
        &service.outputs,
        &signature.outputs,
    );
    response
        .add(scalar(MODEL_VERSION_NAME, MODEL_VERSION, Type::String), "The version that answers.");
    let mut messages = vec![
        of_members(REQUEST, "The inputs of a row.", &service.inputs, &signature.inputs),
        response,
        stream_response(service),
        error(),
        rows(service, BATCH_REQUEST, "Rows to be predicted together.", "requests", REQUEST),
        rows(service, BATCH_RESPONSE, "Their outputs, in their order.", "responses", RESPONSE),
    ];
    let members = || service.inputs.iter().chain(&service.outputs);
    let is_used = |scalar: &&Scalar| {
        members().any(|member| member.form == FieldEncoding::Shaped && member.scalar == **scalar)
    };
    messages.extend(Scalar::ALL.iter().filter(is_used).map(|scalar| shaped(*scalar)));
    messages
}

impl Message {
    fn new(name: &str, comment: &str) -> Self {
        let descriptor =
            DescriptorProto { name: Some(name.to_owned()), ..DescriptorProto::default() };
        Self { descriptor, comment: comment.to_owned(), field_comments: Vec::new() }
    }

    fn add(&mut self, field: FieldDescriptorProto, comment: &str) {
        self.descriptor.field.push(field);
        self.field_comments.push(comment.to_owned());
    }
}

fn stream_response(service: &ModelService) -> Message {
    let mut message = Message::new(STREAM_RESPONSE, "The answer to one request of a stream.");
    let descriptor = &mut message.descriptor;
    descriptor.oneof_decl.push(oneof("outcome"));
    let of = |name: &str, number, message: &str| FieldDescriptorProto {
        oneof_index: Some(0),
        ..of_message(service, name, number, message)
    };
    message.add(of("response", 1, RESPONSE), "The row has been predicted.");
    message.add(of("error", 2, ERROR), "It has not, which is nothing to the others.");
    message
}

fn error() -> Message {
    let mut message = Message::new(ERROR, "Why a row has no outputs.");
    let code = "A word that stays: the server's `error_code`.";
    message.add(scalar("error_code", 1, Type::String), code);
    message.add(scalar("message", 2, Type::String), "For people.");
    message
}

fn rows(service: &ModelService, name: &str, comment: &str, field: &str, of: &str) -> Message {
    let mut message = Message::new(name, comment);
    let rows = repeated(of_message(service, field, 1, of));
    message.add(rows, "");
    message
}

fn shaped(elements: Scalar) -> Message {
    let mut message = Message::new(elements.shaped(), "A row of any shape.");
    let shape = repeated(scalar("shape", 1, Type::Uint64));
    message.add(shape, "The size of each dimension of the row.");
    let values = repeated(scalar("values", 2, elements.kind()));
    message.add(values, "The elements, in row-major order.");
    message
}

fn methods(service: &ModelService) -> Vec<(MethodDescriptorProto, &'static str)> {
    let method = |name: &str, input: &str, output: &str| MethodDescriptorProto {
        name: Some(name.to_owned()),
        input_type: Some(qualified(service, input)),
        output_type: Some(qualified(service, output)),
        ..MethodDescriptorProto::default()
    };
    let streaming = Some(true);
    let stream = MethodDescriptorProto {
        client_streaming: streaming,
        server_streaming: streaming,
        ..method("PredictStream", REQUEST, STREAM_RESPONSE)
    };
    vec![
        (method("Predict", REQUEST, RESPONSE), "One row."),
        (stream, "Any number of rows, each by itself, answered in their order."),
        (method("BatchPredict", BATCH_REQUEST, BATCH_RESPONSE), "Many rows, or none if one fails."),
    ]
}

/// Single fields have explicit presence, for which compilers generate a `oneof` each.
fn of_fields(fields: impl Iterator<Item = FieldDescriptorProto>) -> DescriptorProto {
    let mut message = DescriptorProto::default();
    for mut field in fields {
        if field.proto3_optional() {
            field.oneof_index = i32::try_from(message.oneof_decl.len()).ok();
            // No other name begins with `_`.
            message.oneof_decl.push(oneof(&format!("_{}", field.name())));
        }
        message.field.push(field);
    }
    message
}

fn member_field(
    service: &ModelService,
    member: &MessageField,
    number: u32,
) -> FieldDescriptorProto {
    let kind = member.scalar.kind();
    match member.form {
        FieldEncoding::Single => FieldDescriptorProto {
            proto3_optional: Some(true),
            ..scalar(&member.name, number, kind)
        },
        FieldEncoding::Flat(_) => repeated(scalar(&member.name, number, kind)),
        FieldEncoding::Shaped => of_message(service, &member.name, number, member.scalar.shaped()),
    }
}

fn scalar(name: &str, number: u32, kind: Type) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: i32::try_from(number).ok(),
        label: Some(Label::Optional.into()),
        r#type: Some(kind.into()),
        json_name: Some(json_name(name)),
        ..FieldDescriptorProto::default()
    }
}

fn of_message(
    service: &ModelService,
    name: &str,
    number: u32,
    message: &str,
) -> FieldDescriptorProto {
    let type_name = Some(qualified(service, message));
    FieldDescriptorProto { type_name, ..scalar(name, number, Type::Message) }
}

fn repeated(field: FieldDescriptorProto) -> FieldDescriptorProto {
    FieldDescriptorProto { label: Some(Label::Repeated.into()), ..field }
}

fn oneof(name: &str) -> OneofDescriptorProto {
    OneofDescriptorProto { name: Some(name.to_owned()), ..OneofDescriptorProto::default() }
}

fn qualified(service: &ModelService, message: &str) -> String {
    format!(".{}.{message}", service.package)
}

/// The JSON name that compilers derive from a field's name.
fn json_name(name: &str) -> String {
    let mut json = String::with_capacity(name.len());
    let mut is_next_upper = false;
    for letter in name.chars() {
        if letter == '_' {
            is_next_upper = true;
        } else if std::mem::take(&mut is_next_upper) {
            json.push(letter.to_ascii_uppercase());
        } else {
            json.push(letter);
        }
    }
    json
}

/// A comment in a descriptor: each line with the text after the slashes.
fn location(path: &[i32], comment: &str) -> Location {
    let line = |line: &str| match line {
        "" => "\n".to_owned(),
        line => format!(" {line}\n"),
    };
    let comment: String = comment.lines().map(line).collect();
    let leading_comments = Some(comment).filter(|comment| !comment.is_empty());
    // There is no source position.
    let span = vec![0, 0, 0];
    Location { path: path.to_vec(), span, leading_comments, ..Location::default() }
}

/// The comment of a field: its description, datatype and constraints.
fn describe(field: &Field) -> String {
    let mut lines: Vec<_> = field.description.lines().map(terminal::printable).collect();
    let shape: Vec<_> = field
        .row_shape
        .iter()
        .map(|size| size.map_or("any".to_owned(), |size| size.to_string()))
        .collect();
    let mut said = vec![field.datatype.as_str().to_owned()];
    if !shape.is_empty() {
        said[0] = format!("{}[{}]", said[0], shape.join(", "));
    }
    if field.default.is_some() {
        said.push("has a default".to_owned());
    }
    said.extend(field.constraints.iter().filter_map(constraint));
    lines.push(format!("({})", said.join("; ")));
    lines.join("\n")
}

/// The most labels in a comment.
const MAX_LABELS: usize = 10;

fn constraint(constraint: &Constraint) -> Option<String> {
    let bound = |bound: &Option<f64>| bound.map_or("any".to_owned(), |bound| bound.to_string());
    Some(match constraint {
        // Implied by the type, or not visible to callers.
        Constraint::Text | Constraint::Padded(_) => return None,
        Constraint::Stripped => "white space at both ends is removed".to_owned(),
        Constraint::Length { minimum, maximum } => format!("length {minimum} to {maximum}"),
        Constraint::Range { minimum, maximum } => {
            format!("from {} to {}", bound(minimum), bound(maximum))
        }
        Constraint::OneOf(labels) => {
            let shown: Vec<_> =
                labels.iter().take(MAX_LABELS).map(|label| terminal::reason(label)).collect();
            let more = if labels.len() > MAX_LABELS { ", …" } else { "" };
            format!("one of {}{more}", shown.join(", "))
        }
    })
}
