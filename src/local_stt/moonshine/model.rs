//! The Moonshine encoder and decoder: samples in, tokens out.
//!
//! Layer, head and dimension counts come from the model itself, so larger models with the same graphs load too.

use std::borrow::Cow;
use std::ops::Range;

use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::{DynValue, Tensor, ValueType};

use super::super::engine::SAMPLE_RATE;
use super::super::models::{DECODER, ENCODER, ModelDir, ModelError};
use super::runtime;

const BOS: i64 = 1;
const EOS: i64 = 2;
/// Tokens per second of audio, and a few more: without a cap the decoder loops on words that are cut off.
const TOKENS_PER_S: f32 = 6.5;
const TOKENS_EXTRA: usize = 2;
/// The encoder fails on less audio than this (0.4 s); shorter audio is padded with silence.
const MIN_SAMPLES: usize = SAMPLE_RATE * 2 / 5;
const PAST_PREFIX: &str = "past_key_values.";

/// One pair of sessions; one per inference thread.
pub struct Model {
    encoder: Session,
    decoder: Session,
    /// Cache inputs without their prefix ("0.decoder.key") with the shape of an empty one.
    past: Vec<(String, [usize; 4])>,
}

/// Tokens without begin and end, each with its log-probability.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    pub tokens: Vec<i64>,
    pub log_probs: Vec<f32>,
}

impl Decoded {
    /// `tokens`, as far as there are so many.
    pub fn part(&self, tokens: Range<usize>) -> Self {
        let tokens = tokens.start.min(self.tokens.len())..tokens.end.min(self.tokens.len());
        Self { tokens: self.tokens[tokens.clone()].to_vec(), log_probs: self.log_probs[tokens].to_vec() }
    }

    pub fn then(mut self, next: Self) -> Self {
        self.tokens.extend(next.tokens);
        self.log_probs.extend(next.log_probs);
        self
    }
}

/// Text that [`Model::recognise`] heard.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heard {
    pub whole: Decoded,
    /// For each stop: what had been said by then.
    pub until: Vec<Decoded>,
}

impl Model {
    pub fn load(models: &ModelDir) -> Result<Self, ModelError> {
        let environment = runtime::environment(models)?;
        let encoder = runtime::load(&environment, &models.path(ENCODER))?;
        let decoder = runtime::load(&environment, &models.path(DECODER))?;
        let past = past_inputs(&decoder);
        if past.is_empty() {
            let why = "it has no past_key_values inputs: not a merged Moonshine decoder".to_owned();
            return Err(ModelError::Invalid { path: models.path(DECODER), why });
        }
        Ok(Self { encoder, decoder, past })
    }

    /// Recognises `samples`, and again only as far as each of `stops`. The tokens of `prefix` are forced.
    pub fn recognise(&mut self, samples: &[i16], prefix: &[i64], stops: &[usize]) -> ort::Result<Heard> {
        let whole = self.decode(samples, prefix)?;
        let mut until = Vec::with_capacity(stops.len());
        for &stop in stops {
            // The beginning is the same for sure; to force it saves a third of the time.
            let known = whole.tokens.len() * stop / samples.len().max(1) / 2;
            let known = &whole.tokens[..known.max(prefix.len()).min(whole.tokens.len())];
            until.push(self.decode(&samples[..stop], known)?);
        }
        Ok(Heard { whole, until })
    }

    /// Recognises `samples`. The tokens of `prefix` are forced: the same audio, a little longer, begins the same way.
    fn decode(&mut self, samples: &[i16], prefix: &[i64]) -> ort::Result<Decoded> {
        let mut audio: Vec<f32> = samples.iter().map(|&s| f32::from(s) / 32768.0).collect();
        audio.resize(audio.len().max(MIN_SAMPLES), 0.0);
        let length = audio.len();
        let limit = (length as f32 / SAMPLE_RATE as f32 * TOKENS_PER_S).ceil() as usize + TOKENS_EXTRA;
        // The decoder's mask, too, is at sample level; one of encoder frames works by luck up to 9.2 s.
        let mask = Tensor::from_array(([1, length], vec![1i64; length]))?.into_dyn();
        let audio = Tensor::from_array(([1, length], audio))?;
        let hidden = {
            let mut outputs = self.encoder.run(ort::inputs!["input_values" => audio, "attention_mask" => &mask])?;
            outputs.remove("last_hidden_state").ok_or_else(|| ort::Error::new("the encoder gave no hidden state"))?
        };
        self.generate(&hidden, &mask, prefix, limit.max(prefix.len() + TOKENS_EXTRA))
    }

