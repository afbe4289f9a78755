//! Who is in a LiveKit room, which of their tracks are to be heard of, and who of them speaks.
//!
//! The server tells speakers as deltas, of those alone whose audio is subscribed to, and a steady speaker once. So who
//! speaks is kept here and said again ([`Roster::renew`]) as long as the connection lives. Pure.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use super::wire::{ParticipantInfo, SpeakerInfo, number};
use crate::transcript::clean;
use crate::transcript::{SpeakerSource, SpeakerUpdate};

/// Participants that are remembered; nobody hears more of them apart.
const MAX_MEMBERS: usize = 2000;
/// Tracks of one participant that are looked at.
const MAX_TRACKS: usize = 32;

/// The participants of a room, without those that are no people.
#[derive(Default)]
pub struct Roster {
    members: HashMap<String, Member>,
    /// Audio tracks that a subscription was sent for.
    asked: HashSet<String>,
}

struct Member {
    identity: String,
    name: Option<String>,
    microphone: Option<String>,
    /// Its level while it speaks.
    speaks: Option<f32>,
}

/// The consequences of news about participants.
#[derive(Debug, Default, PartialEq)]
pub struct News {
    /// Audio tracks to subscribe to, without their media.
    pub subscribe: Vec<String>,
    /// Identities of speakers that have left.
    pub silenced: Vec<String>,
}

impl Roster {
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes what the server says of participants: all of those in a join, what has changed in an update.
    pub fn update(&mut self, participants: &[ParticipantInfo]) -> News {
        let mut news = News::default();
        for participant in participants {
            self.update_one(participant, &mut news);
        }
        news
    }

    fn update_one(&mut self, participant: &ParticipantInfo, news: &mut News) {
        let is_person = !matches!(participant.kind, number::EGRESS | number::AGENT) && !participant.identity.is_empty();
        let audio: Vec<_> = participant.tracks.iter().take(MAX_TRACKS).filter(|t| t.kind == number::AUDIO).collect();
        if participant.state == number::DISCONNECTED || !is_person {
            let gone = self.members.remove(&participant.sid);
            news.silenced.extend(gone.filter(|gone| gone.speaks.is_some()).map(|gone| gone.identity));
            audio.iter().for_each(|track| _ = self.asked.remove(&track.sid));
            return;
        }
        if self.members.len() >= MAX_MEMBERS && !self.members.contains_key(&participant.sid) {
            return;
        }
        let speaks = self.members.get(&participant.sid).and_then(|member| member.speaks);
        let microphone = audio.iter().find(|track| track.source == number::MICROPHONE).or(audio.first());
        let member = Member {
            identity: clean::id(&participant.identity).into_owned(),
            name: Some(clean::name(&participant.name).into_owned()).filter(|name| !name.is_empty()),
            microphone: microphone.map(|track| track.sid.clone()),
            speaks,
        };
        self.members.insert(participant.sid.clone(), member);
        for track in audio {
            if self.asked.len() < MAX_MEMBERS * MAX_TRACKS && self.asked.insert(track.sid.clone()) {
                news.subscribe.push(track.sid.clone());
            }
        }
    }

    /// Takes changes of who speaks. Whoever is not in the room, or is no person, is not heard of.
    pub fn speakers_changed(&mut self, speakers: &[SpeakerInfo], at: Instant) -> Vec<SpeakerUpdate> {
        let mut updates = Vec::new();
        for speaker in speakers {
            let Some(member) = self.members.get_mut(&speaker.sid) else { continue };
            let speaks = speaker.active.then(|| level(speaker.level));
            // The end of what nobody knew of is no news.
            if speaks.is_some() || member.speaks.is_some() {
                member.speaks = speaks;
                updates.push(member.report(at));
            }
        }
        updates
    }

    /// Those who still speak, said again.
    pub fn renew(&self, at: Instant) -> Vec<SpeakerUpdate> {
        self.members.values().filter(|member| member.speaks.is_some()).map(|member| member.report(at)).collect()
    }

    pub fn has(&self, identity: &str) -> bool {
        self.members.values().any(|member| member.identity == identity)
    }

    /// The track of a participant's microphone.
    pub fn microphone_of(&self, identity: &str) -> Option<&str> {
        let member = self.members.values().find(|member| member.identity == identity)?;
        member.microphone.as_deref()
    }
}

impl Member {
    fn report(&self, at: Instant) -> SpeakerUpdate {
        SpeakerUpdate {
            identity: self.identity.clone(),
            name: self.name.clone(),
            active: self.speaks.is_some(),
            level: self.speaks.unwrap_or(0.0),
            at,
            source: SpeakerSource::Observer,
        }
    }
}

/// The end of a speaker who has left.
pub fn silence(identity: String, at: Instant) -> SpeakerUpdate {
    SpeakerUpdate { identity, name: None, active: false, level: 0.0, at, source: SpeakerSource::Observer }
}

