// SPDX-License-Identifier: Apache-2.0
//! `GET /metrics` over HTTP, in a thread of its own: a slow reader delays no decision.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::{Snapshot, Wanted, expose};
use crate::engines::Engines;

/// The value of `--metrics` that means "nowhere".
pub const NOWHERE: &str = "none";
/// Connections served at a time; more wait.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may take with its request, and all in all.
const REQUEST_MAX: Duration = Duration::from_secs(5);
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// How long the daemon or an engine may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Why metrics are served nowhere.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// It is no address.
    #[error("--metrics {given:?} is no ADDRESS:PORT: give one like 127.0.0.1:9764, or none")]
    Address {
        /// What was given.
        given: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened at.
    #[error(
        "Cannot serve metrics at {address}: `ss -ltnp` shows who does; give another address by \
         KEMARI_METRICS"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// No thread.
    #[error("Cannot start the metrics thread")]
    Thread(#[source] io::Error),
}

/// Starts to serve at an address, or nowhere.
///
/// # Errors
/// When the address is none or cannot be listened at. An agent does without.
pub fn start(
    given: &str,
    wanted: UnboundedSender<Wanted>,
    engines: Engines,
) -> Result<(), MetricsError> {
    if given == NOWHERE {
        return Ok(());
    }
    let wrong = |source| MetricsError::Address {
        given: given.to_owned(),
        source,
    };
    let address = given
        .to_socket_addrs()
        .map_err(wrong)?
        .next()
        .ok_or_else(|| wrong(io::ErrorKind::NotFound.into()))?;
    let failed = |source| MetricsError::Listen { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    if !local.ip().is_loopback() {
        warn!(%local, "Metrics are served beyond this host: whoever reaches the port can read them");
    }
    let source = Arc::new(Source { wanted, engines });
    thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let served = runtime.and_then(|runtime| runtime.block_on(serve(listener, source)));
            if let Err(error) = served {
                warn!(%error, "Metrics are not served any more");
            }
        })
        .map_err(MetricsError::Thread)?;
    info!(address = %local, "Serving metrics");
    Ok(())
}

/// Where snapshots come from.
struct Source {
    wanted: UnboundedSender<Wanted>,
    engines: Engines,
}

impl Source {
    async fn snapshot(&self) -> Option<Snapshot> {
        let (answer, answered) = oneshot::channel();
        self.wanted.send(Wanted(answer)).ok()?;
        let mut snapshot = timeout(ANSWER_MAX, answered).await.ok()?.ok()?;
        let mut figures = BTreeMap::new();
        for (vm, proxy) in self.engines.known() {
            if let Ok(Ok(told)) = timeout(ANSWER_MAX, proxy.figures()).await {
                figures.insert(vm, told);
            }
        }
        snapshot.figures = figures;
        Some(snapshot)
    }
}

async fn serve(listener: std::net::TcpListener, source: Arc<Source>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "A reader of metrics was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&source)));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_MAX)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(CONNECTION_MAX, connection).await {
                debug!(%peer, %error, "A reader of metrics left");
            }
            drop(permit);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    source: Arc<Source>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Only GET\n");
        let allowed = hyper::header::HeaderValue::from_static("GET");
        response.headers_mut().insert(ALLOW, allowed);
        return Ok(response);
    }
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "Metrics are at /metrics\n"));
    }
    let text = match source.snapshot().await {
        Some(snapshot) => expose::text_of(snapshot).ok(),
        None => None,
    };
    Ok(match text {
        Some(text) => {
            let mut response = plain(StatusCode::OK, text);
            let form = hyper::header::HeaderValue::from_static(expose::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, form);
            response
        }
        None => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "The agent does not answer; it waits for Corosync, or is ending\n",
        ),
    })
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use kemari_api::agent::ClusterView;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// What a server at a free port answers to this request.
    fn exchange(request: &str) -> String {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (wanted, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let (inputs, _) = tokio::sync::mpsc::unbounded_channel();
        let engines = Engines::without_any("n1".parse().unwrap(), inputs);
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.set_nonblocking(true).unwrap();
        let address = free.local_addr().unwrap();
        runtime.spawn(serve(free, Arc::new(Source { wanted, engines })));
        runtime.spawn(async move {
            while let Some(Wanted(answer)) = asked.recv().await {
                let _ = answer.send(Snapshot {
                    view: ClusterView {
                        node: "n1".parse().unwrap(),
                        quorate: true,
                        members: vec![],
                        agents: vec![],
                        replicas: vec![],
                        generations: vec![],
                    },
                    nodes: 3,
                    counters: Default::default(),
                    figures: BTreeMap::new(),
                });
            }
        });
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn metrics_are_where_prometheus_looks_and_nothing_else_is() {
        let get = |path: &str| {
            exchange(&format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            ))
        };
        let answer = get("/metrics");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains(expose::CONTENT_TYPE), "{answer}");
        assert!(answer.contains("\nkemari_nodes 3.0\n"), "{answer}");
        assert!(get("/").starts_with("HTTP/1.1 404 "));
        let post =
            "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        assert!(exchange(post).starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn a_wrong_address_is_named_and_none_is_fine() {
        let start = |given: &str| {
            let (wanted, _) = tokio::sync::mpsc::unbounded_channel();
            let (inputs, _) = tokio::sync::mpsc::unbounded_channel();
            let engines = Engines::without_any("n1".parse().unwrap(), inputs);
            super::start(given, wanted, engines)
        };
        assert!(start(NOWHERE).is_ok());
        let text = start("nonsense").unwrap_err().to_string();
        assert!(text.contains("\"nonsense\""), "{text}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let text = start(&address).unwrap_err().to_string();
        assert!(text.contains(&address), "{text}");
    }
}
