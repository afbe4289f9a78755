//! The `/rtc` of the LiveKit server for tests: signalling as it was captured, one peer connection that the server offers
//! (data channels first, a section of audio for each subscription after) and one that it answers.
//!
//! Who speaks is told by LiveKit's rules: deltas, a look every 400 ms, levels in eighths, only of whom a participant is
//! subscribed to. A participant that never completes ICE is sent out, and a room without people is closed although agents
//! are in it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::stream;
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use stenocast::livekit::rtc::crypto;
use stenocast::livekit::wire::{
    DataPacket, JoinResponse, LeaveRequest, ParticipantInfo, ParticipantUpdate, Payload, Pong, Request, Response, Room,
    ServerInfo, SessionDescription, SignalRequest, SignalResponse, SpeakerInfo, SpeakersChanged, TrackInfo,
    TrickleRequest, UserPacket, number,
};
use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::channel::{ChannelConfig, ChannelId, Reliability};
use str0m::media::{Direction, MediaKind};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};
use tokio::net::UdpSocket;
use tokio::sync::{broadcast, mpsc};

use super::super::pace::Pace;
use super::voices::{FRAME, Frame};
use super::{Participant, Server, Task};

/// LiveKit looks at who speaks so often.
const SPEAKER_INTERVAL_MS: u64 = 400;
/// Participants and rooms are looked at so often.
const TICK_MS: u64 = 20;
/// Louder than this (−35 dBov) is speech.
const SPEECH: f64 = 583.0;

/// How the server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signalling {
    Normal,
    /// Whatever comes by UDP is lost.
    NoUdp,
    /// 401, with its reason at `/rtc/validate`.
    Refuses,
    ClosesAtOnce,
    /// Upgrades and says nothing.
    SaysNothing,
    /// Frames that are none, and text, before and after the join.
    Garbage,
    /// Says nothing any more after the join, not even to pings.
    FallsSilent,
}

#[derive(Clone, Copy)]
pub struct Settings {
    pub signalling: Signalling,
    /// Who has no WebRTC by then is sent out.
    pub join_timeout: Duration,
    /// A room is closed so long after its last human.
    pub departure_timeout: Duration,
    pub ping_s: (i32, i32),
}

/// A connection to `/rtc` as it was made, and what became of it.
#[derive(Debug, Clone)]
pub struct Visit {
    pub room: String,
    pub identity: String,
    pub grants: Value,
    pub query: String,
    pub is_active: bool,
    /// The reason that the server gave, or 1 where the client left by itself, or -1 where it just went.
    pub left: Option<i32>,
    pub subscribed: HashSet<String>,
    pub disabled: HashSet<String>,
}

impl Visit {
    /// Tracks whose media the server would send.
    pub fn wants_media(&self) -> usize {
        self.subscribed.difference(&self.disabled).count()
    }
}

enum Order {
    Say(Box<Response>),
    Data(bool, Vec<u8>),
    Raw(ws::Message),
    Leave { reason: i32, action: i32 },
}

struct Link {
    visit: usize,
    room: String,
    /// A room that is made again under the same name is another one.
    room_sid: String,
    identity: String,
    sid: String,
    is_hidden: bool,
    orders: mpsc::UnboundedSender<Order>,
    /// Participants as they were last told, by sid.
    told: BTreeMap<String, ParticipantInfo>,
    speaking: HashMap<String, f32>,
}

/// Hears the voices of a room, and what it has heard since it was asked.
type Ear = (broadcast::Receiver<Arc<Frame>>, Vec<Arc<Frame>>);

/// The part of the server that is about `/rtc`.
pub struct Hub {
    pub settings: Mutex<Settings>,
    links: Mutex<Vec<Link>>,
    visits: Mutex<Vec<Visit>>,
    /// By room and identity, where a test says it; else the voices tell.
    levels: Mutex<HashMap<(String, String), f32>>,
    listening: Mutex<HashMap<String, Ear>>,
    /// Rooms in which people were, and since when none is.
    deserted: Mutex<HashMap<String, Option<Pace>>>,
    ticker: Mutex<Option<Task>>,
}

