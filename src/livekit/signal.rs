//! One signalling connection to a LiveKit server, without I/O: what each message means, when to ping, when it is dead.
//!
//! The caller gives it every message ([`Signal::handle`]) and asks it for what is due ([`Signal::poll`]) no later than
//! [`Signal::wake_at`].

use std::time::Duration;

use prost::Message;
use tokio::time::Instant;

use super::roster::{Roster, silence};
use super::wire::{
    JoinResponse, LeaveRequest, Ping, Request, Response, SignalRequest, SignalResponse, SpeakersChanged,
    UpdateSubscription, UpdateTrackSettings, number,
};
use crate::transcript::SpeakerUpdate;

/// Begins the identity of our participants; whoever counts the people of a room leaves them out.
pub const IDENTITY_PREFIX: &str = "stenocast-";
/// Longest message that is taken from a server, in bytes: a join of a full room is some 100 kB.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Longest wait for the first message.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the server names none.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Whoever still speaks is said again so often: a report counts for 2 s.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be done after a message or a moment.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The room is joined.
    Joined,
    Send(Request),
    /// The subscriber's connection is to be answered with the same id.
    Offer {
        sdp: String,
        id: u32,
    },
    /// To the offer of the publisher's connection.
    Answer {
        sdp: String,
    },
    Candidate {
        target: i32,
        candidate: String,
    },
    Speaker(SpeakerUpdate),
    Over(End),
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server's word.
    Left(Departure),
    /// Nothing was heard for this long.
    Silent(Duration),
    /// The first message was no join.
    NotJoined(&'static str),
}

/// The server has told us to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Its session was closed or the room deleted: nobody is there any more.
    RoomGone,
    /// Somebody with our identity has come. Coming again at once would be a fight.
    Displaced,
    /// An operator has removed us.
    Removed,
    /// Sixty seconds without WebRTC.
    NeverConnected,
    /// The server is going away or wants us elsewhere: come again at once.
    Again,
    Other(i32),
}

impl Departure {
    fn of(leave: &LeaveRequest) -> Self {
        match leave.reason {
            number::ROOM_CLOSED | number::ROOM_DELETED => Self::RoomGone,
            number::DUPLICATE_IDENTITY => Self::Displaced,
            number::PARTICIPANT_REMOVED => Self::Removed,
            number::JOIN_FAILURE => Self::NeverConnected,
            _ if leave.action != number::DISCONNECT => Self::Again,
            reason => Self::Other(reason),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoomGone => "the room is over",
            Self::Displaced => "somebody came with the same identity",
            Self::Removed => "removed by an operator",
            Self::NeverConnected => "no WebRTC connection within the server's time",
            Self::Again => "the server wants a new connection",
            Self::Other(_) => "the server has ended it",
        }
    }
}

/// The state of one signalling connection.
pub struct Signal {
    /// It is there to hear who speaks.
    listens: bool,
    is_joined: bool,
    heard_at: Instant,
    ping_interval: Duration,
    ping_timeout: Duration,
    ping_at: Instant,
    renew_at: Instant,
    rtt_ms: i64,
    roster: Roster,
    server: String,
    ignored: u64,
}

impl Signal {
    pub fn new(now: Instant, listens: bool) -> Self {
        Self {
            listens,
            is_joined: false,
            heard_at: now,
            ping_interval: PING_INTERVAL,
            ping_timeout: JOIN_TIMEOUT,
            ping_at: now + PING_INTERVAL,
            renew_at: now + RENEW_INTERVAL,
            rtt_ms: 0,
            roster: Roster::default(),
            server: String::new(),
            ignored: 0,
        }
    }

    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    pub fn is_joined(&self) -> bool {
        self.is_joined
    }

