//! Egresses: GStreamer publishes a room as LiveKit Egress does, and a track goes to a WebSocket.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::super::pace::Pace;
use super::twirp::{Answer, room_is_missing, text};
use super::voices::{FRAME, FRAME_MS, Frame};
use super::{Participant, Server, Task, now_ms};

/// Time until an egress says that it is active.
const STARTING_MS: u64 = 200;
/// One that has published for so long tries again when its connection breaks, and for how long.
const HEALTHY_MS: u64 = 1000;
const RETRIES_MS: u64 = 30_000;
const RETRY_PAUSE_MS: u64 = 100;

/// What an egress does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// Publishes until it is stopped, so many ms behind the room.
    Publishes(u64),
    /// Says that it is active and sends nothing.
    SaysActive,
    /// Never says more than that it is starting.
    Stuck,
    /// Fails as soon as it has begun.
    Fails,
}

pub struct Egress {
    pub id: String,
    pub room_id: String,
    pub room_name: String,
    pub status: &'static str,
    started_ns: u64,
    ended_ns: u64,
    error: String,
    /// `room_composite` or `track`.
    kind: &'static str,
    /// In `snake_case`, with what is secret taken out as LiveKit does.
    request: Value,
    urls: Vec<String>,
    task: Option<Task>,
}

impl Egress {
    pub fn is_running(&self) -> bool {
        matches!(self.status, "EGRESS_STARTING" | "EGRESS_ACTIVE")
    }

    pub fn is_over(&self) -> bool {
        !self.is_running() && self.status != "EGRESS_ENDING"
    }

    pub fn track(&self) -> String {
        text(&self.request, "track_id")
    }

    pub fn kill(&mut self) {
        self.task = None;
    }

    pub fn snake(&self) -> Value {
        let stream = |url: &String| {
            let (status, ended) = if self.is_running() { ("ACTIVE", 0) } else { ("FINISHED", self.ended_ns) };
            json!({
                "url": url, "started_at": self.started_ns.to_string(), "ended_at": ended.to_string(), "duration": "0",
                "status": status, "error": "", "last_retry_at": "0", "retries": 0,
            })
        };
        let mut all = json!({
            "egress_id": self.id, "room_id": self.room_id, "room_name": self.room_name, "source_type": "EGRESS_SOURCE_TYPE_SDK",
            "status": self.status, "started_at": self.started_ns.to_string(), "ended_at": self.ended_ns.to_string(),
            "updated_at": now_ns().to_string(), "details": "", "error": self.error, "error_code": 0,
            "stream_results": self.urls.iter().map(stream).collect::<Vec<_>>(), "file_results": [], "segment_results": [],
            "image_results": [], "manifest_location": "", "backup_storage_used": false, "retry_count": 0,
        });
        all[self.kind] = self.request.clone();
        all
    }

    /// As webhooks have it: zero values left out, and `EGRESS_STARTING` is zero.
    fn camel(&self) -> Value {
        let streams: Vec<_> = self.urls.iter().map(|url| json!({"url": url})).collect();
        let mut all = json!({
            "egressId": self.id, "roomId": self.room_id, "roomName": self.room_name,
            "startedAt": self.started_ns.to_string(), "updatedAt": now_ns().to_string(),
        });
        if self.status != "EGRESS_STARTING" {
            all["status"] = json!(self.status);
        }
        if !streams.is_empty() {
            all["streamResults"] = json!(streams);
        }
        if self.ended_ns != 0 {
            all["endedAt"] = json!(self.ended_ns.to_string());
        }
        if !self.error.is_empty() {
            all["error"] = json!(self.error);
        }
        match self.kind {
            "track" => {
                let url = &self.request["websocket_url"];
                all["track"] = json!({"roomName": self.room_name, "trackId": self.track(), "websocketUrl": url});
            }
            _ => {
                let outputs = json!([{"protocol": "RTMP", "urls": self.urls}]);
                all["roomComposite"] = json!({"roomName": self.room_name, "audioOnly": true, "streamOutputs": outputs});
            }
        }
        all
    }
}

fn now_ns() -> u64 {
    now_ms() * 1_000_000
}

/// Everything after the last slash, with three letters left at each end.
fn redacted(url: &str) -> String {
    let (place, key) = url.rsplit_once('/').expect("a URL");
    match key.len() {
        ..8 => format!("{place}/{{...}}"),
        n => format!("{place}/{{{}...{}}}", &key[..3], &key[n - 3..]),
    }
}

