//! Prints a descriptor as the `.proto` source from which a compiler would produce it.

use std::fmt::Write as _;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MethodDescriptorProto,
};

/// Print a file of this module: without imports, options, enums and nested messages.
pub(super) fn file(file: &FileDescriptorProto) -> String {
    let mut text = String::new();
    let printer = Printer { file };
    printer.print(&mut text).expect("a string takes everything");
    text
}

struct Printer<'a> {
    file: &'a FileDescriptorProto,
}

impl Printer<'_> {
    fn print(&self, text: &mut String) -> std::fmt::Result {
        self.comment(text, "", &[12])?;
        writeln!(text, "syntax = \"proto3\";\n\npackage {};", self.file.package())?;
        for (index, service) in (0..).zip(&self.file.service) {
            text.push('\n');
            self.comment(text, "", &[6, index])?;
            writeln!(text, "service {} {{", service.name())?;
            for (place, method) in (0..).zip(&service.method) {
                self.comment(text, "  ", &[6, index, 2, place])?;
                self.method(text, method)?;
            }
            text.push_str("}\n");
        }
        for (index, message) in (0..).zip(&self.file.message_type) {
            text.push('\n');
            self.comment(text, "", &[4, index])?;
            self.message(text, message, index)?;
        }
        Ok(())
    }

    fn method(&self, text: &mut String, method: &MethodDescriptorProto) -> std::fmt::Result {
        let stream = |is: bool| if is { "stream " } else { "" };
        writeln!(
            text,
            "  rpc {}({}{}) returns ({}{});",
            method.name(),
            stream(method.client_streaming()),
            self.relative(method.input_type()),
            stream(method.server_streaming()),
            self.relative(method.output_type()),
        )
    }

    fn message(
        &self,
        text: &mut String,
        message: &DescriptorProto,
        index: i32,
    ) -> std::fmt::Result {
        writeln!(text, "message {} {{", message.name())?;
        let mut oneof = None;
        for (place, field) in (0..).zip(&message.field) {
            let is_in = field.oneof_index.filter(|_| !field.proto3_optional());
            if oneof.is_some() && oneof != is_in {
                text.push_str("  }\n");
            }
            if let Some(declared) = is_in.filter(|_| oneof != is_in) {
                let declared = usize::try_from(declared).ok();
                let declared = declared.and_then(|index| message.oneof_decl.get(index));
                writeln!(text, "  oneof {} {{", declared.map_or("", |oneof| oneof.name()))?;
            }
            oneof = is_in;
            let indent = if oneof.is_some() { "    " } else { "  " };
            self.comment(text, indent, &[4, index, 2, place])?;
            self.field(text, indent, field)?;
        }
        if oneof.is_some() {
            text.push_str("  }\n");
        }
        text.push_str("}\n");
        Ok(())
    }

    fn field(
        &self,
        text: &mut String,
        indent: &str,
        field: &FieldDescriptorProto,
    ) -> std::fmt::Result {
        let label = match field.label() {
            Label::Repeated => "repeated ",
            _ if field.proto3_optional() => "optional ",
            _ => "",
        };
        let kind = match field.r#type() {
            Type::Message => self.relative(field.type_name()).to_owned(),
            scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_ascii_lowercase(),
        };
        writeln!(text, "{indent}{label}{kind} {} = {};", field.name(), field.number())
    }

    /// The name of a type relative to the package.
    fn relative<'n>(&self, name: &'n str) -> &'n str {
        let inside = name.strip_prefix('.').and_then(|name| name.strip_prefix(self.file.package()));
        inside.and_then(|name| name.strip_prefix('.')).unwrap_or(name)
    }

    fn comment(&self, text: &mut String, indent: &str, path: &[i32]) -> std::fmt::Result {
        let mut locations = self.file.source_code_info.iter().flat_map(|info| &info.location);
        let Some(location) = locations.find(|location| location.path == path) else {
            return Ok(());
        };
        location.leading_comments().lines().try_for_each(|line| writeln!(text, "{indent}//{line}"))
    }
}