impl Default for Hub {
    fn default() -> Self {
        let settings = Settings {
            signalling: Signalling::Normal,
            join_timeout: Duration::from_secs(60),
            departure_timeout: Duration::from_secs(20),
            ping_s: (5, 15),
        };
        Self {
            settings: Mutex::new(settings),
            links: Mutex::default(),
            visits: Mutex::default(),
            levels: Mutex::default(),
            listening: Mutex::default(),
            deserted: Mutex::default(),
            ticker: Mutex::default(),
        }
    }
}

pub fn routes(cfg: &mut web::ServiceConfig) {
    cfg.route("/rtc", web::get().to(join)).route("/rtc/validate", web::get().to(validate));
}

fn token_of(req: &HttpRequest) -> String {
    let bearer = req.headers().get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let query = req.query_string().split('&').find_map(|pair| pair.strip_prefix("access_token="));
    bearer.or(query).unwrap_or("").to_owned()
}

fn claims_of(token: &str) -> Value {
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).unwrap_or_default();
    serde_json::from_slice(&claims).unwrap_or_default()
}

fn refusal(server: &Server, req: &HttpRequest) -> Option<String> {
    if server.rtc.settings.lock().signalling == Signalling::Refuses {
        return Some("invalid API key: testkey".to_owned());
    }
    let token = token_of(req);
    match server.keys.verify(&token) {
        Err(error) => Some(format!("invalid token: {error}")),
        Ok(_) if claims_of(&token)["video"]["roomJoin"] != true => Some("permissions denied".to_owned()),
        Ok(_) => None,
    }
}

async fn validate(req: HttpRequest, server: web::Data<Server>) -> HttpResponse {
    match refusal(&server, &req) {
        Some(reason) => HttpResponse::Unauthorized().body(reason),
        None => HttpResponse::Ok().body("success"),
    }
}

async fn join(req: HttpRequest, body: web::Payload, server: web::Data<Server>) -> actix_web::Result<HttpResponse> {
    if refusal(&server, &req).is_some() {
        return Ok(HttpResponse::Unauthorized().finish());
    }
    let claims = claims_of(&token_of(&req));
    let (out, outgoing) = mpsc::unbounded_channel();
    let (incoming, requests) = mpsc::unbounded_channel();
    let server = server.into_inner();
    let visitor = Visitor { server, claims, query: req.query_string().to_owned(), out, requests };
    actix_rt::spawn(visitor.run());
    ws::start(Socket { incoming, outgoing: Some(outgoing) }, &req, body)
}

/// Passes frames on.
struct Socket {
    incoming: mpsc::UnboundedSender<SignalRequest>,
    outgoing: Option<mpsc::UnboundedReceiver<ws::Message>>,
}

impl Actor for Socket {
    type Context = ws::WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let outgoing = self.outgoing.take().expect("it starts once");
        let outgoing = stream::unfold(outgoing, async |mut outgoing| Some((outgoing.recv().await?, outgoing)));
        ctx.add_stream(Box::pin(outgoing));
    }
}

impl StreamHandler<ws::Message> for Socket {
    fn handle(&mut self, message: ws::Message, ctx: &mut Self::Context) {
        ctx.write_raw(message);
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        ctx.close(None);
        ctx.stop();
    }
}

impl StreamHandler<Result<ws::Message, ws::ProtocolError>> for Socket {
    fn handle(&mut self, message: Result<ws::Message, ws::ProtocolError>, ctx: &mut Self::Context) {
        match message {
            Ok(ws::Message::Binary(bytes)) => {
                if let Ok(request) = SignalRequest::decode(&bytes[..]) {
                    let _ = self.incoming.send(request);
                }
            }
            Ok(ws::Message::Ping(payload)) => ctx.pong(&payload),
            Ok(ws::Message::Close(_)) | Err(_) => ctx.stop(),
            Ok(_) => {}
        }
    }
}

/// One peer connection of the server's.
struct Pc {
    rtc: Box<Rtc>,
    reliable: Option<ChannelId>,
    lossy: Option<ChannelId>,
    pending: Option<SdpPendingOffer>,
    offers: u32,
    wants_offer: bool,
    is_open: bool,
    waiting: Vec<(bool, Vec<u8>)>,
}

