//! Both loops against a small server whose behaviour each test defines.
//!
//! Times have lower bounds only: a busy machine makes everything slower, never faster.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hyper::body::Bytes;

use crate::{
    Arrivals, Expectation, Load, LoadError, Report, Target, closed_loop, open_loop, trace,
};

/// The response of a server to the request of this number; none closes the connection.
type Behaviour = fn(usize) -> Option<&'static str>;

const OK: Option<&str> = Some("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine");
const BUSY: Option<&str> = Some("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n");
const VERSIONED: Option<&str> =
    Some("HTTP/1.1 200 OK\r\nx-model-version: 1.2.0\r\ncontent-length: 4\r\n\r\nfine");
const STALL: Duration = Duration::from_millis(300);

/// Starts a server on threads that live until the tests end.
fn serve(behaviour: Behaviour) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let number = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let number = Arc::clone(&number);
            // The client may close the connection at any time.
            thread::spawn(move || answer(stream.unwrap(), behaviour, &number).ok());
        }
    });
    address
}

fn answer(stream: TcpStream, behaviour: Behaviour, number: &AtomicUsize) -> std::io::Result<()> {
    let (mut requests, mut answers) = (BufReader::new(stream.try_clone()?), stream);
    loop {
        let (mut length, mut line) = (0, String::new());
        while line != "\r\n" {
            line.clear();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        requests.read_exact(&mut vec![0; length])?;
        match behaviour(number.fetch_add(1, Ordering::Relaxed)) {
            Some(text) => answers.write_all(text.as_bytes())?,
            None => return Ok(()),
        }
    }
}

fn stall_once(number: usize) -> Option<&'static str> {
    if number == 10 {
        thread::sleep(STALL);
    }
    OK
}

fn load(address: SocketAddr, milliseconds: u64) -> Load {
    let body = Bytes::from_static(b"{}");
    Load {
        target: Target::new(&format!("http://{address}/"), vec![body]).unwrap(),
        connections: 1,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(milliseconds),
        request_time: Duration::from_secs(10),
        requests: None,
        trace: None,
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn closed(load: &Load) -> Report {
    run(closed_loop(load)).unwrap()
}

fn open(load: &Load, rate: u32) -> Report {
    run(open_loop(load, rate, Arrivals::Regular)).unwrap()
}

fn max_us(report: &Report) -> u64 {
    report.latency_counts.iter().map(|(latency, _)| *latency).max().unwrap_or(0)
}

/// How many successes took at least so many microseconds.
fn slower_than(report: &Report, microseconds: u64) -> u64 {
    let counts = report.latency_counts.iter();
    counts.filter(|(latency, _)| *latency >= microseconds).map(|(_, count)| count).sum()
}

#[test]
fn an_open_loop_measures_from_the_scheduled_time() {
    // 60 requests; about 30 of them are scheduled during the stall and wait up to 300 ms.
    let report = open(&load(serve(stall_once), 600), 100);
    assert_eq!((report.requests, report.successes), (60, 60), "{report:?}");
    assert!(max_us(&report) >= 299_000, "{report:?}");
    assert!(slower_than(&report, 150_000) >= 6, "{report:?}");
    assert!(report.late_starts >= 20, "{report:?}");
}

#[test]
fn a_closed_loop_measures_a_stall_once() {
    let report = closed(&load(serve(stall_once), 600));
    assert!(max_us(&report) >= 299_000, "{report:?}");
    assert!(report.successes > 11, "{report:?}");
    assert_eq!((report.requests, report.late_starts), (report.successes, 0));
}

#[test]
fn only_the_expected_response_is_a_success() {
    let mostly_busy = |number| if number % 4 == 0 { OK } else { BUSY };
    let report = open(&load(serve(mostly_busy), 200), 100);
    assert_eq!((report.successes, report.errors["503"]), (5, 15), "{report:?}");

    let mut wanted = load(serve(|_| OK), 200);
    let expect =
        |text: &str| Expectation { contains: Some(text.to_owned()), ..Expectation::default() };
    wanted.target = wanted.target.expecting(expect("in"));
    assert_eq!(open(&wanted, 100).successes, 20);
    wanted.target = wanted.target.expecting(expect("not"));
    assert_eq!(open(&wanted, 100).errors["wrong_body"], 20);
}

#[test]
fn additional_statuses_are_neither_successes_nor_errors() {
    let mut wanted = load(serve(|number| if number % 4 == 0 { OK } else { BUSY }), 200);
    let tolerated = vec![hyper::StatusCode::SERVICE_UNAVAILABLE];
    wanted.target = wanted.target.expecting(Expectation { tolerated, ..Expectation::default() });
    let report = open(&wanted, 100);
    assert_eq!(
        (report.requests, report.successes, report.tolerated["503"]),
        (20, 5, 15),
        "{report:?}"
    );
    assert!(report.errors.is_empty(), "{report:?}");
}

#[test]
fn a_run_ends_at_its_request_limit() {
    let mut load = load(serve(|_| OK), 60_000);
    (load.requests, load.connections) = (Some(25), 3);
    assert_eq!(closed(&load).requests, 25);
}

#[test]
fn a_broken_connection_is_an_error_and_is_reopened() {
    let report = open(&load(serve(|number| OK.filter(|_| number != 3)), 200), 100);
    assert_eq!((report.successes, report.errors["connection"]), (19, 1), "{report:?}");
}

#[test]
fn an_unresponsive_server_does_not_block_the_run() {
    let mut load = load(
        serve(|_| {
            // Never responds, and keeps the connection open.
            thread::park();
            None
        }),
        200,
    );
    load.request_time = Duration::from_millis(100);
    let report = open(&load, 100);
    assert_eq!((report.requests, report.successes), (20, 0), "{report:?}");
    assert!(report.errors["timeout"] >= 1, "{report:?}");
    assert!(report.errors["unsent"] >= 1, "{report:?}");
}

#[test]
fn requests_of_the_warm_up_are_not_counted() {
    let mut load = load(serve(|_| OK), 200);
    load.warm_up = Duration::from_millis(300);
    assert_eq!(open(&load, 100).requests, 20);
}

#[test]
fn a_trace_has_a_line_for_each_request() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace");
    let mut load = load(serve(|number| [VERSIONED, BUSY][number % 2]), 100);
    load.trace = Some(file.clone());
    load.warm_up = Duration::from_millis(100);

    let before = trace::now_ns();
    assert_eq!(open(&load, 100).requests, 10);
    let after = trace::now_ns();
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines.len(), 20, "{text}");
    let mut last = before;
    for (number, line) in lines.iter().enumerate() {
        let wanted = [["success", "1.2.0"], ["503", "-"]][number % 2];
        assert_eq!(line[2..], wanted, "{text}");
        let (sent, answered): (u64, u64) = (line[0].parse().unwrap(), line[1].parse().unwrap());
        assert!(before <= sent && sent < answered && last <= answered && answered <= after);
        last = answered;
    }

    load.trace = Some(folder.path().join("absent/trace"));
    assert!(matches!(run(open_loop(&load, 100, Arrivals::Regular)), Err(LoadError::Trace(_))));
}