    /// The server's version.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Frames that were not understood.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes a binary frame; `now_ms` is the time of day in ms since 1970.
    pub fn handle(&mut self, frame: &[u8], now: Instant, now_ms: i64) -> Vec<Step> {
        self.heard_at = now;
        let message = SignalResponse::decode(frame).ok().and_then(|response| response.message);
        let Some(message) = message else {
            self.ignored += 1;
            return Vec::new();
        };
        if !self.is_joined {
            return self.first(message, now);
        }
        match message {
            Response::Update(update) => self.participants(&update.participants, now),
            Response::SpeakersChanged(changed) => self.speakers(&changed, now),
            Response::Offer(offer) => vec![Step::Offer { sdp: offer.sdp, id: offer.id }],
            Response::Answer(answer) => vec![Step::Answer { sdp: answer.sdp }],
            Response::Trickle(trickle) => {
                let candidate = candidate_of(&trickle.candidate_init);
                let step = |candidate| Step::Candidate { target: trickle.target, candidate };
                candidate.map(step).into_iter().collect()
            }
            Response::Leave(leave) => vec![Step::Over(End::Left(Departure::of(&leave)))],
            Response::PongResp(pong) => {
                self.rtt_ms = now_ms.saturating_sub(pong.last_ping_timestamp).clamp(0, 60_000);
                Vec::new()
            }
            // Each connection has an identity of its own, and so a token that is signed here.
            Response::RefreshToken(_) | Response::Join(_) | Response::Reconnect(_) => Vec::new(),
        }
    }

    /// A token may come before the join; a leave instead of it means that there is none.
    fn first(&mut self, message: Response, now: Instant) -> Vec<Step> {
        match message {
            Response::Join(join) => self.join(&join, now),
            Response::RefreshToken(_) => Vec::new(),
            Response::Leave(leave) => vec![Step::Over(End::Left(Departure::of(&leave)))],
            _ => vec![Step::Over(End::NotJoined("the first message is no join"))],
        }
    }

    fn join(&mut self, join: &JoinResponse, now: Instant) -> Vec<Step> {
        if !join.alternative_url.is_empty() {
            return vec![Step::Over(End::NotJoined("the server names another one, which is not asked"))];
        }
        self.is_joined = true;
        self.server = join.server_info.as_ref().map(|info| info.version.clone()).unwrap_or_default();
        self.ping_interval = seconds(join.ping_interval).unwrap_or(PING_INTERVAL);
        self.ping_timeout = seconds(join.ping_timeout).unwrap_or(PING_TIMEOUT).max(self.ping_interval * 2);
        self.ping_at = now + self.ping_interval;
        let mut steps = vec![Step::Joined];
        steps.extend(self.participants(&join.other_participants, now));
        steps
    }

    fn participants(&mut self, participants: &[super::wire::ParticipantInfo], now: Instant) -> Vec<Step> {
        let news = self.roster.update(participants);
        if !self.listens {
            return Vec::new();
        }
        let mut steps: Vec<_> =
            news.silenced.into_iter().map(|identity| Step::Speaker(silence(identity, now))).collect();
        if !news.subscribe.is_empty() {
            let track_sids = news.subscribe;
            // Without its media: nothing but who speaks is wanted.
            let silent = UpdateTrackSettings { track_sids: track_sids.clone(), disabled: true };
            steps.push(Step::Send(Request::Subscription(UpdateSubscription { track_sids, subscribe: true })));
            steps.push(Step::Send(Request::TrackSetting(silent)));
        }
        steps
    }

    fn speakers(&mut self, changed: &SpeakersChanged, now: Instant) -> Vec<Step> {
        if !self.listens {
            return Vec::new();
        }
        self.roster.speakers_changed(&changed.speakers, now).into_iter().map(Step::Speaker).collect()
    }

    /// What is due. A ping does not put off the end of a connection that says nothing.
    pub fn poll(&mut self, now: Instant, now_ms: i64) -> Vec<Step> {
        let silent = now.saturating_duration_since(self.heard_at);
        if silent >= self.ping_timeout {
            return vec![Step::Over(End::Silent(silent))];
        }
        let mut steps = Vec::new();
        if self.is_joined && now >= self.ping_at {
            self.ping_at = now + self.ping_interval;
            steps.push(Step::Send(Request::PingReq(Ping { timestamp: now_ms, rtt: self.rtt_ms })));
        }
        if now >= self.renew_at {
            self.renew_at = now + RENEW_INTERVAL;
            steps.extend(self.roster.renew(now).into_iter().map(Step::Speaker));
        }
        steps
    }

    /// The time of the next [`Self::poll`].
    pub fn wake_at(&self) -> Instant {
        let due = self.renew_at.min(self.heard_at + self.ping_timeout);
        if self.is_joined { due.min(self.ping_at) } else { due }
    }
}

/// A request as a frame.
pub fn frame(request: Request) -> Vec<u8> {
    SignalRequest::from(request).encode_to_vec()
}