impl Pc {
    fn new(addr: SocketAddr) -> Self {
        let config = RtcConfig::new().set_crypto_provider(crypto::provider()).set_ice_lite(true);
        let config = config.set_dtls_cert(crypto::certificate().expect("a certificate"));
        let mut rtc = Box::new(config.clear_codecs().enable_opus(true, true).build(Instant::now()));
        rtc.add_local_candidate(Candidate::host(addr, Protocol::Udp).expect("a candidate"));
        let waiting = Vec::new();
        Self { rtc, reliable: None, lossy: None, pending: None, offers: 0, wants_offer: false, is_open: false, waiting }
    }
}

/// The server's end of one connection.
struct Visitor {
    server: Arc<Server>,
    claims: Value,
    query: String,
    out: mpsc::UnboundedSender<ws::Message>,
    requests: mpsc::UnboundedReceiver<SignalRequest>,
}

impl Visitor {
    fn say(&self, response: Response) {
        let bytes = SignalResponse::from(response).encode_to_vec();
        let _ = self.out.send(ws::Message::Binary(bytes.into()));
    }

    async fn run(mut self) {
        let (server, video) = (self.server.clone(), self.claims["video"].clone());
        let settings = *server.rtc.settings.lock();
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let (room, identity, name) = (text(&video["room"]), text(&self.claims["sub"]), text(&self.claims["name"]));
        let visit = server.rtc.visit(Visit {
            room: room.clone(),
            identity: identity.clone(),
            grants: video.clone(),
            query: self.query.clone(),
            is_active: false,
            left: None,
            subscribed: HashSet::new(),
            disabled: HashSet::new(),
        });
        match settings.signalling {
            Signalling::ClosesAtOnce => return,
            Signalling::SaysNothing => {
                while self.requests.recv().await.is_some() {}
                return;
            }
            Signalling::Garbage => self.garbage(),
            _ => {}
        }
        let room_sid = server.create_room(&room);
        server.rtc.send_out(&room, &identity, number::DUPLICATE_IDENTITY);
        let mut who = Participant::new(&server, &identity, &name);
        (who.is_hidden, who.is_agent) = (video["hidden"] == true, video["agent"] == true);
        let (orders, mut inbox) = mpsc::unbounded_channel();
        let (told, participants) = server.rtc.participants(&server, &room, &identity);
        let sid = who.sid.clone();
        self.say(Response::Join(JoinResponse {
            room: Some(Room { sid: room_sid.clone(), name: room.clone() }),
            participant: Some(ParticipantInfo { state: number::JOINED, ..info(&who) }),
            other_participants: participants,
            subscriber_primary: true,
            alternative_url: String::new(),
            ping_interval: settings.ping_s.0,
            ping_timeout: settings.ping_s.1,
            server_info: Some(ServerInfo { version: "1.11.0".into(), protocol: 16 }),
        }));
        let is_hidden = who.is_hidden;
        let (link_room, link_identity) = (room.clone(), identity.clone());
        server.rtc.links.lock().push(Link {
            visit,
            room: link_room,
            room_sid,
            identity: link_identity,
            sid: sid.clone(),
            is_hidden,
            orders,
            told,
            speaking: HashMap::new(),
        });
        if settings.signalling == Signalling::Garbage {
            self.garbage();
        }
        if settings.signalling == Signalling::FallsSilent {
            while self.requests.recv().await.is_some() {}
        } else {
            self.say(Response::RefreshToken("a.newer.token".to_owned()));
            let left = self.serve(&settings, visit, &mut inbox, who, &room).await;
            server.rtc.visits.lock()[visit].left.get_or_insert(left);
        }
        server.rtc.links.lock().retain(|link| link.sid != sid);
        let is_ours = server
            .state
            .lock()
            .rooms
            .get(&room)
            .is_some_and(|room| room.participants.get(&identity).is_some_and(|participant| participant.sid == sid));
        if is_ours {
            server.leave(&room, &identity);
        }
    }

    fn garbage(&self) {
        let _ = self.out.send(ws::Message::Text("{\"join\":{}}".into()));
        for bytes in [&b"\xff\xff\xff\xff"[..], b"", &[0; 3000], &[82, 2, 10, 200]] {
            let _ = self.out.send(ws::Message::Binary(bytes.to_vec().into()));
        }
    }