/// A level as the contract has it, whatever was sent: what is no number is unknown.
fn level(raw: f32) -> f32 {
    if raw.is_nan() { 0.0 } else { raw.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::super::wire::TrackInfo;
    use super::*;

    fn participant(sid: &str, identity: &str, state: i32) -> ParticipantInfo {
        let track = |sid: &str, kind, source| TrackInfo { sid: sid.into(), kind, source, ..TrackInfo::default() };
        let mut tracks = vec![track(&format!("{sid}-cam"), number::VIDEO, 1)];
        tracks.push(track(&format!("{sid}-screen"), number::AUDIO, 4));
        tracks.push(track(&format!("{sid}-mic"), number::AUDIO, number::MICROPHONE));
        let name = identity.to_uppercase();
        ParticipantInfo { sid: sid.into(), identity: identity.into(), name, state, tracks, kind: 0 }
    }

    fn speaker(sid: &str, level: f32, active: bool) -> SpeakerInfo {
        SpeakerInfo { sid: sid.into(), level, active }
    }

    fn said(updates: &[SpeakerUpdate]) -> Vec<(&str, bool, f32)> {
        updates.iter().map(|u| (u.identity.as_str(), u.active, u.level)).collect()
    }

    #[test]
    fn audio_alone_is_subscribed_to_and_once() {
        let mut roster = Roster::default();
        let anna = participant("PA_1", "anna", number::ACTIVE);
        assert_eq!(roster.update(std::slice::from_ref(&anna)).subscribe, ["PA_1-screen", "PA_1-mic"]);
        assert_eq!(roster.update(&[anna]), News::default());
        assert_eq!(roster.microphone_of("anna"), Some("PA_1-mic"));
        assert_eq!(roster.microphone_of("ben"), None);
    }

    #[test]
    fn speakers_are_deltas_and_renewed_until_they_end() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        roster.update(&[participant("PA_1", "anna", number::ACTIVE), participant("PA_2", "ben", number::JOINED)]);
        assert_eq!(said(&roster.speakers_changed(&[speaker("PA_1", 0.5, true)], now)), [("anna", true, 0.5)]);
        assert_eq!(said(&roster.renew(now)), [("anna", true, 0.5)]);
        let both = [speaker("PA_2", 0.25, true), speaker("PA_1", 0.0, false)];
        assert_eq!(said(&roster.speakers_changed(&both, now)), [("ben", true, 0.25), ("anna", false, 0.0)]);
        assert_eq!(said(&roster.renew(now)), [("ben", true, 0.25)]);
        assert_eq!(roster.speakers_changed(&[speaker("PA_1", 0.0, false)], now).len(), 0);
        let update = &roster.renew(now)[0];
        assert_eq!((update.name.as_deref(), &update.source), (Some("BEN"), &SpeakerSource::Observer));
    }

    /// The server's clearing message may be lost on the way out of a room.
    #[test]
    fn whoever_leaves_while_speaking_has_stopped() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        roster.update(&[participant("PA_1", "anna", number::ACTIVE)]);
        roster.speakers_changed(&[speaker("PA_1", 0.5, true)], now);
        let news = roster.update(&[participant("PA_1", "anna", number::DISCONNECTED)]);
        assert_eq!(news.silenced, ["anna"]);
        assert!(roster.renew(now).is_empty() && roster.is_empty());
        let back = roster.update(&[participant("PA_1", "anna", number::ACTIVE)]);
        assert_eq!(back.subscribe.len(), 2, "a track that comes again is asked for again");
    }

    #[test]
    fn machines_and_strangers_do_not_speak() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let of_kind = |kind| ParticipantInfo { kind, ..participant("PA_1", "EG_x", number::ACTIVE) };
        for kind in [number::EGRESS, number::AGENT] {
            assert_eq!(roster.update(&[of_kind(kind)]), News::default());
        }
        assert_eq!(roster.update(&[participant("PA_3", "", number::ACTIVE)]), News::default());
        let changed = [speaker("PA_1", 0.5, true), speaker("PA_9", 0.5, true), speaker("", 1.0, true)];
        assert!(roster.speakers_changed(&changed, now).is_empty());
        assert_eq!(roster.update(&[of_kind(99)]).subscribe.len(), 2, "a kind that is not known is somebody");
    }

    #[test]
    fn absurd_levels_and_endless_names_are_made_harmless() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        let name = format!("a\u{0}{}", "b".repeat(5000));
        roster.update(&[ParticipantInfo { name: name.clone(), ..participant("PA_1", &name, number::ACTIVE) }]);
        for (raw, expected) in [(f32::NAN, 0.0), (1e30, 1.0), (f32::NEG_INFINITY, 0.0), (-0.5, 0.0)] {
            let updates = roster.speakers_changed(&[speaker("PA_1", raw, true)], now);
            assert_eq!(updates[0].level, expected);
            assert!(updates[0].identity.len() <= clean::MAX_NAME_BYTES && !updates[0].identity.contains('\0'));
        }
    }

    #[test]
    fn a_crowd_has_an_end() {
        let mut roster = Roster::default();
        for n in 0..MAX_MEMBERS + 100 {
            roster.update(&[participant(&format!("PA_{n}"), &format!("p{n}"), number::ACTIVE)]);
        }
        assert_eq!(roster.len(), MAX_MEMBERS);
    }
}
