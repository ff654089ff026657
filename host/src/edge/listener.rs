//! Connections: accepted up to a limit, served HTTP/1.1, and closed when they say nothing.
//!
//! A caller that does not send the head of its next request in time is cut off, so that silent
//! connections cannot use up the limit; so is one that does not take an answer in the time for a
//! body. How long a body may take is bounded in `body`, how long an
//! answer may take by the deadline of the prediction.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::observe::Way;
use crate::config::Limits;
use crate::observe::meters::Counted;

/// How long to wait when the machine refuses connections, for want of files or memory: short
/// enough that nobody notices when it is over, long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serve until `stopping` says otherwise, then finish the requests that are under way.
pub async fn serve(
    listener: TcpListener,
    endpoints: Router,
    limits: Limits,
    way: Way,
    mut stopping: watch::Receiver<bool>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time);
    let mut connections = JoinSet::new();
    let mut refusing = false;
    loop {
        // Over the limit, callers wait in the system's own queue until a connection ends.
        let room = connections.len() < limits.connections;
        let accepted = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if room => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                refusing = false;
                let (endpoints, http) = (endpoints.clone(), http.clone());
                let (way, stopping) = (way.clone(), stopping.clone());
                connections.spawn(async move {
                    way.meters().accepted.count();
                    let _open = Counted::on(&way.meters().open);
                    connection(stream, endpoints, http, limits.body_time, stopping).await;
                });
            }
            // The caller left while it waited.
            Err(error) if is_of_caller(&error) => {}
            Err(error) => {
                if !refusing {
                    tracing::error!(%error, "cannot accept connections");
                }
                refusing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Nobody may connect any more.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn is_of_caller(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    endpoints: Router,
    http: http1::Builder,
    take_time: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    // Answers are written at once, so there is nothing to gather. This and the next fail on a
    // connection that has ended, which the first read tells as well.
    let _ = stream.set_nodelay(true);
    // A caller that does not take its answers would hold the connection for ever.
    let take_time = u32::try_from(take_time.as_millis()).unwrap_or(u32::MAX);
    let _ = set_tcp_user_timeout(&stream, take_time);
    let asked = AtomicBool::new(false);
    let endpoints = TowerToHyperService::new(endpoints);
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        endpoints.call(request)
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // What has arrived is looked at first. How a connection ends concerns its caller only.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = stopped(&mut stopping) => {}
    }
    // hyper closes connections between two requests by itself, but would wait for the rest of a
    // first head.
    if asked.load(Ordering::Relaxed) {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}