    /// Until one of the two leaves; the reason.
    async fn serve(
        &mut self,
        settings: &Settings,
        visit: usize,
        inbox: &mut mpsc::UnboundedReceiver<Order>,
        who: Participant,
        room: &str,
    ) -> i32 {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let addr = socket.local_addr().expect("an address");
        let mut subscriber = Pc::new(addr);
        let mut changes = subscriber.rtc.sdp_api();
        let channel = |label: &str, reliability| ChannelConfig {
            label: label.to_owned(),
            ordered: true,
            reliability,
            ..ChannelConfig::default()
        };
        subscriber.reliable = Some(changes.add_channel_with_config(channel("_reliable", Reliability::Reliable)));
        let lossy = Reliability::MaxRetransmits { retransmits: 0 };
        subscriber.lossy = Some(changes.add_channel_with_config(channel("_lossy", lossy)));
        let (offer, pending) = changes.apply().expect("channels are a change");
        subscriber.pending = Some(pending);
        self.offer(&mut subscriber, &offer);
        self.trickle(addr, number::SUBSCRIBER);
        let mut pcs = [Some(subscriber), None];
        let (arrived, join_timeout_ms) = (Pace::begin(), settings.join_timeout.as_millis() as u64);
        let (mut is_active, mut buffer) = (false, vec![0; 2000]);
        loop {
            let mut due = Instant::now() + Duration::from_secs(1);
            for pc in pcs.iter_mut().flatten() {
                due = due.min(self.drive(pc, &socket, settings, &who, room).await);
            }
            if !is_active && pcs[0].as_ref().is_some_and(|pc| pc.rtc.is_connected()) {
                is_active = true;
                self.server.rtc.visits.lock()[visit].is_active = true;
                self.server.join(room, who.clone());
            }
            if let Some(pc) = pcs[0].as_mut().filter(|pc| pc.wants_offer && pc.pending.is_none()) {
                self.offer_audio(pc, visit);
            }
            let wait_ms = due.saturating_duration_since(Instant::now()).as_millis().max(1) as u64;
            let now = Pace::begin();
            tokio::select! {
                request = self.requests.recv() => match request.map(|request| request.message) {
                    Some(Some(Request::Leave(leave))) => return leave.reason,
                    Some(Some(request)) => self.requested(request, &mut pcs, visit, addr),
                    // Of a kind that is not played here.
                    Some(None) => {}
                    None => return -1,
                },
                order = inbox.recv() => match order {
                    Some(Order::Say(response)) => self.say(*response),
                    Some(Order::Data(is_reliable, bytes)) => {
                        if let Some(pc) = &mut pcs[0] {
                            pc.waiting.push((is_reliable, bytes));
                        }
                    }
                    Some(Order::Raw(message)) => _ = self.out.send(message),
                    Some(Order::Leave { reason, action }) => {
                        self.say(Response::Leave(LeaveRequest { reason, action }));
                        return reason;
                    }
                    None => return -1,
                },
                Ok((length, from)) = socket.recv_from(&mut buffer) => {
                    if settings.signalling != Signalling::NoUdp {
                        receive(&mut pcs, from, addr, &buffer[..length]);
                    }
                }
                () = now.reaches(wait_ms) => {
                    for pc in pcs.iter_mut().flatten() {
                        let _ = pc.rtc.handle_input(Input::Timeout(Instant::now()));
                    }
                }
                () = arrived.reaches(join_timeout_ms), if !is_active => {
                    let parts = json!({"participant": {"sid": who.sid, "identity": who.identity}});
                    self.server.webhooks.send(&self.server, "participant_connection_aborted", parts);
                    self.say(Response::Leave(LeaveRequest { reason: number::JOIN_FAILURE, action: number::DISCONNECT }));
                    return number::JOIN_FAILURE;
                }
            }
        }
    }

    fn offer(&self, pc: &mut Pc, offer: &SdpOffer) {
        pc.offers += 1;
        let (kind, sdp) = ("offer".to_owned(), offer.to_sdp_string());
        self.say(Response::Offer(SessionDescription { kind, sdp, id: pc.offers }));
    }

