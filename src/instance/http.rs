//! The HTTP server of an instance: paths below `/v1`, JSON bodies, pcapng for captures, raw bytes for programs.
//!
//! `flatnet up` starts it on a thread of its own, with an executor of its own; each handler leaves a job at the
//! [`Desk`]. Invariants: a handler never blocks; a stream ends when the instance does; what a stream opened it closes.
//!
//! May depend on axum, tokio. Read first: [`super::Desk`].
//!
//! Above 400 lines because all paths and what they take stand in one list.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde::Deserialize;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::replays::Speed;
use super::{Desk, Instance, RequestError, entrances, health, objects};
use crate::args::{Kind, TraceProtocol};
use crate::entrance::Entrance;
use crate::packets::{Packet, PacketError, Packets};
use crate::recorder::Recorder;
use crate::trace::report::{Question, Report};
use crate::views::{
    ExecRequest, LedgerReport, LinkEntry, LinkRequest, OffloadEntry, OffloadRequest, Problem, ReplayReport,
    Status, SubnetReport,
};

/// The trailer with a program's exit code.
pub const EXIT_CODE: &str = "flatnet-exit-code";
/// The header with a program's number.
pub const PROGRAM: &str = "flatnet-program";
/// The header with a capture's number.
pub const CAPTURE: &str = "flatnet-capture";
/// The trailer with how many frames a capture lost.
pub const LOST: &str = "flatnet-lost";
/// Time between two looks for output or frames.
const POLL: Duration = Duration::from_millis(5);
/// Pieces of a stream that wait for a slow reader.
const STREAM_LIMIT: usize = 16;
/// How long open streams may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// A server that runs until [`Server::end`].
#[derive(Debug)]
pub struct Server {
    end: oneshot::Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Starts a server, which also lets clients in at the ports of this host, and tells at one how the node is; SIGINT, SIGTERM and SIGHUP end its instance, or have it read
    /// its routes; a second of the first two says `hurry`.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(
        listener: UnixListener,
        desk: Desk,
        (entrances, health): (Vec<Entrance>, Option<Entrance>),
        hurry: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("http".into());
        let thread = thread.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let result = runtime.block_on(serve(listener, desk, (entrances, health), (ended, hurry)));
            runtime.shutdown_background();
            result
        })?;
        Ok(Self { end, thread })
    }

    /// Lets open streams end and stops.
    ///
    /// # Errors
    /// The server had failed.
    pub fn end(self) -> io::Result<()> {
        // A server that failed hears nothing.
        let _ = self.end.send(());
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the server failed")))
    }
}

async fn serve(
    listener: UnixListener,
    desk: Desk,
    (entrances, probed): (Vec<Entrance>, Option<Entrance>),
    (ended, hurry): (oneshot::Receiver<()>, Arc<AtomicBool>),
) -> io::Result<()> {
    for entrance in entrances {
        tokio::spawn(entrances::run(entrance, desk.clone()));
    }
    if let Some(entrance) = probed {
        tokio::spawn(health::serve(entrance, desk.clone()));
    }
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let told = Arc::new(AtomicBool::new(false));
    for kind in signals {
        let (mut signal, desk) = (signal(kind)?, desk.clone());
        let (told, hurry) = (Arc::clone(&told), Arc::clone(&hurry));
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                if kind != SignalKind::hangup() && told.swap(true, Ordering::Relaxed) {
                    hurry.store(true, Ordering::Relaxed);
                }
                // When it ends already there is nothing to do.
                let _ = desk.ask(move |instance| instance.heed(kind)).await;
            }
        });
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router(desk)).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        result = &mut server => return result,
        _ = ended => {}
    }
    let _ = stop.send(());
    tokio::time::timeout(GRACE, server).await.unwrap_or(Ok(()))
}

