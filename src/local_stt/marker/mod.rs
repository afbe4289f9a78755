//! A deterministic engine for tests, drills and density runs: it needs no model and costs next to nothing.
//!
//! Its "speech" is a number in dual tones (those of a telephone keypad): `*`, the digits, a check digit, `#`; each tone
//! lasts 70 ms with 50 ms of quiet after it, which survives AAC at 64 kbit/s and resampling. [`synthesise`] makes such
//! audio; the engine answers "marker 17" with the times of the tones, interims while the digits come in, and
//! "marker ?" for a marker that was damaged, so that lost or repeated audio shows in the text.

mod detector;

use std::f64::consts::TAU;

use tokio::sync::mpsc::UnboundedSender;

use self::detector::Detector;
use super::engine::{About, Engine, EngineStream, Event, Load, SAMPLE_RATE, SAMPLES_PER_MS, StreamParams};

pub const TONE_MS: usize = 70;
pub const GAP_MS: usize = 50;
/// Text of a marker that could not be read.
pub const DAMAGED: &str = "marker ?";

/// Of each of the two tones, where 1 is full scale.
const AMPLITUDE: f64 = 0.3;
/// Rise and fall of a tone, so that it does not click.
const RAMP_MS: usize = 4;
const ROWS_HZ: [f64; 4] = [697.0, 770.0, 852.0, 941.0];
const COLUMNS_HZ: [f64; 3] = [1209.0, 1336.0, 1477.0];
const KEYS: [[char; 3]; 4] = [['1', '2', '3'], ['4', '5', '6'], ['7', '8', '9'], ['*', '0', '#']];

/// The audio of one marker: PCM16, 16 kHz, mono, without silence around it.
pub fn synthesise(number: u32) -> Vec<i16> {
    let digits = number.to_string();
    let keys = format!("*{digits}{}#", check_digit(&digits));
    let mut samples = Vec::new();
    for key in keys.chars() {
        if !samples.is_empty() {
            samples.resize(samples.len() + GAP_MS * SAMPLES_PER_MS, 0);
        }
        samples.extend(tone(key));
    }
    samples
}

/// Markers `first..first + count`, one beginning every `period_ms`; `count * period_ms` long.
pub fn track(first: u32, count: u32, period_ms: usize) -> Vec<i16> {
    let period = period_ms * SAMPLES_PER_MS;
    let mut samples = Vec::new();
    for n in 0..count {
        samples.extend(synthesise(first + n));
        samples.resize(period * (n as usize + 1), 0);
    }
    samples
}

/// "marker 17" -> 17.
pub fn parse(text: &str) -> Option<u32> {
    text.trim().strip_prefix("marker ")?.parse().ok()
}

fn tone(key: char) -> impl Iterator<Item = i16> {
    let cell = (0..4).flat_map(|r| (0..3).map(move |c| (r, c))).find(|&(r, c)| KEYS[r][c] == key);
    let (row, column) = cell.expect("only keys of the pad are played");
    let (length, ramp) = (TONE_MS * SAMPLES_PER_MS, RAMP_MS * SAMPLES_PER_MS);
    (0..length).map(move |i| {
        let t = i as f64 / SAMPLE_RATE as f64;
        let level = (i.min(length - 1 - i) as f64 / ramp as f64).min(1.0) * AMPLITUDE;
        let value = (t * TAU * ROWS_HZ[row]).sin() + (t * TAU * COLUMNS_HZ[column]).sin();
        (value * level * 32767.0) as i16
    })
}

/// Weighted by position, so that swapped digits show too.
fn check_digit(digits: &str) -> u32 {
    digits.chars().zip(1..).map(|(c, weight)| c.to_digit(10).unwrap_or(0) * weight).sum::<u32>() % 10
}

/// The engine that hears marker tones, for tests and drills.
#[derive(Debug, Default)]
pub struct MarkerEngine;

impl Engine for MarkerEngine {
    fn about(&self) -> About {
        About {
            engine: "marker",
            model: "marker tones".to_owned(),
            language: "en",
            threads: 0,
            exact_endpointing: true,
        }
    }

    fn open(&self, params: StreamParams, events: UnboundedSender<Event>) -> Box<dyn EngineStream> {
        Box::new(MarkerStream { detector: Detector::new(params), events })
    }

    fn load(&self) -> Load {
        Load::default()
    }
}

struct MarkerStream {
    detector: Detector,
    events: UnboundedSender<Event>,
}

impl MarkerStream {
    fn send(&mut self) {
        for event in self.detector.take_events() {
            let _ = self.events.send(event);
        }
    }
}

impl EngineStream for MarkerStream {
    // Recognised on the spot: a second of audio costs some 20 us.
    fn push(&mut self, samples: &[i16]) {
        self.detector.push(samples);
        self.send();
    }

    fn finish(&mut self) {
        self.detector.finish();
        self.send();
        let _ = self.events.send(Event::Finished);
    }

    fn backlog(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests;
