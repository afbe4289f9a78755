//! The audio clock: any order of tags, decoded audio, deaths and ends of decoders, with any timestamps. Chunks hold
//! whole samples, and begin where the one before ends, later, or by a bound that the clock states earlier.
//!
//! Input: operations of one byte, each with its arguments; see `step`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use stenocast::audio::decoder::Decoded;
use stenocast::audio::state::{Feed, RunStart};
use stenocast::audio::{AudioTag, DecodeState};
use stenocast_fuzz::Bytes;
use tokio::time::Instant;

const CHUNK_MS: u64 = 100;
const BYTES_PER_MS: u64 = 32;
/// What comes faster than in real time takes less session time: half of 400 ms of audio, each time (`audio::clock`).
const MOST_BACK_MS: u64 = 200;
/// More than a session has between two looks at its chunks.
const MAX_STEPS: usize = 400;

/// What a decoder actor has at hand.
struct Run {
    state: DecodeState,
    publisher: u64,
    timestamp_ms: u64,
    arrived_ms: u64,
    start: Instant,
    decoder: Option<(RunStart, u64)>,
    end_of_chunks_ms: u64,
}

impl Run {
    fn step(&mut self, input: &mut Bytes) {
        match input.u8() % 10 {
            0 => {
                let length = usize::from(input.u8());
                let body = bytes::Bytes::copy_from_slice(input.take(length));
                self.timestamp_ms += u64::from(input.u8());
                self.accept(body);
            }
            // A jump, as the chunk reader makes them of 32-bit timestamps.
            1 => {
                let step = input.u32() as i32;
                let jumped = self.timestamp_ms.checked_add_signed(i64::from(step));
                self.timestamp_ms = jumped.unwrap_or_else(|| u64::from(input.u32()));
            }
            2 => self.feed(),
            3 => self.pcm(usize::from(input.u16() % 4096), input.u32()),
            8 => self.pcm(usize::from(input.u16() % 4096), u32::from(input.u16())),
            9 => self.no_sound(u64::from(input.u8()), u64::from(input.u8())),
            4 => self.died(),
            5 => {
                if let Some((beginning, _)) = self.decoder.take() {
                    self.state.ended(beginning.run);
                }
            }
            6 => {
                self.publisher += u64::from(input.u8() & 1);
                self.arrived_ms += u64::from(input.u16());
            }
            _ => self.flush(),
        }
        self.take_chunks();
    }

    fn accept(&mut self, body: bytes::Bytes) {
        self.arrived_ms += 20;
        let arrived = self.start;
        let tag = AudioTag { publisher: self.publisher, timestamp_ms: self.timestamp_ms, body, arrived };
        let _ = self.state.accept(&tag, self.arrived_ms);
    }

    fn feed(&mut self) {
        if self.decoder.is_none() {
            self.decoder = self.state.begin().map(|beginning| (beginning.clone(), beginning.first_seq));
        }
        let Some((beginning, seq)) = &mut self.decoder else { return };
        match self.state.feed(beginning, *seq) {
            Feed::Tag(_) => *seq += 1,
            Feed::Wait | Feed::End => {}
        }
    }

    fn pcm(&mut self, samples: usize, at_ms: u32) {
        if let Some((beginning, _)) = &self.decoder {
            self.state.decoded(beginning.run, &Decoded { at_ms, pcm: vec![1; samples * 2].into() }, 1);
        }
        self.take_losses();
    }

    fn no_sound(&mut self, complaints: u64, answered: u64) {
        if let Some((beginning, _)) = &self.decoder {
            self.state.no_sound(beginning.run, complaints, beginning.first_seq + answered);
        }
        self.take_losses();
    }

    fn take_losses(&mut self) {
        self.state.take_failed();
        self.state.trouble_change();
        while let Some(hole) = self.state.pop_hole() {
            assert!(hole.start_ms <= hole.end_ms);
        }
    }

    fn died(&mut self) {
        if self.decoder.take().is_some()
            && let Some(lost) = self.state.died()
        {
            assert!(lost.start_ms <= lost.end_ms && lost.tags > 0);
        }
    }

    fn flush(&mut self) {
        self.state.want_flush();
        self.state.no_more_tags();
        if self.decoder.is_none() && self.state.finish_flush() {
            assert!(!self.state.is_flush_wanted());
        }
    }

    fn take_chunks(&mut self) {
        while let Some(chunk) = self.state.front_chunk() {
            let bytes = chunk.pcm.len() as u64;
            assert!(bytes > 0 && bytes.is_multiple_of(2) && bytes <= CHUNK_MS * BYTES_PER_MS);
            let earliest_ms = self.end_of_chunks_ms.saturating_sub(MOST_BACK_MS);
            assert!(chunk.start_ms >= earliest_ms, "{} < {earliest_ms}", chunk.start_ms);
            self.end_of_chunks_ms = chunk.start_ms + bytes / BYTES_PER_MS;
            self.state.pop_chunk();
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let mut run = Run {
        state: DecodeState::new(CHUNK_MS),
        publisher: 1,
        timestamp_ms: 0,
        arrived_ms: 0,
        start: Instant::now(),
        decoder: None,
        end_of_chunks_ms: 0,
    };
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        run.step(&mut input);
    }
});
