//! Targets for artifacts: the whole file, and the texts in its sections.

use std::borrow::Cow;

use wasm_encoder::{
    Component, ComponentExportKind, ComponentExportSection, CustomSection, Encode as _,
    RawCustomSection,
};

use guesthouse_artifact::{Artifact, CONTRACT_VERSION, Digest, Manifest};
use guesthouse_model::Selector;

/// Separates the parts of the input that become sections; the byte does not occur in UTF-8.
const SEPARATOR: u8 = 0xff;

/// Read arbitrary bytes as an artifact.
pub(super) fn artifact(bytes: &[u8]) {
    let Ok(artifact) = Artifact::from_bytes(bytes.to_vec()) else { return };
    read(&artifact, bytes);
}

/// Check the invariants of an artifact.
fn read(artifact: &Artifact, bytes: &[u8]) {
    assert_eq!(artifact.digest(), Digest::from_content(bytes));
    assert_eq!(artifact.size_bytes(), bytes.len());
    let mut copy = Vec::new();
    artifact.copy_to(&mut copy).expect("it is in memory");
    assert_eq!(copy, bytes);
    let again = Artifact::from_bytes(bytes.to_vec()).expect("it was read before");
    assert_eq!(again.digest(), artifact.digest());
    assert_eq!(again.id(), artifact.id());
    let selector = format!("={}", artifact.id().version).parse::<Selector>();
    assert!(selector.is_ok_and(|selector| selector.matches(&artifact.id().version)));
    assert!(!artifact.golden().is_empty());
    assert!(artifact.golden().iter().all(|example| !example.outputs.is_empty()));
    let (mut assets, descriptor) = (0, artifact.descriptor());
    for (name, length) in artifact.assets() {
        let asset = artifact.read_asset(name, 0, usize::MAX);
        let asset = asset.expect("an asset that is listed is there");
        assert_eq!((asset.len(), artifact.asset_bytes(name)), (length, Some(length)));
        assert_eq!(Some(&Digest::from_content(&asset).to_string()), descriptor.assets.get(name));
        assert!(!name.contains(['/', '\\']) && !name.is_empty());
        assets += 1;
    }
    assert_eq!(assets, descriptor.assets.len());
    assert!(descriptor.tolerances.values().all(|limit| *limit >= 0.0));
    if let Some(signature) = artifact.signature() {
        assert!(signature.check().is_ok());
    }
    let component = artifact.component().expect("it is in memory");
    assert_eq!(artifact.component_digest().ok(), Some(Digest::from_content(&component)));
    assert!(component.len() <= bytes.len());
    assert!(wasmparser::Parser::is_component(&component));
    assert!(Artifact::from_bytes(component).is_err(), "what was packed is not in the component");
}

/// Read an artifact with a valid structure and arbitrary texts.
pub(super) fn sections(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == SEPARATOR);
    let mut next = || parts.next().unwrap_or_default();
    let (name, version, descriptor, signature) = (next(), next(), next(), next());
    let (golden, asset, asset_name) = (next(), next(), next());
    let mut exports = ComponentExportSection::new();
    for interface in ["lifecycle", "predict"] {
        let interface = format!("guesthouse:model/{interface}@{CONTRACT_VERSION}");
        exports.export(interface.as_str(), ComponentExportKind::Instance, 0, None);
    }
    let mut component = Component::new();
    component.section(&exports);
    let mut custom = |name: &str, data: &[u8]| {
        component.section(&CustomSection { name: name.into(), data: data.into() });
    };
    custom("component-name", &component_name(name));
    custom("version", version);
    if !descriptor.is_empty() {
        custom("guesthouse:descriptor", &with_digest(descriptor, asset));
    }
    if !signature.is_empty() {
        custom("guesthouse:signature", signature);
    }
    custom("guesthouse:golden", golden);
    if let (false, Ok(name)) = (asset_name.is_empty(), std::str::from_utf8(asset_name)) {
        custom(&format!("guesthouse:asset/{name}"), asset);
    }
    for part in parts.take(8) {
        component.section(&RawCustomSection(part));
    }
    let bytes = component.finish();
    if let Ok(artifact) = Artifact::from_bytes(bytes.clone()) {
        read(&artifact, &bytes);
    }
}

/// The section with the component's own name.
fn component_name(name: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    name.encode(&mut data);
    let mut section = vec![0];
    data.as_slice().encode(&mut section);
    section
}

/// Replace `@` by the asset's digest, which a fuzzer cannot guess.
fn with_digest<'a>(descriptor: &'a [u8], asset: &[u8]) -> Cow<'a, [u8]> {
    let Some(place) = descriptor.iter().position(|byte| *byte == b'@') else {
        return descriptor.into();
    };
    let digest = Digest::from_content(asset).to_string();
    [&descriptor[..place], digest.as_bytes(), &descriptor[place + 1..]].concat().into()
}

/// Read a manifest.
pub(super) fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    assert_eq!(manifest.name.as_str().parse(), Ok(manifest.name.clone()));
    assert!(manifest.golden.tolerance.values().all(|limit| *limit >= 0.0));
    assert!(!manifest.assets.keys().any(|name| name.contains('/')));
}