#[test]
fn a_load_out_of_bounds_is_rejected() {
    let good = load(serve(|_| OK), 200);
    let bad = [
        Load { connections: 0, ..good.clone() },
        Load { connections: 1025, ..good.clone() },
        Load { duration: Duration::ZERO, ..good.clone() },
        Load { request_time: Duration::from_secs(601), ..good.clone() },
    ];
    for load in bad {
        let error = run(closed_loop(&load)).unwrap_err();
        assert!(matches!(error, LoadError::OutOfBounds { .. }), "{error}");
    }
    for rate in [0, 100_001] {
        let error = run(open_loop(&good, rate, Arrivals::Regular)).unwrap_err();
        assert!(matches!(error, LoadError::OutOfBounds { name: "rate", .. }));
    }
}

/// Starts a gRPC server that sends the same message for every call, and the statuses in turn.
fn serve_grpc(statuses: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        for number in 0.. {
            // The client may close the connection at any time.
            let Some(Ok((request, mut respond))) = connection.accept().await else { return };
            assert_eq!(request.method(), "POST");
            assert_eq!(request.uri().path(), "/a.B/C");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let mut body = request.into_body();
            tokio::spawn(async move {
                let mut message = Vec::new();
                while let Some(data) = body.data().await {
                    message.extend_from_slice(&data.unwrap());
                }
                assert_eq!(message, b"\0\0\0\0\x02{}");
                let mut answer = respond.send_response(hyper::Response::new(()), false).unwrap();
                answer.send_data(Bytes::from_static(b"\0\0\0\0\x04fine"), false).unwrap();
                let mut trailers = hyper::HeaderMap::new();
                let status = statuses[number % statuses.len()];
                trailers.insert("grpc-status", status.parse().unwrap());
                answer.send_trailers(trailers).unwrap();
            });
        }
    };
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(serve);
    });
    address
}

#[tokio::test]
async fn grpc_calls_succeed_by_their_trailers() {
    let address = serve_grpc(&["0", "0", "14"]);
    let body = Bytes::from_static(b"{}");
    let target = Target::new(&format!("http://{address}/a.B/C"), vec![body]).unwrap();
    let contains = Some("fine".to_owned());
    let expectation = Expectation { contains, ..Expectation::default() };
    let target = target.into_grpc().unwrap().expecting(expectation);
    let load = Load { target, requests: Some(9), ..load(address, 60_000) };
    let report = closed_loop(&load).await.unwrap();
    assert_eq!((report.requests, report.successes), (9, 6));
}
