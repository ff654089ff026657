//! Callers whose requests make a version fail, beside a good caller of the same version with
//! another key.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Bench;
use crate::bench::artifacts::pack_misbehave;
use crate::bench::client::Client;
use crate::bench::server::{KEY, Server};
use crate::bench::{Bar, Figure};
use crate::{pack, run};

/// The key of the failing caller.
const BAD_KEY: &str = "bad-caller-key-of-the-benchmark";

/// Its SHA-256 for the configuration.
const BAD_KEY_SHA256: &str = "a90cfd88b544f1ae4e245803ce2b42097fc24930e9bd478c6e66dbf333d18141";

/// The pause between requests of the failing caller.
const BAD_PAUSE: Duration = Duration::from_millis(5);

/// The pause between requests of the good caller.
const GOOD_PAUSE: Duration = Duration::from_millis(10);

/// The number of concurrent requests of the failing caller.
const BAD_CONNECTIONS: usize = 2;

/// The time limit of a call, so that spinning ones end and start again.
const PREDICT_MILLISECONDS: u32 = 1000;

/// The header with the length of the JSON in a body with binary tensors.
const HEAD_LENGTH: &str = "inference-header-content-length";

/// What the failing caller sends.
#[derive(Clone, Copy, Debug)]
enum Kind {
    SameTrap,
    ChangingTrap,
    NonFinite,
    Spin,
}

const KINDS: [Kind; 4] = [Kind::SameTrap, Kind::ChangingTrap, Kind::NonFinite, Kind::Spin];

/// A request: path, headers and body.
type Sent = (&'static str, Vec<(&'static str, String)>, Vec<u8>);

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::SameTrap => "beside_a_caller_that_traps_on_the_same_bytes",
            Self::ChangingTrap => "beside_a_caller_that_traps_on_changing_bytes",
            Self::NonFinite => "beside_a_caller_that_sends_nan",
            Self::Spin => "beside_a_caller_that_spins_to_the_deadline",
        }
    }

    fn bad(self, index: u64) -> Sent {
        match self {
            Self::SameTrap => action("panic"),
            Self::ChangingTrap => action(&format!("panic {index}")),
            Self::NonFinite => number(f64::NAN),
            Self::Spin => action("spin"),
        }
    }

    fn good(self) -> Sent {
        match self {
            Self::NonFinite => number(1.0),
            Self::SameTrap | Self::ChangingTrap | Self::Spin => action("echo"),
        }
    }
}

fn action(action: &str) -> Sent {
    let body = json!({ "action": action }).to_string().into_bytes();
    ("/models/misbehave/predict", Vec::new(), body)
}

fn number(number: f64) -> Sent {
    let data = number.to_le_bytes();
    let input = json!({"name": "INPUT0", "shape": [1, 1], "datatype": "FP64",
                       "parameters": {"binary_data_size": data.len()}});
    let head = json!({ "inputs": [input] }).to_string();
    let headers = vec![
        (HEAD_LENGTH, head.len().to_string()),
        ("content-type", "application/octet-stream".to_owned()),
    ];
    ("/v2/models/identity_fp64/infer", headers, [head.as_bytes(), &data].concat())
}

fn send(client: &Client, (path, headers, body): Sent) -> Result<u16> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok(client.post(path, &headers, body)?.status)
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let server = run::step("callers: start for failing callers", || start(bench))?;
    let mut figures = Vec::new();
    for kind in KINDS {
        let what = format!("callers: {}", kind.name());
        let kept = run::step(&what, || beside(kind, &server, bench.rig.seconds))?;
        figures.push(Figure::new(kind.name(), kept, "% answers", Some(Bar::AtLeast(95.0))));
    }
    server.stop()?;
    Ok(figures)
}

/// A server with both guests and a key for the failing caller.
fn start(bench: &Bench<'_>) -> Result<Server> {
    let workspace = bench.rig.workspace;
    let misbehave = pack_misbehave(workspace, &bench.rig.folder("."), "1.0.0")?;
    let fixtures = bench.rig.folder("fixtures");
    std::fs::create_dir_all(&fixtures)?;
    let sources = workspace.fixtures();
    let manifest = sources.join("identity_fp64/1.0.0/manifest.toml");
    let model = pack::read_manifest(&sources, manifest)?;
    let host = workspace.host_binary(crate::workspace::Profile::Release);
    pack::pack_into(&fixtures, workspace, &[model], &host)?;
    let identity = fixtures.join("identity_fp64-1.0.0.wasm");
    let config = format!(
        "default_model = \"misbehave\"\n[limits]\npredict_milliseconds = {PREDICT_MILLISECONDS}\n\
         [[keys]]\nname = \"bad\"\nsha256 = \"{BAD_KEY_SHA256}\"\nscopes = [\"predict:*\"]\n"
    );
    let setup = bench.rig.setup("state-failing", &config, &[&misbehave, &identity])?;
    bench.rig.warm_server(&setup)
}

/// The percentage of the good caller's requests that succeed.
fn beside(kind: Kind, server: &Server, seconds: f64) -> Result<f64> {
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let bad = || -> Result<()> {
            let client = Client::new(server.address(), BAD_KEY);
            while !over.load(Ordering::Relaxed) {
                send(&client, kind.bad(sent.fetch_add(1, Ordering::Relaxed)))?;
                thread::sleep(BAD_PAUSE);
            }
            Ok(())
        };
        let bad: Vec<_> = (0..BAD_CONNECTIONS).map(|_| scope.spawn(bad)).collect();
        let kept = share_of_answers(kind, server, seconds);
        over.store(true, Ordering::Relaxed);
        for bad in bad {
            let outcome =
                bad.join().map_err(|_panic| anyhow::anyhow!("a failing caller panicked"))?;
            outcome.context("a failing caller got no response")?;
        }
        kept
    })
}

fn share_of_answers(kind: Kind, server: &Server, seconds: f64) -> Result<f64> {
    let client = Client::new(server.address(), KEY);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let (mut asked, mut answered) = (0_u32, 0_u32);
    while Instant::now() < end {
        asked += 1;
        answered += u32::from(send(&client, kind.good())? == 200);
        thread::sleep(GOOD_PAUSE);
    }
    Ok(100.0 * f64::from(answered) / f64::from(asked.max(1)))
}