    fn offer_audio(&self, pc: &mut Pc, visit: usize) {
        pc.wants_offer = false;
        let tracks = self.server.rtc.visits.lock()[visit].subscribed.len() as u32;
        let mut changes = pc.rtc.sdp_api();
        for n in pc.offers..tracks.max(pc.offers) + 1 {
            changes.add_media(
                MediaKind::Audio,
                Direction::SendOnly,
                Some(format!("PA{n}")),
                Some(format!("TR{n}")),
                None,
            );
        }
        if let Some((offer, pending)) = changes.apply() {
            pc.pending = Some(pending);
            self.offer(pc, &offer);
        }
    }

    fn trickle(&self, addr: SocketAddr, target: i32) {
        // A candidate by TCP, and one of another family, are there as well.
        for candidate in [
            format!("candidate:1 1 udp 2130706431 {} {} typ host", addr.ip(), addr.port()),
            format!("candidate:2 1 tcp 1671430143 {} 7881 typ host tcptype passive", addr.ip()),
            "candidate:3 1 udp 2130706431 fe80::1 7882 typ host".to_owned(),
        ] {
            let candidate_init = json!({"candidate": candidate, "sdpMid": "0", "sdpMLineIndex": 0}).to_string();
            self.say(Response::Trickle(TrickleRequest { candidate_init, target, is_final: false }));
        }
    }

    fn requested(&self, request: Request, pcs: &mut [Option<Pc>; 2], visit: usize, addr: SocketAddr) {
        let rtc = &self.server.rtc;
        match request {
            Request::PingReq(ping) => {
                let timestamp = super::now_ms() as i64;
                self.say(Response::PongResp(Pong { last_ping_timestamp: ping.timestamp, timestamp }));
            }
            Request::Answer(answer) => {
                let Some(pc) = &mut pcs[0] else { return };
                // LiveKit's own client for Rust gives none.
                assert!([0, pc.offers].contains(&answer.id), "an answer has the number of its offer");
                let pending = pc.pending.take().expect("an offer to be answered");
                let answer = SdpAnswer::from_sdp_string(&answer.sdp).expect("an answer");
                pc.rtc.sdp_api().accept_answer(pending, answer).expect("an answer to this offer");
            }
            Request::Offer(offer) => {
                let pc = pcs[1].get_or_insert_with(|| Pc::new(addr));
                let description = SdpOffer::from_sdp_string(&offer.sdp).expect("an offer");
                let sdp = pc.rtc.sdp_api().accept_offer(description).expect("a good offer").to_sdp_string();
                self.say(Response::Answer(SessionDescription { kind: "answer".into(), sdp, id: offer.id }));
                self.trickle(addr, number::PUBLISHER);
            }
            Request::Trickle(trickle) => {
                let init: Value = serde_json::from_str(&trickle.candidate_init).unwrap_or_default();
                let candidate = Candidate::from_sdp_string(init["candidate"].as_str().unwrap_or(""));
                let pc = &mut pcs[usize::from(trickle.target == number::PUBLISHER)];
                if let (Ok(candidate), Some(pc)) = (candidate, pc) {
                    pc.rtc.add_remote_candidate(candidate);
                }
            }
            Request::Subscription(update) => {
                let mut visits = rtc.visits.lock();
                let subscribed = &mut visits[visit].subscribed;
                for sid in update.track_sids {
                    _ = if update.subscribe { subscribed.insert(sid) } else { subscribed.remove(&sid) };
                }
                pcs[0].iter_mut().for_each(|pc| pc.wants_offer = true);
            }
            Request::TrackSetting(settings) => {
                let mut visits = rtc.visits.lock();
                let disabled = &mut visits[visit].disabled;
                for sid in settings.track_sids {
                    _ = if settings.disabled { disabled.insert(sid) } else { disabled.remove(&sid) };
                }
            }
            Request::Leave(_) => {}
        }
    }

