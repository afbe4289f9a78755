//! A session's results, as Gladia's messages and documents.

use serde_json::{Value, json};

use super::super::engine;
use super::request::Accepted;
use crate::gladia::wire::{
    AddOn, Fault, FinalResult, FullTranscript, ResultMetadata, ServerMessage, SpeechTime, Transcript, Translation,
    Utterance, Word, timestamp,
};

/// The finals of a session and what makes its documents.
pub struct Results {
    pub id: String,
    created_at: String,
    pub accepted: Accepted,
    language: &'static str,
    finals: Vec<Utterance>,
}

/// A session that is over; what GET answers.
pub struct Finished {
    pub id: String,
    pub document: Value,
    /// Memory that it takes, roughly.
    pub bytes: usize,
    pub audio: Option<super::recording::Recording>,
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// `None` means that the local recogniser does not offer it.
fn not_offered<T>(name: &str) -> AddOn<T> {
    AddOn { error: Some(Fault { message: format!("{name} is not offered by the local recogniser") }), data: None }
}

impl Results {
    pub fn new(id: String, accepted: Accepted, language: &'static str) -> Self {
        Self { id, created_at: timestamp(), accepted, language, finals: Vec::new() }
    }

    /// The wire form of what an engine said about `channel`; finals are remembered. `None` for the end of the stream.
    pub fn message(&mut self, channel: u32, event: engine::Event) -> Option<ServerMessage> {
        use engine::Event as E;
        let time = |at_ms| SpeechTime { time: seconds(at_ms), channel };
        Some(match event {
            E::SpeechStart { at_ms } => ServerMessage::SpeechStart { data: time(at_ms) },
            E::SpeechEnd { at_ms } => ServerMessage::SpeechEnd { data: time(at_ms) },
            E::Interim(utterance) => self.transcript(channel, false, &utterance),
            E::Final(utterance) => self.transcript(channel, true, &utterance),
            E::Empty { segment, start_ms, end_ms } => self.retraction(channel, segment, start_ms, end_ms),
            E::Failed { segment, why } => {
                let message = format!("utterance {segment} of channel {channel} could not be recognised: {why}");
                ServerMessage::Error { data: Fault { message } }
            }
            E::Finished => return None,
        })
    }

    fn transcript(&mut self, channel: u32, is_final: bool, heard: &engine::Utterance) -> ServerMessage {
        let word = |w: &engine::Word| Word {
            word: format!(" {}", w.word),
            start: seconds(w.start_ms),
            end: seconds(w.end_ms),
            confidence: w.confidence,
        };
        let utterance = Utterance {
            text: format!(" {}", heard.text),
            start: seconds(heard.start_ms),
            end: seconds(heard.end_ms),
            language: self.language.to_owned(),
            confidence: heard.confidence,
            channel,
            speaker: None,
            words: heard.words.iter().map(word).collect(),
        };
        if is_final {
            self.finals.push(utterance.clone());
        }
        let id = utterance_id(channel, heard.segment);
        ServerMessage::Transcript { data: Transcript { id, is_final, utterance } }
    }

    /// The translations that follow `message`, one for each language, where it is a final.
    pub fn translations(&self, message: &ServerMessage) -> Vec<ServerMessage> {
        let ServerMessage::Transcript { data } = message else { return Vec::new() };
        let languages = self.accepted.translate_to.iter().filter(|_| data.is_final);
        let translation = |language: &String| Translation {
            utterance_id: data.id.clone(),
            utterance: data.utterance.clone(),
            original_language: self.language.to_owned(),
            target_language: language.clone(),
            translated_utterance: translated(&data.utterance, language),
        };
        let add_on = |data| ServerMessage::Translation(AddOn { error: None, data: Some(data) });
        languages.map(translation).map(add_on).collect()
    }

