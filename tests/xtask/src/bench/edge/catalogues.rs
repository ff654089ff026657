//! Pages about a thousand models: their latency, and predictions beside requests for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use crate::bench::client::Client;
use crate::bench::rig::{Arrivals, BLOCK_WARM_UP_SECONDS};
use crate::bench::server::{KEY, Server};
use crate::bench::statistics::{Pair, median, median_ratio, quantile};
use crate::bench::{Bar, Figure, admin};
use crate::run;
use crate::workspace::Profile;

/// The number of models.
const MODELS: usize = 1000;

/// The time limit for compiling all of them.
const COMPILE_LIMIT: Duration = Duration::from_secs(3600);

/// The number of measured requests of each kind.
const REQUESTS: usize = 200;

/// Pairs of blocks, without and with the callers.
const BLOCKS: u32 = 3;

/// The number of concurrent callers.
const CALLERS: usize = 4;

/// A key with a rate limit of one request per second, and its SHA-256.
const LIMITED_KEY: &str = "limited-bench-key";
const LIMITED_KEY_SHA256: &str = "b915e3e4ed566bae3699999e6da9da693faa13402d6816911317f7a0695f1d4f";

/// A kind of page.
struct Kind {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    /// The pause of a caller between a response and its next request. Metrics need no key and have
    /// no rate limit, so their callers behave like scrapers.
    pause: Duration,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "openapi",
        method: "GET",
        path: "/openapi.json",
        pause: Duration::from_millis(20),
    },
    Kind { name: "models", method: "GET", path: "/models", pause: Duration::from_millis(20) },
    Kind { name: "metrics", method: "GET", path: "/metrics", pause: Duration::from_millis(250) },
    Kind {
        name: "index",
        method: "POST",
        path: "/v2/repository/index",
        pause: Duration::from_millis(20),
    },
];

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut artifacts = run::step("catalogues: pack", || pack(bench))?;
    artifacts.push(bench.short.artifact.clone());
    let paths: Vec<&Path> = artifacts.iter().map(PathBuf::as_path).collect();
    let mut setup = bench.rig.setup("state-catalogues", &config(), &paths)?;
    setup.limit = COMPILE_LIMIT;
    let server = run::step("catalogues: start", || bench.rig.warm_server(&setup))?;
    let mut figures = Vec::new();
    for kind in &KINDS {
        let key = if kind.name == "index" { admin::KEY } else { KEY };
        let client = Client::new(server.address(), key);
        let what = format!("catalogues: {}", kind.name);
        let times = run::step(&what, || times(&client, kind))?;
        for (name, value) in [("median", median(&times)), ("p99", quantile(&times, 0.99))] {
            let name = format!("{}_of_1000_models_{name}", kind.name);
            figures.push(Figure::new(&name, value, "ms", Some(Bar::AtMost(50.0))));
        }
    }
    let rate = bench.rig.half_capacity(&server, &bench.short)?;
    let seconds = bench.rig.seconds / f64::from(BLOCKS);
    let arrivals = Arrivals { rate, warm_up_seconds: BLOCK_WARM_UP_SECONDS, seconds };
    let goodput = || -> Result<f64> {
        Ok(bench.rig.arrivals(&server, &bench.short, arrivals)?.successes as f64)
    };
    for kind in &KINDS {
        let what = format!("catalogues: predictions beside {}", kind.name);
        let pairs = run::step(&what, || -> Result<_> {
            let mut pairs = Vec::new();
            for _ in 0..BLOCKS {
                let baseline = goodput()?;
                pairs.push(Pair { baseline, value: beside(kind, &server, goodput)? });
            }
            Ok(pairs)
        })?;
        let name = format!("predictions_beside_{CALLERS}_callers_of_{}", kind.name);
        let kept = 100.0 * median_ratio(&pairs);
        figures.push(Figure::new(&name, kept, "% goodput", Some(Bar::AtLeast(95.0))));
    }
    server.stop()?;
    Ok(figures)
}

/// Limits with room for one instance of each model, and the key.
fn config() -> String {
    format!(
        "[[keys]]\nname = \"limited\"\nsha256 = \"{LIMITED_KEY_SHA256}\"\n\
         scopes = [\"predict:*\", \"admin\"]\nrate = {{ per_second = 1, burst = 4 }}\n\
         [limits]\nthreads_per_version = 1\ninstances = {}\ninstance_memory_mib = 16\n\
         memory_mib = 1048576\n[models.toxicity]\ninstance_memory_mib = 256\n",
        2 * MODELS + 8
    )
}

/// Packs the smallest guest under a thousand names. Existing artifacts are kept.
fn pack(bench: &Bench<'_>) -> Result<Vec<PathBuf>> {
    let workspace = bench.rig.workspace;
    let folder = bench.rig.folder("catalogues");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let golden = r#"{"inputs": {"text": "four"}, "outputs": {"length": 4}}"#;
    fs::write(folder.join("golden.jsonl"), golden).context("cannot write the golden example")?;
    let artifacts = (0..MODELS).map(|number| {
        let artifact = folder.join(format!("many-{number}-1.0.0.wasm"));
        if artifact.exists() {
            return Ok(artifact);
        }
        let manifest = folder.join("manifest.toml");
        let text = format!(
            "name = \"many-{number}\"\nversion = \"1.0.0\"\n[parameters]\nstage = \"1\"\n\
             [golden]\nfile = \"golden.jsonl\"\n"
        );
        fs::write(&manifest, text).context("cannot write a manifest")?;
        let mut pack = Command::new(workspace.host_binary(Profile::Release));
        pack.arg("pack").arg("--manifest").arg(&manifest);
        pack.arg("--component").arg(workspace.component("growing"));
        run::output(pack.arg("--output").arg(&artifact))?;
        Ok(artifact)
    });
    artifacts.collect()
}

/// The latencies in milliseconds after a first request.
fn times(client: &Client, kind: &Kind) -> Result<Vec<f64>> {
    let ask = || -> Result<f64> {
        let begin = Instant::now();
        let status = send(client, kind)?;
        ensure!(status == 200, "{} has the status {status}", kind.path);
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    };
    ask()?;
    (0..REQUESTS).map(|_| ask()).collect()
}

fn send(client: &Client, kind: &Kind) -> Result<u16> {
    client.drain(kind.method, kind.path)
}

/// Runs `measure` while callers request a page continuously with a key that admits one request per
/// second.
fn beside(kind: &Kind, server: &Server, measure: impl Fn() -> Result<f64>) -> Result<f64> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let call = || -> Result<()> {
            let client = Client::new(server.address(), LIMITED_KEY);
            while !over.load(Ordering::Relaxed) {
                let status = send(&client, kind)?;
                ensure!([200, 429].contains(&status), "{} has the status {status}", kind.path);
                thread::sleep(kind.pause);
            }
            Ok(())
        };
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(call)).collect();
        let measured = measure();
        over.store(true, Ordering::Relaxed);
        for caller in callers {
            let outcome = caller.join();
            outcome.map_err(|_panic| anyhow::anyhow!("a caller panicked"))??;
        }
        measured
    })
}
