//! Checks the body of `POST /v2/live` and says what it means here.
//!
//! What the local recogniser cannot do is either refused in words (another language) or, for add-ons, answered with
//! their error message; unknown keys are tolerated, as Gladia does.

use serde_json::Value;

use super::super::audio::{BIT_DEPTHS, ENCODINGS, Encoding, Format, MAX_CHANNELS, SAMPLE_RATES};
use super::super::engine::StreamParams;
use crate::gladia::wire::{LiveRequest, MessagesConfig};

const DEFAULT_SAMPLE_RATE: u32 = 16_000;
const DEFAULT_ENDPOINTING_S: f64 = 0.05;
const DEFAULT_MAX_UTTERANCE_S: f64 = 5.0;
/// Less silence than this costs accuracy (5.5 % of words wrong at 480 ms, 3.8 % at 800 ms), so that `endpointing` only
/// ever lengthens it. The marker engine takes what is asked for.
const MIN_END_SILENCE_MS: usize = 480;
/// The model was made for pieces up to here.
const MAX_SEGMENT_MS: usize = 30_000;
const MAX_METADATA_CHARS: usize = 2000;
/// Keys of `realtime_processing` whose results would be messages of their own.
const TRANSLATION: &str = "translation";
const ADD_ONS: [&str; 3] = [TRANSLATION, "named_entity_recognition", "sentiment_analysis"];

/// A request that can be served.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub request: LiveRequest,
    pub format: Format,
    pub params: StreamParams,
    pub messages: MessagesConfig,
    /// Languages that finals are translated to.
    pub translate_to: Vec<String>,
    /// Asked for and not to be had here.
    pub missing_add_ons: Vec<&'static str>,
    pub summarization: bool,
}

/// `is_exact`: the engine needs no minimum of silence, and can translate. Errors are sentences for `validation_errors`.
pub fn accept(body: &[u8], is_exact: bool) -> Result<Accepted, Vec<String>> {
    let body = if body.is_empty() { b"{}" } else { body };
    let value: Value = serde_json::from_slice(body).map_err(|e| vec![format!("The body is not JSON: {e}")])?;
    if !value.is_object() {
        return Err(vec!["The body must be a JSON object".to_owned()]);
    }
    let request: LiveRequest =
        serde_json::from_value(value).map_err(|e| vec![format!("A field has a wrong type: {e}")])?;
    let mut errors = Vec::new();
    let format = format(&request, &mut errors);
    let params = params(&request, is_exact, &mut errors);
    check_language(&request, &mut errors);
    check_metadata(&request, &mut errors);
    let translate_to = if is_exact { targets(&request, &mut errors) } else { Vec::new() };
    if !errors.is_empty() {
        return Err(errors);
    }
    let asked = |map: &Option<serde_json::Map<String, Value>>, key: &str| {
        map.as_ref().is_some_and(|m| m.get(key) == Some(&Value::Bool(true)))
    };
    Ok(Accepted {
        format,
        params,
        messages: request.messages_config.clone().unwrap_or_default(),
        missing_add_ons: ADD_ONS
            .into_iter()
            .filter(|k| asked(&request.realtime_processing, k) && !(is_exact && *k == TRANSLATION))
            .collect(),
        translate_to,
        summarization: asked(&request.post_processing, "summarization"),
        request,
    })
}

fn one_of<T: Copy + PartialEq + ToString>(errors: &mut Vec<String>, field: &str, value: T, allowed: &[T]) -> T {
    if !allowed.contains(&value) {
        let allowed = allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        errors.push(format!("Field \"{field}\" must be one of {allowed}"));
    }
    value
}