impl Server {
    pub fn start_room_composite(self: &Arc<Self>, request: &Value) -> Answer {
        let outputs = request["stream_outputs"].as_array().into_iter().flatten();
        let urls = outputs.flat_map(|output| output["urls"].as_array().cloned().unwrap_or_default());
        let urls: Vec<String> = urls.filter_map(|url| url.as_str().map(str::to_owned)).collect();
        let hidden: Vec<String> = urls.iter().map(|url| redacted(url)).collect();
        let request = json!({
            "room_name": request["room_name"], "layout": "", "audio_only": request["audio_only"], "audio_mixing": "DEFAULT_MIXING",
            "video_only": false, "custom_base_url": "", "file_outputs": [], "segment_outputs": [], "image_outputs": [],
            "stream_outputs": [{"protocol": "RTMP", "urls": hidden}], "webhooks": [],
        });
        let place = urls.first().cloned().unwrap_or_default();
        self.start_egress("room_composite", request, hidden, move |server, id, manner, frames| {
            tokio::spawn(publish(server, id, manner, frames, place))
        })
    }

    pub fn start_track(self: &Arc<Self>, request: &Value) -> Answer {
        let (room, track) = (text(request, "room_name"), text(request, "track_id"));
        let url = text(request, "websocket_url");
        let request = json!({"room_name": room, "track_id": track, "websocket_url": url, "webhooks": []});
        let whose = {
            let state = self.state.lock();
            let participants = state.rooms.get(&room).into_iter().flat_map(|room| room.participants.values());
            let mut whose = participants.filter(|participant| participant.tracks.iter().any(|of| of.sid == track));
            whose.next().map(|participant| participant.identity.clone())
        };
        let whose = whose.ok_or_else(room_is_missing)?;
        self.start_egress("track", request, Vec::new(), move |server, id, manner, frames| {
            tokio::spawn(send_track(server, id, manner, frames, url, whose))
        })
    }

    fn start_egress(
        self: &Arc<Self>,
        kind: &'static str,
        request: Value,
        urls: Vec<String>,
        run: impl FnOnce(Arc<Self>, String, Manner, Receiver<Arc<Frame>>) -> tokio::task::JoinHandle<()>,
    ) -> Answer {
        let id = self.id("EG");
        let mut state = self.state.lock();
        let name = text(&request, "room_name");
        let Some(room) = state.rooms.get(&name) else { return Err(room_is_missing()) };
        let (room_id, frames) = (room.sid.clone(), room.voices.listen());
        let manner = match state.manners.len() {
            0 => Manner::Publishes(0),
            1 => state.manners[0].clone(),
            _ => state.manners.pop_front().expect("there are some"),
        };
        let mut egress = Egress {
            id: id.clone(),
            room_id,
            room_name: name.clone(),
            status: "EGRESS_STARTING",
            started_ns: now_ns(),
            ended_ns: 0,
            error: String::new(),
            kind,
            request,
            urls,
            task: None,
        };
        egress.task = Some(Task(run(self.clone(), id.clone(), manner, frames)));
        let (answer, event) = (egress.snake(), egress.camel());
        state.egresses.push(egress);
        drop(state);
        self.webhooks.send(self, "egress_started", json!({"egressInfo": event}));
        let machine = Participant { kind: "EGRESS", is_hidden: true, ..Participant::new(self, &id, "") };
        self.join(&name, machine);
        Ok(answer)
    }

    /// Gives what the API tells of it.
    pub fn set_egress_status(&self, id: &str, status: &'static str) -> Option<Value> {
        let mut state = self.state.lock();
        let egress = state.egresses.iter_mut().find(|egress| egress.id == id && !egress.is_over())?;
        egress.status = status;
        let (answer, event) = (egress.snake(), egress.camel());
        drop(state);
        self.webhooks.send(self, "egress_updated", json!({"egressInfo": event}));
        Some(answer)
    }

    /// It is over, and was not before.
    pub fn end_egress(&self, id: &str, status: &'static str, error: &str) {
        let mut state = self.state.lock();
        let Some(egress) = state.egresses.iter_mut().find(|egress| egress.id == id && !egress.is_over()) else {
            return;
        };
        egress.status = status;
        egress.ended_ns = now_ns();
        egress.error = error.to_owned();
        egress.kill();
        let (room, event) = (egress.room_name.clone(), egress.camel());
        drop(state);
        self.leave(&room, id);
        self.webhooks.send(self, "egress_ended", json!({"egressInfo": event}));
    }

    pub fn end_track_egresses(&self, track: &str) {
        let ids: Vec<String> = {
            let state = self.state.lock();
            let of_track = state.egresses.iter().filter(|egress| egress.is_running() && egress.track() == track);
            of_track.map(|egress| egress.id.clone()).collect()
        };
        ids.iter().for_each(|id| self.end_egress(id, "EGRESS_COMPLETE", ""));
    }

