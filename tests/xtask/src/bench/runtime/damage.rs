//! Detection of damaged stored code: one bit is flipped in each stored file in turn.
//!
//! Damage is detected if the log has a warning that it does not have otherwise, the version is
//! compiled again and answers, and the damaged bytes are gone. A file of functions is read only by
//! a compilation, so the version itself is removed as well.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::crash::check_answer;
use super::setup::Bench;
use crate::bench::server::{Server, Setup};
use crate::bench::{Bar, Figure, random};
use crate::run;

/// How often each file is damaged at a random place.
const FLIPS: usize = 3;

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let setup = bench.rig.setup("state-damage", "", &[&bench.misbehave.artifact])?;
    let compiled = setup.state.join("compiled");
    let known = run::step("damage: start undamaged", || {
        let mut server = bench.rig.warm_server(&setup)?;
        let known = warnings(&mut server)?;
        server.stop()?;
        Ok(known)
    })?;
    let files = files(&compiled)?;
    ensure!(!files.is_empty(), "nothing is stored in {}", compiled.display());
    let (mut flips, mut noticed) = (0_u32, 0_u32);
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // The names are long, and their extensions differ.
        let ending = file.extension().unwrap_or_default().to_string_lossy();
        let is_versions_own = name.starts_with(&bench.misbehave.digest);
        for _ in 0..FLIPS {
            let flip = || {
                if !is_versions_own {
                    remove_version(bench, &compiled)?;
                }
                let damaged = flip_a_bit(file)?;
                Ok(check_noticed(bench, &setup, &known).and_then(|()| check_gone(file, &damaged)))
            };
            flips += 1;
            match run::step(&format!("damage: a bit in a .{ending} file"), flip)? {
                Ok(()) => noticed += 1,
                Err(error) => eprintln!("not detected: {error:#}"),
            }
        }
    }
    let all = Some(Bar::Exactly(f64::from(flips)));
    Ok(vec![
        Figure::new("damage_noticed_and_repaired", f64::from(noticed), "flips", all),
        Figure::new("damage_files", files.len() as f64, "files", None),
    ])
}

fn check_noticed(bench: &Bench<'_>, setup: &Setup, known: &BTreeSet<String>) -> Result<()> {
    let mut server = Server::start(bench.rig.workspace, setup)?;
    let ready = server.wait_for("version ready", Some(&bench.misbehave.version))?;
    let warnings = warnings(&mut server)?;
    check_answer(bench, &server)?;
    server.stop()?;
    ensure!(ready["from"] == "compiled", "the damaged version was loaded: {ready}");
    ensure!(!warnings.is_subset(known), "the log has no new warning: {warnings:?}");
    Ok(())
}

fn check_gone(file: &Path, damaged: &[u8]) -> Result<()> {
    let now = fs::read(file).with_context(|| format!("{} is missing", file.display()))?;
    ensure!(now != damaged, "{} is still damaged", file.display());
    Ok(())
}

/// The messages of warnings and errors in the log.
fn warnings(server: &mut Server) -> Result<BTreeSet<String>> {
    let lines = server.log.lines()?.iter();
    let bad = lines.filter(|line| line["level"] == "WARN" || line["level"] == "ERROR");
    Ok(bad.filter_map(|line| line["message"].as_str().map(str::to_owned)).collect())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    let mut files = list().with_context(|| format!("cannot list {}", folder.display()))?;
    files.sort();
    Ok(files)
}

fn remove_version(bench: &Bench<'_>, compiled: &Path) -> Result<()> {
    for file in files(compiled)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&bench.misbehave.digest) {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    Ok(())
}

/// Replaces a file with a damaged copy; returns its bytes.
fn flip_a_bit(file: &Path) -> Result<Vec<u8>> {
    let mut bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let place = (random::fraction() * bytes.len() as f64) as usize;
    let place = place.min(bytes.len().saturating_sub(1));
    let byte = bytes.get_mut(place).with_context(|| format!("{} is empty", file.display()))?;
    // Not a random bit: hexadecimal digits are valid in upper case too.
    *byte ^= 1;
    let copy = file.with_extension("damaged");
    fs::write(&copy, &bytes)
        .and_then(|()| fs::rename(&copy, file))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flipping_a_bit_replaces_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.bin");
        fs::write(&file, [0; 100]).unwrap();
        let mapped = fs::File::open(&file).unwrap();
        let damaged = flip_a_bit(&file).unwrap();
        assert_eq!(damaged.iter().map(|byte| u32::from(*byte)).sum::<u32>(), 1);
        assert_eq!(files(folder.path()).unwrap().len(), 1);
        assert!(check_gone(&file, &damaged).is_err());
        // An open file still has the old bytes.
        let old = std::io::read_to_string(mapped).unwrap();
        assert!(old.bytes().all(|byte| byte == 0));
    }
}