fn within(errors: &mut Vec<String>, field: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> f64 {
    if !range.contains(&value) {
        errors.push(format!("Field \"{field}\" must be between {} and {}", range.start(), range.end()));
    }
    value
}

fn format(request: &LiveRequest, errors: &mut Vec<String>) -> Format {
    let encoding = request.encoding.as_deref().unwrap_or(ENCODINGS[0]);
    let encoding = match one_of(errors, "encoding", encoding, &ENCODINGS) {
        "wav/alaw" => Encoding::Alaw,
        "wav/ulaw" => Encoding::Ulaw,
        _ => Encoding::Pcm,
    };
    let default_depth = if encoding == Encoding::Pcm { 16 } else { 8 };
    let bit_depth = one_of(errors, "bit_depth", request.bit_depth.unwrap_or(default_depth), &BIT_DEPTHS);
    let rate = request.sample_rate.unwrap_or(DEFAULT_SAMPLE_RATE);
    let sample_rate = one_of(errors, "sample_rate", rate, &SAMPLE_RATES);
    let channels = request.channels.unwrap_or(1);
    within(errors, "channels", f64::from(channels), 1.0..=f64::from(MAX_CHANNELS));
    Format { encoding, bit_depth, sample_rate, channels }
}

fn params(request: &LiveRequest, exact: bool, errors: &mut Vec<String>) -> StreamParams {
    let endpointing = request.endpointing.unwrap_or(DEFAULT_ENDPOINTING_S);
    let endpointing = within(errors, "endpointing", endpointing, 0.01..=10.0);
    let longest = request.maximum_duration_without_endpointing.unwrap_or(DEFAULT_MAX_UTTERANCE_S);
    let longest = within(errors, "maximum_duration_without_endpointing", longest, 5.0..=60.0);
    let asked_ms = (endpointing * 1000.0) as usize;
    let messages = request.messages_config.as_ref();
    StreamParams {
        end_silence_ms: if exact { asked_ms } else { asked_ms.max(MIN_END_SILENCE_MS) },
        max_segment_ms: ((longest * 1000.0) as usize).min(MAX_SEGMENT_MS),
        interims: messages.and_then(|m| m.receive_partial_transcripts).unwrap_or(false),
    }
}

/// Silence, or English among others, is fine: what is detected among them is then English.
fn check_language(request: &LiveRequest, errors: &mut Vec<String>) {
    let languages = request.language_config.as_ref().and_then(|c| c.languages.as_deref()).unwrap_or_default();
    if !languages.is_empty() && !languages.iter().any(|l| l == "en") {
        let asked = languages.join(", ");
        errors.push(format!(
            "Field \"language_config.languages\" must contain \"en\": the local recogniser hears English only \
             (asked for: {asked})"
        ));
    }
}

/// `realtime_processing.translation_config.target_languages`, of which there must be one where translation is asked for.
fn targets(request: &LiveRequest, errors: &mut Vec<String>) -> Vec<String> {
    let Some(processing) =
        request.realtime_processing.as_ref().filter(|p| p.get(TRANSLATION) == Some(&Value::Bool(true)))
    else {
        return Vec::new();
    };
    let list = processing.get("translation_config").and_then(|config| config["target_languages"].as_array());
    let targets: Option<Vec<String>> =
        list.and_then(|list| list.iter().map(|code| code.as_str().map(str::to_owned)).collect());
    let targets = targets.unwrap_or_default();
    if targets.is_empty() {
        let field = "realtime_processing.translation_config.target_languages";
        errors.push(format!("Field \"{field}\" must be a list of at least one language code"));
    }
    targets
}

fn check_metadata(request: &LiveRequest, errors: &mut Vec<String>) {
    let length = request.custom_metadata.as_ref().map_or(0, |m| Value::Object(m.clone()).to_string().chars().count());
    if length > MAX_METADATA_CHARS {
        errors.push(format!("Field \"custom_metadata\" must be at most {MAX_METADATA_CHARS} characters of JSON"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(body: &str) -> String {
        accept(body.as_bytes(), false).map(|_| String::new()).unwrap_or_else(|e| e.join("; "))
    }

    #[test]
    fn nothing_is_required() {
        for body in ["", "{}", r#"{"unknown":{"a":1},"language_config":{"languages":[]}}"#] {
            let accepted = accept(body.as_bytes(), false).unwrap();
            assert_eq!((accepted.format.bytes_per_second(), accepted.params.end_silence_ms), (32_000, 480));
            assert_eq!((accepted.params.max_segment_ms, accepted.params.interims), (5000, false));
        }
    }

    #[test]
    fn endpointing_lengthens_the_silence_and_never_shortens_it() {
        let silence = |body: &str, exact| accept(body.as_bytes(), exact).unwrap().params.end_silence_ms;
        assert_eq!(silence(r#"{"endpointing":0.3}"#, false), 480);
        assert_eq!(silence(r#"{"endpointing":0.3}"#, true), 300);
        assert_eq!(silence(r#"{"endpointing":0.8}"#, false), 800);
    }

    #[test]
    fn every_fault_is_named_with_what_is_allowed() {
        let text = errors(
            r#"{"encoding":"mp3","bit_depth":12,"sample_rate":11025,"channels":9,"endpointing":0,
                "maximum_duration_without_endpointing":61,"language_config":{"languages":["fr","de"]}}"#,
        );
        for field in ["encoding", "bit_depth", "sample_rate", "channels", "endpointing", "maximum_duration"] {
            assert!(text.contains(&format!("Field \"{field}")), "{field}: {text}");
        }
        assert!(text.contains("8000, 16000, 32000, 44100, 48000"), "{text}");
        assert!(text.contains("English only (asked for: fr, de)"), "{text}");
        assert!(errors("[]").contains("object") && errors("{").contains("not JSON"));
        assert!(errors(r#"{"sample_rate":"16k"}"#).contains("wrong type"));
        let no_target = accept(br#"{"realtime_processing":{"translation":true}}"#, true).unwrap_err();
        assert!(no_target.join(";").contains("target_languages"), "{no_target:?}");
    }

    #[test]
    fn english_among_others_is_fine_and_add_ons_are_noted() {
        let body = r#"{"language_config":{"languages":["ru","en"],"code_switching":true},
            "realtime_processing":{"translation":true,"custom_vocabulary":true},
            "post_processing":{"summarization":true}}"#;
        let accepted = accept(body.as_bytes(), false).unwrap();
        assert_eq!(accepted.missing_add_ons, ["translation"]);
        assert!(accepted.summarization);
    }
}