    /// The beginning of every egress. None: it does not go on.
    async fn begin(&self, id: &str, manner: &Manner) -> Option<u64> {
        Pace::begin().reaches(STARTING_MS).await;
        match manner {
            Manner::Fails => {
                self.end_egress(id, "EGRESS_FAILED", "failed on purpose");
                None
            }
            Manner::Stuck => None,
            Manner::SaysActive => {
                self.set_egress_status(id, "EGRESS_ACTIVE");
                None
            }
            Manner::Publishes(behind_ms) => Some(*behind_ms),
        }
    }
}

/// As LiveKit Egress does: AAC in FLV, from GStreamer's rtmp2sink.
fn gstreamer(url: &str) -> Child {
    let pipeline = format!(
        "fdsrc fd=0 ! rawaudioparse format=pcm pcm-format=s16le sample-rate=48000 num-channels=2 ! audioconvert ! \
         avenc_aac bitrate=64000 ! aacparse ! flvmux streamable=true ! \
         rtmp2sink async-connect=false sync=false async=false location={url}"
    );
    let mut gst = Command::new("gst-launch-1.0");
    gst.arg("-q").args(pipeline.split_whitespace()).kill_on_drop(true);
    gst.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    gst.spawn().expect("GStreamer is installed (apt-get install gstreamer1.0-tools gstreamer1.0-plugins-bad)")
}

fn stereo(mono: &[i16]) -> Vec<u8> {
    mono.iter().flat_map(|sample| [sample.to_le_bytes(), sample.to_le_bytes()].concat()).collect()
}

async fn publish(server: Arc<Server>, id: String, manner: Manner, mut frames: Receiver<Arc<Frame>>, url: String) {
    let Some(behind_ms) = server.begin(&id, &manner).await else { return };
    server.set_egress_status(&id, "EGRESS_ACTIVE");
    let mut late = VecDeque::from(vec![None; (behind_ms / FRAME_MS) as usize]);
    let (mut was_healthy, mut broken) = (false, None);
    loop {
        let connection = Pace::begin();
        let is_room_over = !connected(&url, &mut frames, &mut late).await;
        if is_room_over {
            return;
        }
        if connection.is_past(HEALTHY_MS) {
            (was_healthy, broken) = (true, None);
        }
        let broken = broken.get_or_insert_with(Pace::begin);
        if !was_healthy || broken.is_past(RETRIES_MS) {
            return server.end_egress(&id, "EGRESS_FAILED", "could not connect to the stream's URL");
        }
        Pace::begin().reaches(RETRY_PAUSE_MS).await;
    }
}

/// Publishes until the connection breaks. False: the room is gone, and with it whoever could be heard.
async fn connected(url: &str, frames: &mut Receiver<Arc<Frame>>, late: &mut VecDeque<Option<Arc<Frame>>>) -> bool {
    let mut gst = gstreamer(url);
    let mut input = gst.stdin.take().expect("a pipe");
    loop {
        match frames.recv().await {
            Ok(frame) => late.push_back(Some(frame)),
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return false,
        }
        let mono = late.pop_front().flatten().map(|frame| frame.mix());
        let written = input.write_all(&stereo(&mono.unwrap_or_else(|| vec![0; FRAME]))).await;
        if written.is_err() || gst.try_wait().is_ok_and(|ended| ended.is_some()) {
            let _ = gst.wait().await;
            return true;
        }
    }
}

async fn send_track(
    server: Arc<Server>,
    id: String,
    manner: Manner,
    mut frames: Receiver<Arc<Frame>>,
    url: String,
    whose: String,
) {
    if server.begin(&id, &manner).await.is_none() {
        return;
    }
    let mut request = url.into_client_request().expect("a URL");
    request.headers_mut().insert("content-type", "audio/x-raw".parse().expect("a value"));
    let Ok((mut socket, _)) = tokio_tungstenite::connect_async(request).await else {
        return server.end_egress(&id, "EGRESS_FAILED", "the WebSocket could not be opened");
    };
    server.set_egress_status(&id, "EGRESS_ACTIVE");
    let mut was_muted = false;
    loop {
        let frame = match frames.recv().await {
            Ok(frame) => frame,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let is_muted = frame.muted.contains(&whose);
        let silence = vec![0; FRAME];
        let sent = match (is_muted, was_muted) {
            (true, true) => Ok(()),
            (false, false) => {
                let voice = frame.by_identity.get(&whose).unwrap_or(&silence);
                socket.send(Message::binary(stereo(voice))).await
            }
            _ => socket.send(Message::text(format!("{{\"muted\":{is_muted}}}"))).await,
        };
        was_muted = is_muted;
        // It does not try again.
        if sent.is_err() {
            return server.end_egress(&id, "EGRESS_FAILED", "write failed");
        }
    }
}