/// Our last word.
pub fn goodbye() -> Request {
    Request::Leave(LeaveRequest { reason: number::CLIENT_INITIATED, action: number::DISCONNECT })
}

/// The candidate in a browser's `RTCIceCandidateInit`; None for the end of candidates.
fn candidate_of(init: &str) -> Option<String> {
    let init: serde_json::Value = serde_json::from_str(init).ok()?;
    init["candidate"].as_str().filter(|candidate| !candidate.is_empty()).map(str::to_owned)
}

fn seconds(n: i32) -> Option<Duration> {
    let n = u64::try_from(n).ok().filter(|n| (1..=600).contains(n))?;
    Some(Duration::from_secs(n))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{
        ParticipantInfo, ParticipantUpdate, Pong, SessionDescription, SpeakerInfo, TrackInfo, TrickleRequest,
    };
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn anna() -> ParticipantInfo {
        let mic = TrackInfo { sid: "TR_1".into(), source: number::MICROPHONE, ..TrackInfo::default() };
        let (sid, identity) = ("PA_1".to_owned(), "anna".to_owned());
        ParticipantInfo { sid, identity, state: number::ACTIVE, tracks: vec![mic], ..ParticipantInfo::default() }
    }

    fn say(signal: &mut Signal, response: Response, now: Instant) -> Vec<Step> {
        signal.handle(&SignalResponse::from(response).encode_to_vec(), now, 1000)
    }

    fn joined(now: Instant) -> Signal {
        let mut signal = Signal::new(now, true);
        let join = JoinResponse {
            other_participants: vec![anna()],
            ping_interval: 5,
            ping_timeout: 15,
            ..JoinResponse::default()
        };
        let steps = say(&mut signal, Response::Join(join), now);
        let track_sids = vec!["TR_1".to_owned()];
        let subscription = UpdateSubscription { track_sids: track_sids.clone(), subscribe: true };
        let settings = UpdateTrackSettings { track_sids, disabled: true };
        let requests = [Request::Subscription(subscription), Request::TrackSetting(settings)];
        let expected: Vec<_> = [Step::Joined].into_iter().chain(requests.map(Step::Send)).collect();
        assert_eq!(steps, expected, "the track is subscribed to, and its media is not sent");
        signal
    }

    /// A peer once put the end off with each ping, and so never found a dead connection.
    #[test]
    fn pings_do_not_keep_a_dead_connection() {
        let now = Instant::now();
        let mut signal = joined(now);
        let mut pings = 0;
        for second in 1..15 {
            let steps = signal.poll(now + S * second, 0);
            pings += steps.iter().filter(|step| matches!(step, Step::Send(Request::PingReq(_)))).count();
        }
        assert_eq!(pings, 2);
        assert_eq!(signal.poll(now + S * 15, 0), [Step::Over(End::Silent(S * 15))]);
        assert_eq!(say(&mut signal, Response::PongResp(Pong::default()), now + S * 15), []);
        assert!(signal.poll(now + S * 20, 0).iter().all(|step| !matches!(step, Step::Over(_))), "it was alive");
    }

    #[test]
    fn the_server_is_told_the_time_its_answer_took() {
        let now = Instant::now();
        let mut signal = joined(now);
        let pong = |last_ping_timestamp| Response::PongResp(Pong { last_ping_timestamp, timestamp: 1 });
        let rtt = |signal: &mut Signal, n| match &signal.poll(now + S * n, 7)[..] {
            [Step::Send(Request::PingReq(Ping { timestamp: 7, rtt })), ..] => *rtt,
            other => panic!("{other:?}"),
        };
        say(&mut signal, pong(960), now);
        assert_eq!(rtt(&mut signal, 5), 40);
        say(&mut signal, pong(i64::MIN), now + S * 6);
        assert_eq!(rtt(&mut signal, 10), 60_000);
    }

    #[test]
    fn a_steady_speaker_is_said_again_and_ends_with_its_leaving() {
        let now = Instant::now();
        let mut signal = joined(now);
        let speakers = vec![SpeakerInfo { sid: "PA_1".into(), level: 0.5, active: true }];
        let steps = say(&mut signal, Response::SpeakersChanged(SpeakersChanged { speakers }), now);
        assert!(matches!(&steps[..], [Step::Speaker(update)] if update.active && update.identity == "anna"));
        let steps = signal.poll(now + S * 2, 0);
        assert!(matches!(&steps[..], [Step::Speaker(update)] if update.active && update.at == now + S * 2));
        let gone = ParticipantUpdate { participants: vec![ParticipantInfo { state: number::DISCONNECTED, ..anna() }] };
        let steps = say(&mut signal, Response::Update(gone), now + S * 2);
        assert!(matches!(&steps[..], [Step::Speaker(update)] if !update.active));
    }

    #[test]
    fn what_comes_instead_of_a_join_is_none() {
        let now = Instant::now();
        let leave = LeaveRequest { reason: 0, action: number::RECONNECT };
        let offer = SessionDescription::default();
        let elsewhere = JoinResponse { alternative_url: "wss://b".into(), ..JoinResponse::default() };
        for (message, is_leave) in
            [(Response::Leave(leave), true), (Response::Offer(offer), false), (Response::Join(elsewhere), false)]
        {
            let mut signal = Signal::new(now, true);
            match &say(&mut signal, message, now)[..] {
                [Step::Over(End::Left(Departure::Again))] => assert!(is_leave),
                [Step::Over(End::NotJoined(_))] => assert!(!is_leave),
                other => panic!("{other:?}"),
            }
            assert!(!signal.is_joined());
        }
        let mut signal = Signal::new(now, true);
        assert_eq!(signal.poll(now + JOIN_TIMEOUT, 0), [Step::Over(End::Silent(JOIN_TIMEOUT))]);
    }

    #[test]
    fn each_departure_has_its_meaning() {
        let leave = |reason, action| Departure::of(&LeaveRequest { reason, action });
        assert_eq!(leave(number::ROOM_CLOSED, 0), Departure::RoomGone);
        assert_eq!(leave(number::ROOM_DELETED, 2), Departure::RoomGone);
        assert_eq!(leave(number::DUPLICATE_IDENTITY, 0), Departure::Displaced);
        assert_eq!(leave(number::PARTICIPANT_REMOVED, 0), Departure::Removed);
        assert_eq!(leave(number::JOIN_FAILURE, 0), Departure::NeverConnected);
        assert_eq!(leave(number::SERVER_SHUTDOWN, number::RECONNECT), Departure::Again);
        assert_eq!(leave(0, number::RESUME), Departure::Again);
        assert_eq!(leave(77, 0), Departure::Other(77));
    }

    #[test]
    fn garbage_is_counted_and_harmless() {
        let now = Instant::now();
        let mut signal = joined(now);
        for garbage in [&b""[..], b"\xff\xff\xff", b"{\"join\":{}}", &[0; 100], &[10, 0xff, 0xff, 0xff, 0xff, 7]] {
            assert_eq!(signal.handle(garbage, now, 0), []);
        }
        assert_eq!(signal.ignored(), 5);
        let trickle =
            |init: &str| Response::Trickle(TrickleRequest { candidate_init: init.into(), target: 1, is_final: false });
        for nothing in ["", "{", "null", "{}", r#"{"candidate":7}"#, r#"{"candidate":""}"#] {
            assert_eq!(say(&mut signal, trickle(nothing), now), []);
        }
        let candidate = "candidate:1".to_owned();
        let found = say(&mut signal, trickle(r#"{"candidate":"candidate:1"}"#), now);
        assert_eq!(found, [Step::Candidate { target: 1, candidate }]);
    }

    #[test]
    fn one_that_only_writes_subscribes_to_nothing() {
        let now = Instant::now();
        let mut signal = Signal::new(now, false);
        let join = JoinResponse { other_participants: vec![anna()], ..JoinResponse::default() };
        assert_eq!(say(&mut signal, Response::Join(join), now), [Step::Joined]);
        let speakers = vec![SpeakerInfo { sid: "PA_1".into(), level: 0.5, active: true }];
        assert_eq!(say(&mut signal, Response::SpeakersChanged(SpeakersChanged { speakers }), now), []);
        assert_eq!(signal.roster().microphone_of("anna"), Some("TR_1"));
    }

    #[test]
    fn a_token_before_the_join_is_no_end() {
        let mut signal = Signal::new(Instant::now(), true);
        assert_eq!(say(&mut signal, Response::RefreshToken("t0p".into()), Instant::now()), []);
        assert_eq!(say(&mut signal, Response::Join(JoinResponse::default()), Instant::now()), [Step::Joined]);
    }
}