fn router(desk: Desk) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/down", post(down))
        .route("/v1/show/{table}", get(show))
        .route("/v1/objects/{kind}", get(list_objects).delete(delete_object))
        .route("/v1/subnets", get(subnets))
        .route("/v1/links", get(links).post(change_link))
        .route("/v1/offloads", get(offloads).post(change_offloads))
        .route("/v1/replay", post(replay))
        .route("/v1/trace", post(trace))
        .route("/v1/exec", post(exec))
        .route("/v1/programs/{number}/input", post(input))
        .route("/v1/programs/{number}/signal", post(interrupt))
        .route("/v1/capture", get(capture))
        .route("/v1/captures/{number}/end", post(end_capture))
        .with_state(desk)
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Machine { .. }
            | Self::Node { .. }
            | Self::NoNode { .. }
            | Self::Elsewhere { .. }
            | Self::Link { .. }
            | Self::Ask(_)
            | Self::Point(_)
            | Self::Table(_)
            | Self::Object { .. }
            | Self::Program(_) => StatusCode::NOT_FOUND,
            Self::Setting(_) | Self::Offload(_) | Self::NoMachine(_) | Self::Replay(_) | Self::Kept(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::Drive(_) | Self::Store(_) | Self::Capture(_) | Self::Exec { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Ending | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(Problem { error: self.to_string(), help: self.help() })).into_response()
    }
}

async fn status(State(desk): State<Desk>) -> Result<Json<Status>, RequestError> {
    desk.ask(|instance| instance.status()).await.map(Json)
}

async fn down(State(desk): State<Desk>) -> Result<Json<LedgerReport>, RequestError> {
    let (sender, report) = oneshot::channel();
    desk.ask(|instance| instance.end(Some(sender))).await?;
    report.await.map(Json).map_err(|_| RequestError::Ending)
}

/// Which node's table.
#[derive(Debug, Deserialize)]
struct ShowQuery {
    node: String,
}

async fn show(
    State(desk): State<Desk>,
    Path(table): Path<String>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<Value>, RequestError> {
    desk.ask(move |instance| instance.show(&table, &query.node)).await?.map(Json)
}

/// Which object; all of the kind without a name.
#[derive(Debug, Deserialize)]
struct ObjectsQuery {
    name: Option<String>,
}

async fn list_objects(
    State(desk): State<Desk>,
    Path(kind): Path<Kind>,
    Query(ObjectsQuery { name }): Query<ObjectsQuery>,
) -> Result<Json<Vec<Value>>, RequestError> {
    let store = desk.ask(|instance| instance.drive.network.store.clone()).await?;
    objects::list(&store, kind, name.as_deref()).await.map(Json)
}

async fn delete_object(
    State(desk): State<Desk>,
    Path(kind): Path<Kind>,
    Query(ObjectsQuery { name }): Query<ObjectsQuery>,
) -> Result<Json<()>, RequestError> {
    let name = name.unwrap_or_default();
    let store = desk.ask(|instance| instance.drive.network.store.clone()).await?;
    objects::delete(&store, kind, &name).await?;
    // It goes as the agents take it away, before the answer.
    desk.ask(|instance| instance.drive.settle()).await.map(Json)
}

async fn subnets(State(desk): State<Desk>) -> Result<Json<SubnetReport>, RequestError> {
    desk.ask(|instance| instance.subnet_source()).await?.list().await.map(Json)
}

/// Which pair; all that differ without one.
#[derive(Debug, Deserialize)]
struct LinksQuery {
    from: Option<String>,
    to: Option<String>,
}

async fn links(
    State(desk): State<Desk>,
    Query(LinksQuery { from, to }): Query<LinksQuery>,
) -> Result<Json<Vec<LinkEntry>>, RequestError> {
    desk.ask(move |instance| instance.links(from.as_deref().zip(to.as_deref()))).await?.map(Json)
}

async fn change_link(
    State(desk): State<Desk>,
    Json(request): Json<LinkRequest>,
) -> Result<Json<Vec<LinkEntry>>, RequestError> {
    desk.ask(move |instance| instance.change_link(&request)).await?.map(Json)
}

/// Which point; all without one.
#[derive(Debug, Deserialize)]
struct OffloadsQuery {
    point: Option<String>,
}

async fn offloads(
    State(desk): State<Desk>,
    Query(OffloadsQuery { point }): Query<OffloadsQuery>,
) -> Result<Json<Vec<OffloadEntry>>, RequestError> {
    desk.ask(move |instance| instance.offloads(point.as_deref())).await?.map(Json)
}

async fn change_offloads(
    State(desk): State<Desk>,
    Json(request): Json<OffloadRequest>,
) -> Result<Json<Vec<OffloadEntry>>, RequestError> {
    desk.ask(move |instance| instance.change_offloads(&request)).await?.map(Json)
}

#[derive(Deserialize)]
struct TraceQuery {
    from: String,
    to: String,
    protocol: Option<TraceProtocol>,
    port: Option<u16>,
}

async fn trace(
    State(desk): State<Desk>,
    Query(query): Query<TraceQuery>,
) -> Result<Json<Report>, RequestError> {
    let TraceQuery { from, to, protocol, port } = query;
    let question = Question { from, to, protocol: protocol.map(TraceProtocol::probe), port };
    desk.ask(move |instance| instance.start_trace(question)).await??;
    loop {
        if let Some(report) = desk.ask(Instance::end_trace).await?? {
            return Ok(Json(report));
        }
        tokio::time::sleep(POLL).await;
    }
}

type Pieces = mpsc::Sender<Result<Frame<Bytes>, RequestError>>;

/// Makes a body of what is sent; an error breaks it off, so that its reader knows that it is not whole.
fn streamed() -> (Pieces, Body) {
    let (sender, receiver) = mpsc::channel(STREAM_LIMIT);
    let pieces = stream::unfold(receiver, |mut receiver: mpsc::Receiver<_>| async {
        let frame = receiver.recv().await?;
        Some((frame, receiver))
    });
    (sender, Body::new(StreamBody::new(pieces)))
}

async fn exec(State(desk): State<Desk>, Json(request): Json<ExecRequest>) -> Result<Response, RequestError> {
    let ExecRequest { pod, command } = request;
    let number = desk.ask(move |instance| instance.start_program(&pod, command)).await??;
    let (pieces, body) = streamed();
    tokio::spawn(async move {
        if let Err(error) = follow_program(&desk, number, &pieces).await {
            // The reader may have gone as well.
            let _ = pieces.send(Err(error)).await;
        }
        let _ = desk.ask(move |instance| instance.forget_program(number)).await;
    });
    let mut response = body.into_response();
    response.headers_mut().insert(PROGRAM, HeaderValue::from(number));
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static(EXIT_CODE));
    Ok(response)
}

