//! How soon a disconnect frees the guest.
//!
//! The only inference thread runs an endless guest, and a second request waits for it. When the
//! first caller disconnects, the second request is answered. The time from the disconnect to that
//! response, less the time of such a response without contention, is how long the guest kept
//! running.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;

use super::Bench;
use crate::bench::server::{KEY, Server};
use crate::bench::statistics::median;
use crate::bench::{Bar, Figure};
use crate::run;

/// How often each kind of abort is measured. Odd, so that the median is a measured value.
const TIMES: usize = 51;

/// The time limit until the second request is queued.
const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// The tick of the clock at which guests check for cancellation.
const TICK_MS: Bar = Bar::AtMost(1.0);

/// How a caller abandons its request.
#[derive(Clone, Copy)]
enum Abort {
    /// It closes its HTTP/1.1 connection.
    HttpDisconnect,
    /// It closes its gRPC connection.
    GrpcDisconnect,
    /// It cancels the gRPC call and keeps the connection.
    GrpcCancel,
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let config = "[limits]\nthreads_per_version = 1\npredict_milliseconds = 60000\n";
    let setup = bench.rig.setup("state-cancellation", config, &[&bench.misbehave.artifact])?;
    let server = run::step("cancellation: start", || bench.rig.warm_server(&setup))?;
    let alone = run::step("cancellation: responses without contention", || -> Result<f64> {
        let times = (0..TIMES).map(|_| timed_echo(bench, &server));
        Ok(median(&times.collect::<Result<Vec<_>>>()?))
    })?;
    let mut figures = vec![Figure::new("cancellation_answer_alone_ms", alone, "ms", None)];
    for (name, disconnect) in [
        ("http_disconnect", Abort::HttpDisconnect),
        ("grpc_disconnect", Abort::GrpcDisconnect),
        ("grpc_cancel", Abort::GrpcCancel),
    ] {
        let leave = || (0..TIMES).map(|_| freed_after(bench, &server, disconnect)).collect();
        let times: Vec<f64> = run::step(&format!("cancellation: {name}"), leave)?;
        let worst = times.iter().copied().fold(0.0, f64::max);
        let name = format!("cancellation_{name}");
        let freed = median(&times) - alone;
        figures.push(Figure::new(&format!("{name}_p50_ms"), freed, "ms", Some(TICK_MS)));
        figures.push(Figure::new(&format!("{name}_max_ms"), worst - alone, "ms", None));
    }
    server.stop()?;
    Ok(figures)
}

/// The latency of a request in milliseconds.
fn timed_echo(bench: &Bench<'_>, server: &Server) -> Result<f64> {
    let start = Instant::now();
    let body = json!({"action": "echo"}).to_string().into_bytes();
    let answer = server.client().post(&bench.misbehave.path(), &[], body)?;
    ensure!(answer.is_success(), "the second request got {}", answer.status);
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The time from the disconnect of the first caller to the response of the second request, in
/// milliseconds.
fn freed_after(bench: &Bench<'_>, server: &Server, disconnect: Abort) -> Result<f64> {
    let mut first = match disconnect {
        Abort::HttpDisconnect => spin_by_http(bench, server.address()),
        Abort::GrpcDisconnect | Abort::GrpcCancel => {
            spin_by_grpc(&bench.misbehave.name, server.grpc_address())
        }
    }?;
    wait_until(server, "guesthouse_instances", r#"state="busy""#)?;
    thread::scope(|scope| {
        let second = scope.spawn(|| -> Result<Instant> {
            timed_echo(bench, server)?;
            Ok(Instant::now())
        });
        wait_until(server, "guesthouse_queue_depth", "")?;
        let left = Instant::now();
        match disconnect {
            Abort::HttpDisconnect | Abort::GrpcDisconnect => first.shutdown(Shutdown::Both)?,
            // RST_STREAM with the error code CANCEL.
            Abort::GrpcCancel => first.write_all(&frame(3, 0, 1, &8_u32.to_be_bytes()))?,
        }
        let answered = second.join().map_err(|_panic| anyhow!("the second caller panicked"))??;
        Ok((answered - left).as_secs_f64() * 1e3)
    })
}

/// Waits until a gauge is not 0.
fn wait_until(server: &Server, gauge: &str, label: &str) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < WAIT_LIMIT {
        let metrics = server.client().get("/metrics")?.text;
        let mut lines = metrics.lines().filter(|line| line.starts_with(gauge));
        if lines.any(|line| line.contains(label) && !line.ends_with(" 0")) {
            return Ok(());
        }
    }
    bail!("{gauge} has stayed 0 for {} s", WAIT_LIMIT.as_secs())
}

fn spin_by_http(bench: &Bench<'_>, address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).context("cannot connect")?;
    let (path, body) = (bench.misbehave.path(), json!({"action": "spin"}).to_string());
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nx-api-key: {KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).context("cannot send")?;
    Ok(stream)
}

/// The frames of a single gRPC call, whose response is not read.
fn spin_by_grpc(model: &str, address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).context("cannot connect")?;
    let path = "/inference.GRPCInferenceService/ModelInfer";
    let authority = address.to_string();
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", &authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-api-key", KEY),
    ];
    // Literal header fields without indexing.
    let literal = |text: &str| {
        let length = u8::try_from(text.len()).expect("these are short");
        [&[length], text.as_bytes()].concat()
    };
    let header = |(name, value): (&str, &str)| [vec![0], literal(name), literal(value)].concat();
    let headers: Vec<u8> = headers.into_iter().flat_map(header).collect();
    let message = spin_message(model);
    let length = u32::try_from(message.len()).context("the message is too long")?.to_be_bytes();
    let message = [&[0], &length[..], &message].concat();
    let bytes = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        // The flags END_HEADERS and END_STREAM.
        frame(1, 4, 1, &headers),
        frame(0, 1, 1, &message),
    ];
    stream.write_all(&bytes.concat()).context("cannot send")?;
    Ok(stream)
}

/// A `ModelInferRequest` that makes the guest run forever.
fn spin_message(model: &str) -> Vec<u8> {
    use super::overhead::field;
    let raw = [&4_u32.to_le_bytes()[..], b"spin"].concat();
    let tensor = [field(1, b"action"), field(2, b"BYTES"), field(3, &[1])].concat();
    [field(1, model.as_bytes()), field(5, &tensor), field(7, &raw)].concat()
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("these are short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_encodes_its_length_in_three_bytes() {
        assert_eq!(frame(3, 0, 1, &[0, 0, 0, 8]), [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8]);
    }
}