    /// Sends what a peer connection has to send; when it wants to be asked again.
    async fn drive(
        &self,
        pc: &mut Pc,
        socket: &UdpSocket,
        settings: &Settings,
        who: &Participant,
        room: &str,
    ) -> Instant {
        for (is_reliable, bytes) in std::mem::take(&mut pc.waiting) {
            let id = if is_reliable { pc.reliable } else { pc.lossy };
            let channel = id.filter(|_| pc.is_open).and_then(|id| pc.rtc.channel(id));
            let written = channel.map(|mut channel| channel.write(true, &bytes).unwrap_or(false));
            if written != Some(true) {
                pc.waiting.push((is_reliable, bytes));
            }
        }
        loop {
            match pc.rtc.poll_output().expect("a peer connection") {
                Output::Timeout(at) => return at,
                Output::Transmit(sent) => {
                    if settings.signalling != Signalling::NoUdp {
                        let _ = socket.send_to(&sent.contents, sent.destination).await;
                    }
                }
                Output::Event(Event::ChannelOpen(id, _)) if Some(id) == pc.reliable => pc.is_open = true,
                Output::Event(Event::ChannelData(data)) => self.data(&data.data, who, room),
                Output::Event(_) => {}
            }
        }
    }

    /// A message of a participant, by LiveKit's rules: agents alone may speak for others, in the header of a text stream.
    fn data(&self, bytes: &[u8], who: &Participant, room: &str) {
        if self.claims["video"]["canPublishData"] == false {
            return;
        }
        let mut packet = DataPacket::decode(bytes).expect("a data packet");
        let own = if who.is_hidden { String::new() } else { who.identity.clone() };
        let is_header = matches!(packet.payload, Some(Payload::StreamHeader(_)));
        let is_for_another = !packet.participant_identity.is_empty() && packet.participant_identity != who.identity;
        if !(who.is_agent && is_header && is_for_another) {
            packet.participant_identity = own;
        }
        packet.participant_sid = who.sid.clone();
        self.server.rtc.broadcast(room, Some(&who.sid), true, &packet);
    }
}

fn receive(pcs: &mut [Option<Pc>; 2], from: SocketAddr, addr: SocketAddr, bytes: &[u8]) {
    for pc in pcs.iter_mut().flatten() {
        let Ok(received) = Receive::new(Protocol::Udp, from, addr, bytes) else { return };
        let input = Input::Receive(Instant::now(), received);
        if pc.rtc.accepts(&input) {
            let _ = pc.rtc.handle_input(input);
            return;
        }
    }
}

fn info(who: &Participant) -> ParticipantInfo {
    let track = |track: &super::Track| TrackInfo {
        sid: track.sid.clone(),
        kind: if track.is_audio { number::AUDIO } else { number::VIDEO },
        name: String::new(),
        muted: track.is_muted,
        source: if track.source == "MICROPHONE" { number::MICROPHONE } else { 1 },
    };
    let kind = match who.kind {
        "EGRESS" => number::EGRESS,
        "AGENT" => number::AGENT,
        _ => 0,
    };
    ParticipantInfo {
        sid: who.sid.clone(),
        identity: who.identity.clone(),
        state: number::ACTIVE,
        tracks: who.tracks.iter().map(track).collect(),
        name: who.name.clone(),
        kind,
    }
}

impl Hub {
    /// Looks after the rooms from now on.
    pub fn start(server: &Arc<Server>) {
        let weak = Arc::downgrade(server);
        let ticks = async move {
            let pace = Pace::begin();
            for n in 1u64.. {
                pace.reaches(n * TICK_MS).await;
                let Some(server) = weak.upgrade() else { return };
                server.rtc.tell_participants(&server);
                server.rtc.close_rooms(&server);
                if n.is_multiple_of(SPEAKER_INTERVAL_MS / TICK_MS) {
                    server.rtc.tell_speakers(&server);
                }
            }
        };
        *server.rtc.ticker.lock() = Some(Task(tokio::spawn(ticks)));
    }

    fn visit(&self, visit: Visit) -> usize {
        let mut visits = self.visits.lock();
        visits.push(visit);
        visits.len() - 1
    }

    /// Every connection that was made, in order.
    pub fn visits(&self) -> Vec<Visit> {
        self.visits.lock().clone()
    }

    /// Identities of those who are connected by `/rtc`.
    pub fn present(&self, room: &str) -> Vec<String> {
        self.links.lock().iter().filter(|link| link.room == room).map(|link| link.identity.clone()).collect()
    }