async fn follow_program(desk: &Desk, number: u64, pieces: &Pieces) -> Result<(), RequestError> {
    loop {
        let output = desk.ask(move |instance| instance.program_output(number)).await??;
        let written = !output.bytes.is_empty();
        if written && pieces.send(Ok(Frame::data(Bytes::from(output.bytes)))).await.is_err() {
            return Ok(());
        }
        if let Some(code) = output.exit_code {
            let mut trailers = HeaderMap::new();
            trailers.insert(EXIT_CODE, HeaderValue::from(code));
            // The reader has gone; the program has ended anyway.
            let _ = pieces.send(Ok(Frame::trailers(trailers))).await;
            return Ok(());
        }
        if rest(pieces).await.is_none() {
            return Ok(());
        }
    }
}

/// Waits for the next look; `None` when the reader has gone.
async fn rest(pieces: &Pieces) -> Option<()> {
    tokio::select! {
        () = pieces.closed() => None,
        () = tokio::time::sleep(POLL) => Some(()),
    }
}

async fn input(
    State(desk): State<Desk>,
    Path(number): Path<u64>,
    mut body: Body,
) -> Result<StatusCode, RequestError> {
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(bytes) = frame.into_data() {
            let bytes = Some(bytes.to_vec());
            desk.ask(move |instance| instance.program_input(number, bytes)).await??;
            while !desk.ask(move |instance| instance.program_wants_input(number)).await?? {
                tokio::time::sleep(POLL).await;
            }
        }
    }
    desk.ask(move |instance| instance.program_input(number, None)).await??;
    Ok(StatusCode::NO_CONTENT)
}