    /// Takes the guesses of a segment back: an interim without text.
    fn retraction(&self, channel: u32, segment: u32, start_ms: u64, end_ms: u64) -> ServerMessage {
        let (start, end) = (seconds(start_ms), seconds(end_ms));
        let utterance = Utterance { start, end, language: self.language.to_owned(), channel, ..Default::default() };
        let id = utterance_id(channel, segment);
        ServerMessage::Transcript { data: Transcript { id, is_final: false, utterance } }
    }

    /// Errors for the add-ons that were asked for.
    pub fn missing_add_ons(&self) -> Vec<ServerMessage> {
        let message = |name: &&'static str| match *name {
            "translation" => ServerMessage::Translation(not_offered(name)),
            "sentiment_analysis" => ServerMessage::SentimentAnalysis(not_offered(name)),
            _ => ServerMessage::NamedEntityRecognition(not_offered(name)),
        };
        self.accepted.missing_add_ons.iter().map(message).collect()
    }

    fn full(&self) -> FullTranscript {
        let texts: Vec<&str> = self.finals.iter().map(|u| u.text.trim()).collect();
        FullTranscript {
            full_transcript: texts.join(" "),
            languages: if texts.is_empty() { Vec::new() } else { vec![self.language.to_owned()] },
            utterances: self.finals.clone(),
            ..Default::default()
        }
    }

    fn final_result(&self, duration_s: f64) -> FinalResult {
        let metadata = ResultMetadata {
            audio_duration: duration_s,
            number_of_distinct_channels: self.accepted.format.channels,
            billing_time: 0.0,
            transcription_time: 0.0,
        };
        FinalResult { metadata, transcription: Some(self.full()), ..Default::default() }
    }

    /// Messages that follow the last final, `end_session` excluded.
    pub fn post_messages(&self, duration_s: f64) -> Vec<ServerMessage> {
        let mut messages = vec![ServerMessage::PostTranscript { data: self.full() }];
        if self.accepted.summarization {
            messages.push(ServerMessage::PostSummarization(not_offered("summarization")));
        }
        messages.push(ServerMessage::PostFinalTranscript { data: Box::new(self.final_result(duration_s)) });
        messages
    }

    /// The document of `GET /v2/live/{id}`. `duration_s` is `None` while the session is live.
    pub fn document(&self, duration_s: Option<f64>, messages: &[String], audio_kept: bool) -> Value {
        let mut params = self.accepted.request.clone();
        let custom_metadata = params.custom_metadata.take();
        let result = duration_s.map(|duration| {
            let mut result = serde_json::to_value(self.final_result(duration)).unwrap_or_default();
            result["messages"] = json!(messages);
            result
        });
        let file = duration_s.filter(|_| audio_kept).map(|duration| {
            json!({"id": self.id, "filename": format!("{}.wav", self.id), "source": null,
                   "audio_duration": duration, "number_of_channels": self.accepted.format.channels})
        });
        json!({
            "id": self.id,
            "request_id": request_id(&self.id),
            "version": 2,
            "status": if duration_s.is_some() { "done" } else { "processing" },
            "created_at": self.created_at,
            "completed_at": duration_s.map(|_| timestamp()),
            "custom_metadata": custom_metadata,
            "error_code": null,
            "post_session_metadata": {},
            "kind": "live",
            "file": file,
            "request_params": params,
            "result": result,
        })
    }
}

/// The marker engine's translation: each word with the language behind it.
fn translated(utterance: &Utterance, language: &str) -> Utterance {
    let words = utterance.words.iter();
    let words: Vec<Word> = words.map(|w| Word { word: format!("{}-{language}", w.word), ..w.clone() }).collect();
    let text = words.iter().map(|w| w.word.as_str()).collect();
    Utterance { text, language: language.to_owned(), words, ..utterance.clone() }
}

/// Gladia's form: channel and counter.
fn utterance_id(channel: u32, segment: u32) -> String {
    format!("{channel:02}_{segment:08}")
}

/// "G-" and the first 8 characters of the id.
pub fn request_id(id: &str) -> String {
    format!("G-{}", id.get(..8).unwrap_or(id))
}