    /// Whoever is there under this identity is told to leave.
    pub fn send_out(&self, room: &str, identity: &str, reason: i32) {
        self.dismiss(|link| link.room == room && link.identity == identity, reason, number::DISCONNECT);
    }

    /// Everybody with a connection to `/rtc` is told to leave, by this word.
    pub fn dismiss_all(&self, reason: i32, action: i32) {
        self.dismiss(|_| true, reason, action);
    }

    fn dismiss(&self, is_meant: impl Fn(&Link) -> bool, reason: i32, action: i32) {
        for link in self.links.lock().iter().filter(|link| is_meant(link)) {
            let _ = link.orders.send(Order::Leave { reason, action });
        }
    }

    /// Sends everybody a message of the test's own making.
    pub fn say_to_all(&self, response: &Response) {
        self.links.lock().iter().for_each(|link| _ = link.orders.send(Order::Say(Box::new(response.clone()))));
    }

    /// Sends everybody a frame of the test's own making.
    pub fn send_frame(&self, bytes: &[u8]) {
        let frame = || ws::Message::Binary(bytes.to_vec().into());
        self.links.lock().iter().for_each(|link| _ = link.orders.send(Order::Raw(frame())));
    }

    /// From now on somebody speaks at this level; 0 ends it. Without a word the voices tell.
    pub fn speak(&self, room: &str, identity: &str, level: f32) {
        self.levels.lock().insert((room.to_owned(), identity.to_owned()), level);
    }

    /// Data of the API, or of somebody in the room.
    pub fn broadcast(&self, room: &str, from: Option<&str>, is_reliable: bool, packet: &DataPacket) {
        let bytes = packet.encode_to_vec();
        let links = self.links.lock();
        for link in links.iter().filter(|link| link.room == room && Some(link.sid.as_str()) != from) {
            let _ = link.orders.send(Order::Data(is_reliable, bytes.clone()));
        }
    }

    /// What `SendData` does.
    pub fn send_data(&self, request: &Value) {
        let data = request["data"].as_str().unwrap_or("");
        let payload = base64::engine::general_purpose::STANDARD.decode(data).unwrap_or_default();
        let user = UserPacket { payload, topic: request["topic"].as_str().map(str::to_owned) };
        let packet = DataPacket { payload: Some(Payload::User(user)), ..DataPacket::default() };
        self.broadcast(request["room"].as_str().unwrap_or(""), None, request["kind"] != "LOSSY", &packet);
    }

    fn participants(
        &self,
        server: &Server,
        room: &str,
        own: &str,
    ) -> (BTreeMap<String, ParticipantInfo>, Vec<ParticipantInfo>) {
        let state = server.state.lock();
        let people = state.rooms.get(room).into_iter().flat_map(|room| room.participants.values());
        let visible = people.filter(|who| !who.is_hidden && who.identity != own).map(info);
        let told: BTreeMap<_, _> = visible.map(|info| (info.sid.clone(), info)).collect();
        let all = told.values().cloned().collect();
        (told, all)
    }

    fn tell_participants(&self, server: &Server) {
        for link in self.links.lock().iter_mut() {
            let (now, _) = self.participants(server, &link.room, &link.identity);
            let changed =
                now.iter().filter(|(sid, info)| link.told.get(*sid) != Some(info)).map(|(_, info)| info.clone());
            let gone = link.told.iter().filter(|(sid, _)| !now.contains_key(*sid));
            let gone = gone.map(|(_, info)| ParticipantInfo { state: number::DISCONNECTED, ..info.clone() });
            let participants: Vec<_> = changed.chain(gone).collect();
            if !participants.is_empty() {
                let _ = link.orders.send(Order::Say(Box::new(Response::Update(ParticipantUpdate { participants }))));
                link.told = now;
            }
        }
    }