async fn interrupt(State(desk): State<Desk>, Path(number): Path<u64>) -> Result<StatusCode, RequestError> {
    desk.ask(move |instance| instance.interrupt_program(number)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Which point, and how many frames.
#[derive(Debug, Deserialize)]
struct CaptureQuery {
    point: String,
    count: Option<u64>,
}

async fn capture(
    State(desk): State<Desk>,
    Query(CaptureQuery { point, count }): Query<CaptureQuery>,
) -> Result<Response, RequestError> {
    let (number, mut recorder) = desk.ask(move |instance| instance.open_capture(&point)).await??;
    let (pieces, body) = streamed();
    tokio::spawn(async move {
        let followed = follow_capture(&desk, number, &mut recorder, count.unwrap_or(u64::MAX), &pieces).await;
        let _ = desk.ask(move |instance| instance.close_capture(number)).await;
        let lost = HeaderMap::from_iter([(HeaderName::from_static(LOST), recorder.all_lost.into())]);
        // As for programs.
        let _ = pieces.send(followed.map(|()| Frame::trailers(lost))).await;
    });
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-pcapng"));
    headers.insert(CAPTURE, HeaderValue::from(number));
    headers.insert(header::TRAILER, HeaderValue::from_static(LOST));
    Ok(response)
}

async fn end_capture(State(desk): State<Desk>, Path(number): Path<u32>) -> Result<StatusCode, RequestError> {
    desk.ask(move |instance| instance.end_capture(number)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn follow_capture(
    desk: &Desk,
    number: u32,
    recorder: &mut Recorder,
    mut left: u64,
    pieces: &Pieces,
) -> Result<(), RequestError> {
    let mut is_last = false;
    loop {
        let bytes = recorder.take();
        if !bytes.is_empty() && pieces.send(Ok(Frame::data(Bytes::from(bytes)))).await.is_err() {
            return Ok(());
        }
        if left == 0 || is_last || rest(pieces).await.is_none() {
            return Ok(());
        }
        let taken;
        (taken, is_last) = desk.ask(move |instance| instance.take_captured(number)).await??;
        for frame in taken.frames {
            if left == 0 {
                break;
            }
            recorder.add(&frame)?;
            left -= 1;
        }
        // Whoever has as many as were asked for misses none that came after.
        if left > 0 {
            recorder.lose(taken.lost);
        }
    }
}

/// Where frames are to come from, and how fast.
#[derive(Debug, Deserialize)]
struct ReplayQuery {
    point: String,
    speed: String,
}

/// Closes a recording whose sender has gone.
struct Closing(Desk, u32);

impl Drop for Closing {
    fn drop(&mut self) {
        let number = self.1;
        self.0.leave(move |instance| drop(instance.close_replay(number, 0)));
    }
}

async fn replay(
    State(desk): State<Desk>,
    Query(ReplayQuery { point, speed }): Query<ReplayQuery>,
    mut body: Body,
) -> Result<Json<ReplayReport>, RequestError> {
    let speed = Speed::parse(&speed).map_err(RequestError::Replay)?;
    let number = desk.ask(move |instance| instance.open_replay(&point, speed)).await??;
    let closing = Closing(desk, number);
    let played = play(&closing, &mut body).await;
    if played.is_err() {
        // Whoever still sends reads the answer only afterwards.
        while body.frame().await.is_some_and(|frame| frame.is_ok()) {}
    }
    let cut = played?;
    let report = closing.0.ask(move |instance| instance.close_replay(number, cut)).await?;
    report.map(Json).ok_or(RequestError::Ending)
}

/// Plays a body; returns how many frames it did not hold whole.
async fn play(closing: &Closing, body: &mut Body) -> Result<u64, RequestError> {
    let damaged = |error: PacketError| RequestError::Replay(error.to_string());
    let (mut packets, mut read) = (Packets::default(), VecDeque::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| RequestError::Replay("the file ended early".to_owned()))?;
        let Ok(bytes) = frame.into_data() else { continue };
        packets.push(&bytes);
        while let Some(packet) = packets.take().map_err(damaged)? {
            read.push_back(packet);
        }
        while !read.is_empty() {
            read = feed(closing, read).await?.0;
        }
    }
    packets.end().map_err(damaged)?;
    while !feed(closing, VecDeque::new()).await?.1 {}
    Ok(packets.cut)
}

/// Gives the network what it has room for; returns the rest, and whether all has set out.
async fn feed(
    Closing(desk, number): &Closing,
    mut packets: VecDeque<Packet>,
) -> Result<(VecDeque<Packet>, bool), RequestError> {
    let (number, before) = (*number, packets.len());
    let (packets, done) = desk
        .ask(move |instance| {
            let done = instance.feed_replay(number, &mut packets);
            (packets, done)
        })
        .await?;
    let done = done?;
    if packets.len() == before && !done {
        tokio::time::sleep(POLL).await;
    }
    Ok((packets, done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_fails_is_broken_off_and_does_not_just_end() {
        let collected = |last: Result<Frame<Bytes>, RequestError>| {
            futures::executor::block_on(async {
                let (pieces, body) = streamed();
                pieces.send(Ok(Frame::data(Bytes::from_static(b"some")))).await.unwrap();
                pieces.send(last).await.unwrap();
                drop(pieces);
                body.collect().await
            })
        };
        assert!(collected(Ok(Frame::trailers(HeaderMap::new()))).is_ok());
        let broken = collected(Err(RequestError::Setting("a worker does not answer".into())));
        assert!(broken.unwrap_err().to_string().contains("does not answer"));
    }
}
