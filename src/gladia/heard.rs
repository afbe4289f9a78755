//! From what the recogniser writes to what the machine needs to know.

use super::ledger::{Recognised, RecognisedWord};
use super::phase::Heard;
use super::wire::{ServerMessage, Transcript};

/// What a message means for the machine. Add-ons that have no place in the transcript are counted and left.
pub fn heard(message: ServerMessage) -> Heard {
    match message {
        ServerMessage::AudioChunk(ack) => match (ack.acknowledged, ack.data) {
            (true, Some(data)) => Heard::Acknowledged { start: data.byte_range[0], end: data.byte_range[1] },
            (true, None) => Heard::Other,
            (false, _) => Heard::Refused(ack.error.unwrap_or_default().message),
        },
        ServerMessage::StopRecording(_) => Heard::StopAcknowledged,
        ServerMessage::Transcript { data } => Heard::Text(recognised(data)),
        ServerMessage::EndSession => Heard::EndSession,
        ServerMessage::Translation(add_on) => {
            let to = add_on.data.map(|t| t.target_language);
            tracing::debug!(target_language = to, "translation received");
            Heard::Other
        }
        ServerMessage::Error { data } => {
            tracing::warn!(message = data.message, "the recogniser reports an error");
            Heard::Other
        }
        _ => Heard::Other,
    }
}

fn recognised(data: Transcript) -> Recognised {
    let utterance = data.utterance;
    let words = utterance.words.into_iter().map(|w| RecognisedWord {
        word: w.word,
        start_s: w.start,
        end_s: w.end,
        confidence: Some(w.confidence),
    });
    Recognised {
        id: data.id,
        is_final: data.is_final,
        text: utterance.text,
        start_s: utterance.start,
        end_s: utterance.end,
        language: Some(utterance.language).filter(|l| !l.is_empty()),
        confidence: Some(utterance.confidence),
        words: words.collect(),
    }
}
