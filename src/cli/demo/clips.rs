//! The bundled speech (human readers, public domain and BSD licences) and its known text.

macro_rules! clip {
    ($name:literal) => {
        (
            include_bytes!(concat!("../../../tests/fixtures/speech/", $name, ".wav")),
            include_str!(concat!("../../../tests/fixtures/speech/", $name, ".txt")),
        )
    };
}

/// (WAV file, text) of each clip: PCM16, 16 kHz, mono.
pub const CLIPS: &[(&[u8], &str)] = &[
    clip!("goforward"),
    clip!("librivox_0870"),
    clip!("librivox_0880"),
    clip!("librivox_0890"),
    clip!("cards_001"),
    clip!("cards_002"),
];

const BYTES_PER_MS: usize = 32;
/// Pause between two clips.
const PAUSE_MS: usize = 1000;

/// All clips in a row.
pub struct Programme {
    pub wav: Vec<u8>,
    pub text: String,
    pub clips: usize,
}

/// Begins with speech at once: the first word counts.
pub fn programme() -> Programme {
    let mut pcm = Vec::new();
    let mut text = Vec::new();
    for (wav, words) in CLIPS {
        pcm.extend_from_slice(samples(wav));
        pcm.resize(pcm.len() + PAUSE_MS * BYTES_PER_MS, 0);
        text.push(words.trim());
    }
    Programme { wav: with_header(&pcm), text: text.join(" "), clips: CLIPS.len() }
}

/// The data chunk of a RIFF file.
fn samples(wav: &[u8]) -> &[u8] {
    let mut at = 12;
    while at + 8 <= wav.len() {
        let size = u32::from_le_bytes([wav[at + 4], wav[at + 5], wav[at + 6], wav[at + 7]]) as usize;
        let body = at + 8;
        if &wav[at..at + 4] == b"data" {
            return &wav[body..(body + size).min(wav.len())];
        }
        at = body + size + (size & 1);
    }
    &[]
}

fn with_header(pcm: &[u8]) -> Vec<u8> {
    let mut wav = Vec::with_capacity(44 + pcm.len());
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + pcm.len() as u32).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt ");
    wav.extend_from_slice(&16u32.to_le_bytes());
    wav.extend_from_slice(&1u16.to_le_bytes());
    wav.extend_from_slice(&1u16.to_le_bytes());
    wav.extend_from_slice(&16_000u32.to_le_bytes());
    wav.extend_from_slice(&32_000u32.to_le_bytes());
    wav.extend_from_slice(&2u16.to_le_bytes());
    wav.extend_from_slice(&16u16.to_le_bytes());
    wav.extend_from_slice(b"data");
    wav.extend_from_slice(&(pcm.len() as u32).to_le_bytes());
    wav.extend_from_slice(pcm);
    wav
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programme_holds_every_clip_and_its_words() {
        let programme = programme();
        let speech: usize = CLIPS.iter().map(|(wav, _)| samples(wav).len()).sum();
        assert!(speech > 10_000 * BYTES_PER_MS, "more than 10 s of speech");
        assert_eq!(programme.wav.len(), 44 + speech + CLIPS.len() * PAUSE_MS * BYTES_PER_MS);
        assert_eq!(samples(&programme.wav).len(), programme.wav.len() - 44);
        assert!(programme.text.starts_with("go forward"));
    }
}