    /// A room whose last human has left, or that was deleted, is over for whoever is still in it.
    fn close_rooms(&self, server: &Server) {
        let rooms: HashSet<_> =
            self.links.lock().iter().map(|link| (link.room.clone(), link.room_sid.clone())).collect();
        for (name, sid) in rooms {
            let state = server.state.lock();
            let room = state.rooms.get(&name).filter(|room| room.sid == sid);
            let people = room.map(|room| room.participants.values().filter(|who| is_human(who)).count());
            drop(state);
            let mut deserted = self.deserted.lock();
            match people {
                None => {
                    deserted.remove(&sid);
                    self.dismiss(|link| link.room_sid == sid, number::ROOM_DELETED, number::DISCONNECT);
                }
                Some(0) => {
                    let timeout_ms = self.settings.lock().departure_timeout.as_millis() as u64;
                    let Some(since) = deserted.get_mut(&sid) else { continue };
                    if since.get_or_insert_with(Pace::begin).is_past(timeout_ms) {
                        deserted.remove(&sid);
                        drop(deserted);
                        self.dismiss(|link| link.room_sid == sid, number::ROOM_CLOSED, number::DISCONNECT);
                        server.delete_room(&name);
                    }
                }
                Some(_) => drop(deserted.insert(sid, None)),
            }
        }
    }

    fn tell_speakers(&self, server: &Server) {
        let heard = self.heard(server);
        let visits = self.visits.lock();
        for link in self.links.lock().iter_mut() {
            let visit = &visits[link.visit];
            let is_heard = |info: &&ParticipantInfo| info.tracks.iter().any(|t| visit.subscribed.contains(&t.sid));
            let others = link.told.values().filter(is_heard).map(|info| (&info.sid, &info.identity));
            // Everybody is told of themselves, too.
            let now: HashMap<String, f32> = others
                .chain([(&link.sid, &link.identity)])
                .filter_map(|(sid, identity)| {
                    let level = heard.get(&(link.room.clone(), identity.clone()))?;
                    (*level > 0.0).then(|| (sid.clone(), (level * 8.0).ceil() / 8.0))
                })
                .collect();
            let begun = now.iter().filter(|(sid, level)| link.speaking.get(*sid) != Some(level));
            let begun = begun.map(|(sid, level)| SpeakerInfo { sid: sid.clone(), level: *level, active: true });
            let ended = link.speaking.keys().filter(|sid| !now.contains_key(*sid));
            let ended = ended.filter(|sid| **sid == link.sid || link.told.contains_key(*sid));
            let ended = ended.map(|sid| SpeakerInfo { sid: sid.clone(), level: 0.0, active: false });
            let speakers: Vec<_> = begun.chain(ended).collect();
            if !speakers.is_empty() {
                let _ = link.orders.send(Order::Say(Box::new(Response::SpeakersChanged(SpeakersChanged { speakers }))));
            }
            link.speaking = now;
        }
    }

    /// Levels of the last 400 ms: what a test says, else what the voices say.
    fn heard(&self, server: &Server) -> HashMap<(String, String), f32> {
        let mut heard = HashMap::new();
        let state = server.state.lock();
        let mut listening = self.listening.lock();
        listening.retain(|room, _| state.rooms.contains_key(room));
        for (name, room) in &state.rooms {
            let (receiver, frames) =
                listening.entry(name.clone()).or_insert_with(|| (room.voices.listen(), Vec::new()));
            frames.clear();
            while let Ok(frame) = receiver.try_recv() {
                frames.push(frame);
            }
            for identity in room.participants.keys() {
                heard.insert((name.clone(), identity.clone()), loudness(frames, identity));
            }
        }
        drop((state, listening));
        heard.extend(self.levels.lock().iter().map(|(who, level)| (who.clone(), *level)));
        heard
    }
}

/// 0 unless two fifths of the frames are louder than speech begins.
fn loudness(frames: &[Arc<Frame>], identity: &str) -> f32 {
    let rms = |frame: &Arc<Frame>| {
        let voice = frame.by_identity.get(identity)?;
        let sum: f64 = voice.iter().map(|sample| f64::from(*sample).powi(2)).sum();
        Some((sum / FRAME as f64).sqrt())
    };
    let loud: Vec<f64> = frames.iter().filter_map(rms).filter(|rms| *rms > SPEECH).collect();
    if frames.is_empty() || loud.len() * 5 < frames.len() * 2 {
        return 0.0;
    }
    (loud.iter().sum::<f64>() / loud.len() as f64 / 8000.0).clamp(0.01, 1.0) as f32
}

fn is_human(who: &Participant) -> bool {
    !who.is_agent && who.kind == "STANDARD"
}