    fn generate(&mut self, hidden: &DynValue, mask: &DynValue, prefix: &[i64], limit: usize) -> ort::Result<Decoded> {
        let mut decoded = Decoded { tokens: prefix.to_vec(), log_probs: Vec::with_capacity(limit) };
        let mut past = self.empty_past()?;
        let mut feed: Vec<i64> = std::iter::once(BOS).chain(prefix.iter().copied()).collect();
        let mut cached = false;
        while decoded.tokens.len() < limit {
            let fed = feed.len();
            let inputs = step_inputs(feed, hidden, mask, &self.past, &past, cached)?;
            let mut outputs = self.decoder.run(inputs)?;
            let (_, logits) = outputs["logits"].try_extract_tensor::<f32>()?;
            let width = logits.len() / fed;
            // In the first step the logits before the last belong to the forced tokens.
            for (row, &forced) in logits.chunks_exact(width).zip(prefix).take(fed - 1) {
                decoded.log_probs.push(log_prob(row, forced as usize));
            }
            let last = &logits[(fed - 1) * width..];
            let token = argmax(last);
            let probability = log_prob(last, token);
            keep_past(&mut outputs, &self.past, &mut past, cached);
            if token as i64 == EOS {
                break;
            }
            decoded.tokens.push(token as i64);
            decoded.log_probs.push(probability);
            feed = vec![token as i64];
            cached = true;
        }
        decoded.tokens.truncate(decoded.log_probs.len());
        Ok(decoded)
    }

    /// Length 1 and not 0: zero-length dimensions are a risk; the first step does not look at it.
    fn empty_past(&self) -> ort::Result<Vec<DynValue>> {
        let empty =
            |shape: &[usize; 4]| Tensor::from_array((*shape, vec![0f32; shape.iter().product()])).map(Tensor::into_dyn);
        self.past.iter().map(|(_, shape)| empty(shape)).collect()
    }
}

fn past_inputs(decoder: &Session) -> Vec<(String, [usize; 4])> {
    let shape_of = |dtype: &ValueType| match dtype {
        ValueType::Tensor { shape, .. } if shape.len() == 4 => Some([0, 1, 2, 3].map(|i| shape[i].max(1) as usize)),
        _ => None,
    };
    let inputs = decoder.inputs().iter();
    inputs.filter_map(|i| Some((i.name().strip_prefix(PAST_PREFIX)?.to_owned(), shape_of(i.dtype())?))).collect()
}

type Inputs<'a> = Vec<(Cow<'a, str>, SessionInputValue<'a>)>;

fn step_inputs<'a>(
    feed: Vec<i64>,
    hidden: &'a DynValue,
    mask: &'a DynValue,
    names: &[(String, [usize; 4])],
    past: &'a [DynValue],
    cached: bool,
) -> ort::Result<Inputs<'a>> {
    let mut inputs: Inputs = vec![
        ("input_ids".into(), Tensor::from_array(([1, feed.len()], feed))?.into()),
        ("encoder_hidden_states".into(), hidden.into()),
        ("encoder_attention_mask".into(), mask.into()),
        ("use_cache_branch".into(), Tensor::from_array(([1usize], vec![cached]))?.into()),
    ];
    inputs.extend(names.iter().zip(past).map(|((name, _), v)| (format!("{PAST_PREFIX}{name}").into(), v.into())));
    Ok(inputs)
}

/// The encoder's keys and values never change after the first step (and come back empty then).
fn keep_past(outputs: &mut SessionOutputs, names: &[(String, [usize; 4])], past: &mut [DynValue], cached: bool) {
    for ((name, _), slot) in names.iter().zip(past) {
        if cached && name.contains("encoder") {
            continue;
        }
        if let Some(present) = outputs.remove(format!("present.{name}")) {
            *slot = present;
        }
    }
}

fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, &value) in row.iter().enumerate() {
        if value > row[best] {
            best = index;
        }
    }
    best
}

fn log_prob(row: &[f32], token: usize) -> f32 {
    let most = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f32 = row.iter().map(|&v| (v - most).exp()).sum();
    row[token] - most - sum.ln()
}
